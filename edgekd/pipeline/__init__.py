"""The stages in order: open artifacts, call an operation, seal an artifact. The only place that writes artifacts."""

from __future__ import annotations

import importlib
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekd import _group
from edgekd.artifact import Artifact, open_artifact
from edgekd.errors import ArtifactError
from edgekd.pipeline._cache_verbs import build_cache, show_cache, verify_cache
from edgekd.pipeline._check import plan, ready
from edgekd.pipeline._claim import CHECKPOINTS, claimed, write_whole_text
from edgekd.pipeline._float_stages import mentor_stages, student_stages
from edgekd.pipeline._grid import MOST, Combination, combinations, read_grid
from edgekd.pipeline._quality import quality_stage
from edgekd.pipeline._run import NotThere, Run
from edgekd.pipeline._sweep import SweepResult, check_sweep, sweep
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.pipeline._watching import Watching
from edgekd.recipe import Recipe
from edgekd.report import Report, from_json, render_html, render_markdown, to_json

if TYPE_CHECKING:
    from edgekd.pipeline._bench_bundle import bench_bundle
    from edgekd.pipeline._bench_file import bench_file
    from edgekd.pipeline._gating import compare_with, exit_code_of, write_summaries
    from edgekd.pipeline._packing import pack
    from edgekd.pipeline._packing_files import pack_files
    from edgekd.pipeline._probing import Probed, probe_device
    from edgekd.pipeline._quantize_file import FileQuantization, quantize_file

__all__ = [
    "MOST",
    "Combination",
    "FileQuantization",
    "Probed",
    "RunResult",
    "Silent",
    "Stage",
    "SweepResult",
    "Watcher",
    "bench_bundle",
    "bench_file",
    "build_cache",
    "check",
    "check_sweep",
    "combinations",
    "compare_with",
    "exit_code_of",
    "open_report",
    "pack",
    "pack_files",
    "probe_device",
    "quantize_file",
    "read_grid",
    "run",
    "show_cache",
    "sweep",
    "verify",
    "verify_cache",
    "write_report",
    "write_summaries",
]

Stage = Literal["train", "distill", "quantize", "export", "bench", "report"]
_ORDER: tuple[Stage, ...] = ("train", "distill", "quantize", "export", "bench", "report")
_LATER = {
    "bench_bundle": "edgekd.pipeline._bench_bundle",
    "compare_with": "edgekd.pipeline._gating",
    "exit_code_of": "edgekd.pipeline._gating",
    "write_summaries": "edgekd.pipeline._gating",
    "bench_file": "edgekd.pipeline._bench_file",
    "Probed": "edgekd.pipeline._probing",
    "probe_device": "edgekd.pipeline._probing",
    "pack": "edgekd.pipeline._packing",
    "pack_files": "edgekd.pipeline._packing_files",
    "quantize_file": "edgekd.pipeline._quantize_file",
    "FileQuantization": "edgekd.pipeline._quantize_file",
}
_REPORT, _MANIFEST = "report.json", "manifest.json"
_STAGE = re.compile(r"-[0-9a-f]{8}$")


def __getattr__(name: str) -> Any:
    """Import what only some commands need when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Args:
        out: its folder.
        report: everything it found out so far.
        exit_code: 0, 1 for a missed gate or budget, 5 for an inconclusive measurement.
    """

    out: Path
    report: Report
    exit_code: int


