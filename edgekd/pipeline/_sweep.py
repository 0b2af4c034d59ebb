"""A sweep: every combination of a grid trains its student, and validation ranks them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import edgekd
from edgekd._repeats import Repeats, accuracies, repeats
from edgekd._sweep_model import Sweep, SweepRow
from edgekd.artifact import Artifact
from edgekd.errors import ArtifactError, TrainingDiverged, UsageError
from edgekd.evaluate import accuracy, agreement, paired
from edgekd.pipeline._check import ready
from edgekd.pipeline._claim import claimed, write_whole_text
from edgekd.pipeline._float_stages import mentor_stages, student_stages
from edgekd.pipeline._grid import Combination, Grid
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import PREDICTIONS, history_of, predictions_of
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.pipeline._watching import Watching
from edgekd.recipe import Recipe
from edgekd.report import render_sweep_markdown, sweep_to_json

__all__ = ["SweepResult", "check_sweep", "sweep"]

SWEEP_JSON, SWEEP_MARKDOWN = "sweep.json", "sweep.md"
_STUDENT, _ALONE, _TEACHER = "student", "student_alone", "teacher"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ended with: its folder, and everything it found out."""

    out: Path
    found: Sweep


def sweep(
    recipe: Recipe,
    chosen: Sequence[Combination],
    *,
    out: Path,
    recipe_file: Path | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Train the student of every combination, and rank them; what is there already is not made again.

    All are stages in one folder: combinations share teachers and students alone, and a sweep that was stopped goes on.
    A training that diverges is a result and stops nothing.

    Args:
        recipe: what the combinations start from; `distill.repeats` says how many seeds each gets.
        chosen: of `combinations`.
        out: the run's folder.
        recipe_file: relative paths of the recipe start at its folder.
        overwrite: go on in a folder that holds something else.
        watcher: told about progress; stages carry the combination's number.

    Raises:
        EdgeKDError: whatever would stop a combination, before the first of them is trained.
    """
    watcher = watcher or Silent()
    with claimed(out, recipe, recipe_file, overwrite=overwrite):
        runs = _runs(chosen, out, recipe_file, watcher)
        _all_ready(chosen, runs)
        found = _Found(_grid(chosen))
        watching = Watching(out, recipe, watcher.message)
        for one, run in zip(chosen, runs, strict=True):
            run.watching = watching
            found.add(one, run)
        result = Sweep(
            name=recipe.name,
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            edgekd_version=edgekd.__version__,
            recipe=recipe.resolved(),
            grid=found.grid,
            seeds=recipe.distill.repeats,
            n_val=len(runs[0].data.val),
            n_test=len(runs[0].data.test),
            baselines=found.baselines,
            rows=_ranked(found.rows),
        )
        write_whole_text(out / SWEEP_JSON, sweep_to_json(result))
        write_whole_text(out / SWEEP_MARKDOWN, render_sweep_markdown(result))
    return SweepResult(out, result)


def check_sweep(recipe: Recipe, chosen: Sequence[Combination], *, recipe_file: Path | None = None) -> dict[str, Any]:
    """Everything but the work: read the data, and build and join the networks of every combination.

    Returns:
        Plain values: what would be trained.

    Raises:
        EdgeKDError: whatever would stop a combination.
    """
    runs = _runs(chosen, Path("runs") / recipe.name, recipe_file, Silent())
    _all_ready(chosen, runs)
    return {
        "name": recipe.name,
        "grid": _grid(chosen),
        "combinations": len(chosen),
        "seeds": recipe.distill.repeats,
        "students": len(chosen) * recipe.distill.repeats,
        "validation_samples": len(runs[0].data.val),
        "test_samples": len(runs[0].data.test),
    }


def _all_ready(chosen: Sequence[Combination], runs: Sequence[Run]) -> None:
    for one, run in zip(chosen, runs, strict=True):
        with _named(one):
            ready(run, distills=True, exports=False)


def _runs(chosen: Sequence[Combination], out: Path, recipe_file: Path | None, watcher: Watcher) -> list[Run]:
    runs = [
        Run(one.recipe, out, recipe_file, _Numbered(watcher, f"{number}/{len(chosen)}"))
        for number, one in enumerate(chosen, start=1)
    ]
    for run in runs[1:]:  # a sweep does not change the data: it is read once
        run.data, run.environment = runs[0].data, runs[0].environment
    return runs


class _Numbered:
    """A watcher that puts a combination's number before each stage.

    Args:
        inner: who is told.
        number: "3/12".
    """

    def __init__(self, inner: Watcher, number: str) -> None:
        self._inner, self._number = inner, number

    def stage(self, name: str, *, cached: bool) -> None:
        """Passed on with the number."""
        self._inner.stage(f"{self._number} {name}", cached=cached)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Passed on."""
        self._inner.progress(done, total, note)

    def message(self, text: str) -> None:
        """Passed on."""
        self._inner.message(text)


@contextmanager
def _named(one: Combination) -> Iterator[None]:
    """Say which combination something is wrong with."""
    try:
        yield
    except UsageError as error:
        changes = ", ".join(f"{key} = {value!r}" for key, value in one.changes.items())
        raise UsageError(f"In the combination {changes}: {error}") from error


@dataclass
class _Found:
    """The rows so far; students alone are told apart by their artifacts."""

    grid: dict[str, list[Any]]
    rows: list[SweepRow] = field(default_factory=list)
    baselines: list[SweepRow] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, one: Combination, run: Run) -> None:
        """Train one combination."""
        try:
            student_stages(run, mentor_stages(run))
        except TrainingDiverged as error:
            self.rows.append(SweepRow(changes=one.changes, failed=str(error)))
            return
        students, alone = _seeds(run, _STUDENT), _seeds(run, _ALONE)
        val, base = [_validation(artifact) for artifact in students], [_validation(artifact) for artifact in alone]
        self.rows.append(
            SweepRow(
                changes=one.changes,
                students=[artifact.path.name for artifact in students],
                baseline=self._baseline(one, run, alone),
                val=accuracies(val),
                test=_tested(students),
                difference=repeats([a - b for a, b in zip(val, base, strict=True)]),
                test_paired=paired((_ALONE, predictions_of(alone[0])), (_STUDENT, predictions_of(students[0]))),
                agreement=_agreement(run, students),
            )
        )

    def _baseline(self, one: Combination, run: Run, alone: Sequence[Artifact]) -> int:
        key = alone[0].manifest.key
        if key not in self._known:
            self._known[key] = len(self.baselines)
            self.baselines.append(
                SweepRow(
                    changes={name: value for name, value in one.changes.items() if _of_the_student(name)},
                    students=[artifact.path.name for artifact in alone],
                    val=accuracies([_validation(artifact) for artifact in alone]),
                    test=_tested(alone),
                    # with several teachers there is no one agreement
                    agreement=None if _of_teachers(self.grid) else _agreement(run, alone),
                )
            )
        return self._known[key]


