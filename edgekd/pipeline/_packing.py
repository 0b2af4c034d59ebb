"""From a finished run to a bundle: its exported files, golden vectors, card and everything that the manifest says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from edgekd._bundle_card import model_card, run_model_script
from edgekd._bundle_golden import tolerance_of, write_golden
from edgekd._bundle_kernels import other_answers
from edgekd.artifact import Artifact, open_artifact
from edgekd.bundle import (
    BudgetNote,
    BundleManifest,
    Golden,
    Licences,
    LineageNote,
    ModelEntry,
    Port,
    SignFolder,
    write_bundle,
)
from edgekd.catalog import CATALOGS
from edgekd.errors import ArtifactError, BackendMissing, UsageError
from edgekd.pipeline._shipping import FLOAT_STEM, INT8_STEM
from edgekd.report import Report, from_json
from edgekd.spec import ModelSpec, TensorSpec
from edgekd.targets._base import Target

__all__ = ["answers", "bundled", "pack"]

_RUNGS = (("onnx_int8", "int8", INT8_STEM), ("onnx_float", "float32", FLOAT_STEM))
_MACHINES = {"onnxruntime_x86": ["x86_64", "AMD64"], "onnxruntime_arm": ["aarch64", "arm64"]}
"""What an int8 file of these targets is meant for: their grids avoid what saturates or is slow there."""


def pack(
    run: Path,
    out: Path,
    *,
    targets: Sequence[str] = (),
    licence: Path | None = None,
    overwrite: bool = False,
    sign: SignFolder | None = None,
) -> BundleManifest:
    """Write a bundle of a finished run's exported models.

    Args:
        run: the run's folder.
        out: a folder, or a file that ends with .zip.
        targets: those of the run that go in, every exported one unless given.
        licence: a text that goes in as LICENSE.
        overwrite: replace a bundle that is there.
        sign: writes a signature; see `edgekd._bundle_signature.signer`.

    Returns:
        The manifest as it was written.

    Raises:
        ArtifactError: the run has no export, or one that is damaged.
        UsageError: a target that the run did not export, or a licence file that is not there.
        OverwriteRefused: something else is at `out`.
        StorageError: the disk refused.
    """
    whole = _report(run)
    exports = _exports(run, whole, targets)
    report = _about(whole, set(exports))
    return bundled(report, exports, out, licence=licence, overwrite=overwrite, sign=sign)


def bundled(
    report: Report,
    exports: Mapping[str, Artifact],
    out: Path,
    *,
    licence: Path | None,
    overwrite: bool,
    sign: SignFolder | None,
) -> BundleManifest:
    """Write a bundle of exported artifacts, by target; see `pack` for the rest and for what it raises.

    Args:
        report: what is known about them.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-pack-") as folder:
        files: dict[str, Path] = {}
        models = [
            _entry(exported, CATALOGS["targets"].load(name).member(), which, Path(folder), files)
            for which in _RUNGS
            for name, exported in _once(exports, which[2]).items()
        ]
        spec = _spec(next(iter(exports.values())))
        manifest = BundleManifest(
            name=report.name,
            created_utc=report.created_utc or "",
            edgekd_version=report.edgekd_version or "",
            models=models,
            preprocessing=spec.preprocessing,
            labels=spec.labels,
            files={},
            lineage=_lineage(report, [exported.id for exported in exports.values()]),
            budgets=_budgets(report),
            licences=_licences(report),
            metrics=_metrics(report, set(exports)),
        )
        texts = {"run_model.py": run_model_script(manifest), "README.md": model_card(manifest, report)}
        for name, text in texts.items():
            files[name] = Path(folder) / name
            files[name].write_text(text, encoding="utf-8")
        if licence is not None:
            files["LICENSE"] = _there(licence)
        return write_bundle(manifest, files, out, overwrite=overwrite, sign=sign)