def run(
    recipe: Recipe,
    *,
    out: Path,
    recipe_file: Path | None = None,
    until: Stage = "report",
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> RunResult:
    """Carry out a recipe up to a stage; stages whose result is there are skipped.

    Processes that a launcher started (`torchrun`, `accelerate launch`) share the work: all train, the main one writes.

    Args:
        recipe: checked.
        out: the run's folder; made if it is not there.
        recipe_file: relative paths of the recipe start at its folder.
        until: the last stage.
        overwrite: go on in a folder that holds something else.
        watcher: told about progress; in the main process only.

    Raises:
        EdgeKDError: see the errors of each stage; what was sealed before is kept.
    """
    with claimed(out, recipe, recipe_file, overwrite=overwrite):
        work = Run(recipe, out, recipe_file, (watcher or Silent()) if _group.is_main() else Silent())
        work.watching = Watching(out, recipe, work.watcher.message)
        last = _ORDER.index(until)
        ready(work, distills=last >= _ORDER.index("distill"), exports=last >= _ORDER.index("export"))
        _stages(work, until)
        report = _group.from_main(lambda: _reported(work, until))
    return RunResult(out, report, _exit_code(report, until))


def _reported(work: Run, until: Stage) -> Report:
    from edgekd.pipeline._reporting import assemble

    report = assemble(work, work.recipe.export.targets)
    write_report(report, work.out)
    if until == "report":  # before, they may be of a later stage that was stopped
        shutil.rmtree(work.out / CHECKPOINTS, ignore_errors=True)
    return report


def check(recipe: Recipe, *, recipe_file: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """Everything but the work: read the data, build and run both networks once, look for every backend.

    Returns:
        Plain values: what would be done, with what is missing.

    Raises:
        EdgeKDError: whatever would stop the run.
    """
    return plan(Run(recipe, out or Path("runs") / recipe.name, recipe_file, Silent()))


def open_report(folder: Path) -> Report:
    """The report of a run's folder.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = folder / _REPORT
    if not path.is_file():
        raise ArtifactError(f"There is no run at {folder}: {_REPORT} is missing. Run `edgekd run RECIPE` first.")
    return from_json(path.read_bytes(), source=str(path))


def write_report(report: Report, out: Path) -> None:
    """Write report.json, report.md and report.html into a run's folder, each whole or not at all."""
    write_whole_text(out / _REPORT, to_json(report))
    write_whole_text(out / "report.md", render_markdown(report))
    write_whole_text(out / "report.html", render_html(report))


def verify(folder: Path) -> list[dict[str, Any]]:
    """Check every artifact of a run: the hash of each file, and that each parent is there.

    Raises:
        ArtifactError: the folder holds no artifact.
    """
    # a name with a dot in front is an artifact that was never finished
    places = [path for path in sorted(folder.glob("[!.]*")) if (path / _MANIFEST).exists() or _STAGE.search(path.name)]
    if not places:
        raise ArtifactError(f"There is no artifact in {folder}. Give the folder of a run.")
    found: dict[Path, Artifact] = {}
    rows: list[dict[str, Any]] = []
    for path in places:
        row: dict[str, Any] = {"path": path.name, "kind": None, "ok": False, "problem": None}
        try:
            found[path] = open_artifact(path)
            row |= {"kind": found[path].manifest.kind, "ok": True}
        except ArtifactError as error:
            row["problem"] = str(error)
        rows.append(row)
    ids = {artifact.id for artifact in found.values()}
    for path, row in zip(places, rows, strict=True):
        lost = [link.role for link in found[path].manifest.parents if link.id not in ids] if path in found else []
        if lost:
            row |= {"ok": False, "problem": f"its {', '.join(lost)} is missing or damaged: the lineage is broken there"}
    return rows


def _stages(work: Run, until: Stage) -> None:
    """Make every stage up to the last one asked for, and open those behind it that are there already."""
    reached = _ORDER.index(until)

    def step(stage: Stage) -> None:
        work.open_only = _ORDER.index(stage) > reached

    with suppress(NotThere):
        step("train")
        mentors = mentor_stages(work)
        step("distill")
        student, _ = student_stages(work, mentors)
        with suppress(NotThere):
            quality_stage(work, mentors)
        first = None
        for target in work.recipe.export.targets:
            # not before they are needed: a training that goes on starts seconds earlier
            from edgekd.pipeline._quantizing import quantize_stages
            from edgekd.pipeline._shipping import bench_stage, export_stage

            with suppress(NotThere):
                step("quantize")
                quantized = quantize_stages(work, target, mentors, student, first)
                first = first or quantized
                step("export")
                exported = export_stage(work, target, student, quantized)
                step("bench")
                bench_stage(work, target, exported)


def _exit_code(report: Report, until: Stage) -> int:
    if report.verdict is None:
        return 0
    if report.verdict.overall == "FAIL":
        return 1
    measured = _ORDER.index(until) >= _ORDER.index("bench")
    return 5 if report.verdict.overall in ("INCONCLUSIVE", "INVALID") and measured else 0
