"""Latency of any ONNX file, ours or not."""

from __future__ import annotations

import datetime
from pathlib import Path

import edgekd
from edgekd.catalog import CATALOGS
from edgekd.pipeline._bench_rows import latency_rows, mobile_rows, operator_rows
from edgekd.pipeline._reporting import verdict_of
from edgekd.pipeline._run import Silent, Watcher, environment
from edgekd.pipeline._shipping import bench_files
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
    name = "onnx_int8" if quantized else "onnx_float"
    member = CATALOGS["devices"].load(settings.device).member
    device = member(member.Options())
    record = bench_files(settings, runtime, {name: model}, feeds, device=device, watcher=watcher or Silent())
    report = Report(
        name=model.name,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        edgekd_version=edgekd.__version__,
        recipe={"bench": settings.model_dump(mode="json")},
        latency=latency_rows(target, record),
        latency_samples={name: record["latency"][name]["samples_ms"]},
        fusion=[fusion_of(runtime.audit(model))] if quantized and not runtime.missing() else [],
        mobile=mobile_rows(target, record),
        operators=operator_rows(target, record),
        environment=environment(),
        notes=["Inputs were random: the latency holds, an accuracy is not measured."],
    )
    return report.model_copy(update={"verdict": verdict_of(settings, report, {target: record}, rung=name)})
