"""Latency of any ONNX file, ours or not."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import edgekd
from edgekd.catalog import CATALOGS
from edgekd.devices._base import open_place
from edgekd.errors import BackendMissing
from edgekd.pipeline._bench_models import FLOAT32, INT8, placed_file
from edgekd.pipeline._bench_place import bench_on, takes_place, unfit
from edgekd.pipeline._bench_rows import bench_fields, bench_notes
from edgekd.pipeline._run import environment
from edgekd.pipeline._shipping import bench_files
from edgekd.pipeline._verdict import verdict_of
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.recipe import BenchSettings
from edgekd.report import Report, fusion_of
from edgekd.targets._base import Target
from edgekd.targets._modelfile import example_feeds, model_inputs, read_model

__all__ = ["bench_file"]


def bench_file(
    model: Path, settings: BenchSettings, *, target: str = "onnxruntime_x86", watcher: Watcher | None = None
) -> Report:
    """Measure an ONNX file by the recipe's protocol, with inputs made from its interface.

    Args:
        model: the file; its weights may lie beside it.
        settings: protocol and budget.
        target: what the file is for.
        watcher: told about progress.

    Raises:
        ModelFileError: corrupt or unsafe, or with inputs that cannot be made.
        BackendMissing: the target's runtime or hardware is not here.
    """
    runtime: Target = CATALOGS["targets"].load(target).member()
    if model.suffix == ".onnx":
        inputs = model_inputs(read_model(model))
    else:
        with runtime.runner(model, threads=settings.threads) as runner:
            inputs = runner.inputs
    feeds = example_feeds(inputs, batch=settings.batch, seed=0)
    quantized = runtime.is_int8(model)
    name = INT8 if quantized else FLOAT32
    record = _record(model, settings, runtime, name, feeds, watcher or Silent())
    report = Report(
        name=model.name,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        edgekd_version=edgekd.__version__,
        recipe={"bench": settings.model_dump(mode="json")},
        fusion=[fusion_of(runtime.audit(model))] if quantized and not runtime.missing() else [],
        environment=environment(),
        notes=["Inputs were random: the latency holds, an accuracy is not measured.", *bench_notes(record)],
        **bench_fields({target: record}),
    )
    return report.model_copy(update={"verdict": verdict_of(settings, report, rung=name)})


def _record(
    model: Path, settings: BenchSettings, target: Target, rung: str, feeds: dict[str, Any], watcher: Watcher
) -> dict[str, Any]:
    if not takes_place(settings, target):
        member = CATALOGS["devices"].load(settings.device).member
        return bench_files(settings, target, {rung: model}, feeds, device=member(member.Options()), watcher=watcher)
    placed = placed_file(rung, target.name, model)
    with open_place(settings.device, settings.device_options) as place:
        about = place.about()
        # a file of unknown origin is measured here whatever it is for; on a device that was asked for by name it counts
        if settings.device != "cpu" and (reason := unfit(target, about, place.name)) is not None:
            raise BackendMissing(f"{model} is not measured: target '{target.name}' {reason}. Give --target.")
        return bench_on(place, [placed], feeds, settings, preprocessing=None, watcher=watcher)
