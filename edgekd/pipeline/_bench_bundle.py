"""Latency of a bundle's models on a device, with its golden vectors replayed there first."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import edgekd
from edgekd._bundle_golden import read_golden
from edgekd._bundle_replay import runs_there
from edgekd._report_device_model import GoldenRow
from edgekd.bundle import Bundle, ModelEntry, Replay, open_bundle, replay
from edgekd.catalog import CATALOGS
from edgekd.devices._base import open_place
from edgekd.devices._place import About, Place
from edgekd.errors import BackendMissing, UsageError
from edgekd.pipeline._bench_models import FLOAT32, INT8, PlacedModel
from edgekd.pipeline._bench_place import bench_on
from edgekd.pipeline._bench_rows import bench_fields, bench_notes
from edgekd.pipeline._verdict import verdict_of
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.recipe import BenchSettings
from edgekd.report import Fusion, Report, fusion_of
from edgekd.spec import TensorSpec
from edgekd.targets._base import Target
from edgekd.targets._modelfile import example_feeds

__all__ = ["bench_bundle", "bench_bundle_on", "chosen_models"]

_BY_MACHINE = {"x86_64": "onnxruntime_x86", "amd64": "onnxruntime_x86", "aarch64": "onnxruntime_arm"}
_RUNGS = (FLOAT32, INT8)


def bench_bundle(path: Path, settings: BenchSettings, *, watcher: Watcher | None = None) -> Report:
    """Open a bundle and measure it on the device of the settings; the bundle's budget holds where they have none.

    Args:
        path: its folder, or its .zip.
        settings: protocol and budget; what was not set explicitly is taken from the bundle.
        watcher: told about progress.

    Raises:
        ArtifactError: the bundle is damaged or unsafe.
        EdgeKDError: see `bench_bundle_on`, and `open_place`.
    """
    with open_bundle(path) as bundle:
        asked = _with_budget(settings, bundle)
        with open_place(asked.device, asked.device_options) as place:
            return bench_bundle_on(bundle, place, asked, watcher=watcher)


def bench_bundle_on(bundle: Bundle, place: Place, settings: BenchSettings, *, watcher: Watcher | None = None) -> Report:
    """Measure a bundle's int8 and float files against each other on a device.

    Args:
        bundle: open and checked.
        place: an open connection to the device.
        settings: protocol and budget.
        watcher: told about progress.

    Raises:
        BackendMissing: no model of the bundle runs there, or the device is lost.
        UsageError: settings that the device or the model cannot follow.
        ModelFileError: its runtime refuses a model.
    """
    watcher = watcher or Silent()
    about = place.about()
    entries, notes = chosen_models(bundle, about, place.name)
    target = next((one.target for one in entries if one.rung == INT8), entries[0].target)
    models = [PlacedModel(one.rung, target, one.file, bundle.files_for(one)) for one in entries]
    feeds = _feeds(bundle, entries[0], settings.batch)
    answers = replay(bundle, place, threads=1)
    record = bench_on(
        place,
        models,
        feeds,
        settings,
        preprocessing=bundle.manifest.preprocessing,
        takes_images=entries[0].preprocessing_inside,
        watcher=watcher,
    )
    report = Report(
        name=bundle.manifest.name,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        edgekd_version=edgekd.__version__,
        recipe={"bench": settings.model_dump(mode="json")},
        fusion=_fusion(bundle, entries),
        golden=_golden_rows(answers, {one.file for one in entries}),
        environment={"bundle": {"id": bundle.manifest.id, "edgekd": bundle.manifest.edgekd_version}},
        notes=[*notes, *bench_notes(record)],
        **bench_fields({target: record}),
    )
    rung = INT8 if any(one.rung == INT8 for one in entries) else entries[0].rung
    return report.model_copy(update={"verdict": verdict_of(settings, report, rung=rung)})


def _with_budget(settings: BenchSettings, bundle: Bundle) -> BenchSettings:
    """The settings, with the bundle's first budget for what nobody set."""
    if not bundle.manifest.budgets:
        return settings
    note = bundle.manifest.budgets[0]
    told = {
        "budget_ms": note.budget_ms,
        "percentile": note.percentile,
        "confidence": note.confidence,
        "budget_is": note.means,
    }
    return settings.model_copy(
        update={key: value for key, value in told.items() if key not in settings.model_fields_set}
    )