def _of_teachers(grid: Grid) -> bool:
    return any(key.startswith("teacher") for key in grid)


def _of_the_student(key: str) -> bool:
    """Whether a key may change how the student is trained alone."""
    return key.startswith(("student", "data", "compute", "distill.train")) or key == "distill"


def _grid(chosen: Sequence[Combination]) -> dict[str, list[Any]]:
    """The values of each key, in the order in which they come."""
    found: dict[str, list[Any]] = {}
    for one in chosen:
        for key, value in one.changes.items():
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    return found


def _seeds(run: Run, name: str) -> list[Artifact]:
    """The artifacts of a stage and its repeats, by seed."""
    return [
        artifact
        for stage, artifact in run.made.items()
        if stage == name or (stage.startswith(f"{name}-seed") and stage.removeprefix(f"{name}-seed").isdigit())
    ]


def _validation(artifact: Artifact) -> float:
    """Validation accuracy of the weights that were kept: the last epoch's, or the picked network's."""
    scores: Mapping[str, Any] = artifact.manifest.metrics
    if "kept" in scores:
        return float(scores["val_accuracy"][scores["kept"]])
    history = history_of(artifact)
    if history is None or not history.history or history.history[-1].val is None:
        raise ArtifactError(f"{artifact.path} has no validation accuracy. Remove it and run the sweep again.")
    return history.history[-1].val


def _tested(artifacts: Sequence[Artifact]) -> Repeats:
    return accuracies([accuracy(predictions_of(artifact)).value for artifact in artifacts])


def _agreement(run: Run, artifacts: Sequence[Artifact]) -> float | None:
    teacher = run.made.get(_TEACHER)
    if teacher is None or PREDICTIONS not in teacher.manifest.files:
        return None
    given = predictions_of(teacher)
    return mean(agreement(given, predictions_of(artifact)).value for artifact in artifacts)


def _ranked(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The best on validation first; of equal ones, the earlier in the grid."""
    whole = sorted((row for row in rows if row.val is not None), key=lambda row: -(row.val.mean if row.val else 0.0))
    ranked = [row.model_copy(update={"rank": rank}) for rank, row in enumerate(whole, start=1)]
    return [*ranked, *(row for row in rows if row.val is None)]