def _once(exports: Mapping[str, Artifact], stem: str) -> dict[str, Artifact]:
    """The exports whose file of this name no earlier one has: two targets may share the float file."""
    first: dict[tuple[str, str], str] = {}
    for name, exported in exports.items():
        target: Target = CATALOGS["targets"].load(name).member()
        first.setdefault((target.runtime, exported.manifest.files.get(f"{stem}{target.suffix}", name)), name)
    return {name: exports[name] for name in first.values()}


def _report(run: Path) -> Report:
    path = run / "report.json"
    if not path.is_file():
        raise ArtifactError(f"There is no run at {run}: report.json is missing. Run `edgekd run RECIPE` first.")
    return from_json(path.read_bytes(), source=str(path))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{path} is no file. Give the text of the licence.")
    return path


def _exports(run: Path, report: Report, targets: Sequence[str]) -> dict[str, Artifact]:
    """The run's exported artifacts by target, in the recipe's order: those that its report is about."""
    rows = {row.stage.removeprefix("export-"): row for row in report.lineage if row.kind == "exported"}
    if not rows:
        raise ArtifactError(f"{run} has no exported model. Run `edgekd export RECIPE` first.")
    if unknown := [name for name in targets if name not in rows]:
        raise UsageError(f"--target {unknown[0]}: {run} did not export it. It has: {', '.join(rows)}.")
    found = {}
    for name, row in rows.items():
        if targets and name not in targets:
            continue
        artifact = open_artifact(run / row.path, kind="exported")
        if artifact.id != row.id:
            raise ArtifactError(f"{artifact.path} is not what {run / 'report.json'} is about. Run the recipe again.")
        found[name] = artifact
    return found


def _entry(
    exported: Artifact, target: Target, which: tuple[str, str, str], folder: Path, files: dict[str, Path]
) -> ModelEntry:
    rung, precision, stem = which
    source = exported.file(f"{stem}{target.suffix}")
    base = re.sub(r"[^A-Za-z0-9_-]", "_", target.name)
    name = f"models/{base}/{precision}{target.suffix}"
    files[name] = source
    spec = _spec(exported)
    entry = ModelEntry(
        rung=rung,
        target=target.name,
        file=name,
        precision=precision,
        opset=_opset(source),
        runtime=target.runtime,
        machines=_MACHINES.get(target.name, []) if precision == "int8" else [],
        preprocessing_inside=spec.inputs[0].dtype == "uint8",
        inputs=[_port(one, spec) for one in spec.inputs],
        outputs=[Port(name=one.name, dtype=one.dtype, shape=one.shape) for one in spec.outputs],
        artifact=exported.id,
    )
    vectors = _vectors(exported, target, source, precision)
    if vectors is None:
        return entry
    inputs, outputs, others, made_with = vectors
    golden = f"golden/{base}-{precision}.npz"
    files[golden] = folder / f"{base}-{precision}.npz"
    write_golden(files[golden], inputs, outputs)
    tolerances = {
        output: tolerance_of(precision, value, [other[output] for other in others]) for output, value in outputs.items()
    }
    samples = len(next(iter(inputs.values())))
    return entry.model_copy(
        update={"golden": Golden(file=golden, samples=samples, tolerances=tolerances, made_with=made_with)}
    )


_Vectors = tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[dict[str, np.ndarray]], str]