def chosen_models(bundle: Bundle, about: About, device: str) -> tuple[list[ModelEntry], list[str]]:
    """The models of one target that run on a device, the float one first, and notes about the choice.

    The target is that of the device's processor; where the bundle has none, the first whose models run there.

    Raises:
        BackendMissing: none runs there.
    """
    running = [one for one in bundle.manifest.models if runs_there(one, about) is None]
    if not running:
        told = "; ".join(f"{one.file}: {runs_there(one, about)}" for one in bundle.manifest.models)
        raise BackendMissing(f"No model of {bundle.path} runs on {device}: {told}. Pack it with a target for it.")
    targets = list(dict.fromkeys(one.target for one in running))
    wanted = _BY_MACHINE.get(about.machine.lower())
    target = wanted if wanted in targets else targets[0]
    notes = []
    if target != wanted:
        notes.append(f"The bundle has no model made for {about.machine}: that of {target} was measured on {device}.")
    entries = [found[0] for rung in _RUNGS if (found := _of(running, target, rung))]
    return entries or [next(one for one in running if one.target == target)], notes


def _of(running: Sequence[ModelEntry], target: str, rung: str) -> list[ModelEntry]:
    """A target's models of a rung; a float file may stand in the bundle once for several targets of a runtime."""
    own = [one for one in running if one.target == target and one.rung == rung]
    runtime = next(one.runtime for one in running if one.target == target)
    return own or [one for one in running if rung == FLOAT32 and one.rung == rung and one.runtime == runtime]


def _feeds(bundle: Bundle, entry: ModelEntry, batch: int) -> Mapping[str, np.ndarray]:
    """The first golden inputs, repeated to the batch; made-up ones where the bundle has none."""
    sizes = {port.shape[0] for port in entry.inputs if port.shape and isinstance(port.shape[0], int)}
    if any(size != batch for size in sizes):
        raise UsageError(f"{entry.file} takes a batch of {sizes.pop()}, bench.batch is {batch}. Set it to the model's.")
    if entry.golden is None:
        specs = [TensorSpec(name=port.name, dtype=port.dtype, shape=port.shape) for port in entry.inputs]
        return example_feeds(specs, batch=batch, seed=0)
    inputs, _ = read_golden(bundle.file(entry.golden.file), entry)
    return {name: np.resize(value, (batch, *value.shape[1:])) for name, value in inputs.items()}


def _fusion(bundle: Bundle, entries: Sequence[ModelEntry]) -> list[Fusion]:
    """What of the int8 file runs as int8, by the target's own audit, which runs on this machine."""
    rows = []
    for entry in entries:
        if entry.precision != "int8":
            continue
        target: Target = CATALOGS["targets"].load(entry.target).member()
        if target.missing() is None:
            rows.append(fusion_of(target.audit(bundle.file(entry.file))))
    return rows


def _golden_rows(answers: Replay, files: set[str]) -> list[GoldenRow]:
    rows = []
    problems = answers.problems()
    for model in answers.models:
        if model.left_out is not None or model.file not in files:
            continue
        errors = [one.max_abs_error for one in model.outputs]
        wrong = [line for line in problems if line.startswith(f"{model.file}: ")]
        same = min((one.same_top1 for one in model.outputs), default=0)
        rows.append(
            GoldenRow(
                file=model.file,
                rung=model.rung,
                target=model.target,
                device=answers.device,
                samples=model.samples,
                max_abs_error=None if None in errors else max((one for one in errors if one is not None), default=0.0),
                passed=not wrong,
                reason=" ".join(wrong)
                or f"{model.file}: {model.samples} golden samples within their tolerance on {answers.device}, top-1"
                f" equal for {same}.",
            )
        )
    return rows