def _vectors(exported: Artifact, target: Target, source: Path, precision: str) -> _Vectors | None:
    """Inputs, answers, the same answers by other kernels, and who gave them; None where nobody here can."""
    with np.load(exported.file("golden.npz"), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    spec = _spec(exported)
    inputs = {one.name: arrays[one.name] for one in spec.inputs}
    environment = exported.manifest.environment
    made_with = f"{target.runtime} on {environment.get('platform', 'an unknown machine')}"
    if target.runtime in ("onnxruntime", "tensorrt"):
        version = environment.get("packages", {}).get("onnxruntime", "")
        made_with = f"onnxruntime {version} on {environment.get('platform', 'an unknown machine')}"
    if precision == "int8":
        outputs = {one.name: arrays[one.name] for one in spec.outputs}
    else:
        try:
            with target.reference(source) as runner:
                size = runner.inputs[0].shape[0]
                outputs = answers(runner, inputs, size if isinstance(size, int) else None)
        except BackendMissing:
            return None
    others = other_answers(source, inputs) if target.runtime == "onnxruntime" else []
    return inputs, outputs, others, made_with


def answers(runner: Any, inputs: Mapping[str, np.ndarray], batch: int | None) -> dict[str, np.ndarray]:
    """What a model gives to all samples, `batch` at a time; None for all at once."""
    count = len(next(iter(inputs.values())))
    step = batch or count
    found = [
        runner.run({name: value[at : at + step] for name, value in inputs.items()}) for at in range(0, count, step)
    ]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _spec(exported: Artifact) -> ModelSpec:
    if exported.manifest.spec is None:
        raise ArtifactError(f"{exported.path} does not say what its model takes. Run `edgekd export RECIPE` again.")
    return exported.manifest.spec


def _port(one: TensorSpec, spec: ModelSpec) -> Port:
    if one.dtype == "uint8":
        return Port(name=one.name, dtype=one.dtype, shape=one.shape, value_range=[0.0, 255.0], layout="NHWC")
    given = spec.preprocessing
    low, high = given.value_range
    ends = [(bound - mean) / std for bound in (low, high) for mean, std in zip(given.mean, given.std, strict=True)]
    bounds = [float(f"{min(ends):.6g}"), float(f"{max(ends):.6g}")]
    return Port(name=one.name, dtype=one.dtype, shape=one.shape, value_range=bounds, layout=given.layout)


def _opset(path: Path) -> int | None:
    if path.suffix != ".onnx":
        return None
    from edgekd.targets._modelfile import read_model

    model = read_model(path, external_data=False)
    return next((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), None)


def _lineage(report: Report, ids: Sequence[str]) -> list[LineageNote]:
    """The artifacts of these ids and all that they come from, the first ones first."""
    rows = {row.id: row for row in report.lineage}
    wanted, waiting = set(), list(ids)
    while waiting:
        if (one := waiting.pop()) not in wanted and one in rows:
            wanted.add(one)
            waiting += rows[one].parents
    return [
        LineageNote(stage=row.stage, kind=row.kind, id=row.id, parents=row.parents)
        for row in report.lineage
        if row.id in wanted
    ]


def _budgets(report: Report) -> list[BudgetNote]:
    chosen = report.recipe.get("bench", {})
    if not {"budget_ms", "percentile", "confidence"} <= chosen.keys():
        return []
    means = chosen.get("budget_is", "inference")
    values = {name: float(chosen[name]) for name in ("budget_ms", "percentile", "confidence")}
    return [BudgetNote(**values, means=means)]


def _licences(report: Report) -> Licences:
    stated = report.recipe.get("export", {}).get("licences") or {}
    return Licences(**{name: stated.get(name) for name in Licences.model_fields})


def _metrics(report: Report, targets: set[str]) -> dict[str, Any]:
    """The rows of report.json that are about what is in the bundle, or about no target at all."""
    rows: dict[str, Sequence[BaseModel]] = {
        "ladder": report.ladder,
        "paired": report.paired,
        "latency": report.latency,
        "int8_vs_float": report.int8_vs_float,
        "parity": report.parity,
    }
    return {
        name: [row.model_dump(mode="json") for row in found if getattr(row, "target", None) in (None, *targets)]
        for name, found in rows.items()
    }


def _about(report: Report, targets: set[str]) -> Report:
    """The report without the rows of targets that do not go in."""
    left_out = {row.target for row in report.ladder if row.target} - targets
    if not left_out:
        return report

    def kept(rows: Sequence[Any]) -> list[Any]:
        return [row for row in rows if row.target not in left_out]

    paired = [
        row for row in report.paired if not any(name.endswith(f" {one}") for one in left_out for name in (row.a, row.b))
    ]
    return report.model_copy(
        update={
            "ladder": kept(report.ladder),
            "latency": kept(report.latency),
            "int8_vs_float": kept(report.int8_vs_float),
            "parity": kept(report.parity),
            "paired": paired,
        }
    )
