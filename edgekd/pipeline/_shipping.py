"""The stages that ship: export for a target with parity and audit, then latency on a device."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.artifact import Artifact, Draft
from edgekd.batches import evaluation_batches
from edgekd.devices._base import Device, open_place
from edgekd.errors import BackendMissing
from edgekd.evaluate import parity, predict_runner
from edgekd.export import INPUT, golden_vectors, metadata
from edgekd.measure import Measurement, Protocol, measure
from edgekd.pipeline._bench_models import FLOAT32, INT8, placed_file
from edgekd.pipeline._bench_place import bench_on, takes_place, unfit
from edgekd.pipeline._by_choice import chosen_groups, without_chosen
from edgekd.pipeline._inside import put_inside, seen, shipped_spec, taken
from edgekd.pipeline._quantize_plan import plan_of, program_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import as_json, example_inputs, network_of, predictions_of
from edgekd.pipeline._watcher import Watcher
from edgekd.recipe import BenchSettings
from edgekd.report import Fusion, fusion_of
from edgekd.spec import Runner
from edgekd.targets._base import Target
from edgekd.targets._profile import slow_operators

__all__ = ["FLOAT_STEM", "INT8_STEM", "bench_files", "bench_stage", "export_stage"]

INT8_STEM, FLOAT_STEM = "model", "model_float"
"""Names of a target's files; each ends with the target's own suffix."""
_GOLDEN = 4


def export_stage(run: Run, target_name: str, student: Artifact, quantized: Artifact) -> Artifact:
    """The files of one target: int8 and float ONNX, golden vectors, engines; with parity and audit."""
    target = run.target(target_name)
    chosen = run.recipe.export
    engine = chosen.tensorrt.engine if target_name == "tensorrt" else "off"
    # a run that could not build the engine must build it once the library is there
    missing = target.missing() if engine != "off" else None
    settings = {
        "target": target_name,
        "opset": chosen.opset,
        "tensorrt": chosen.tensorrt.model_dump(mode="json") if target_name == "tensorrt" else None,
        "engines": missing is None,
    }
    if chosen.preprocessing != "outside":  # named only where it is not the default: older artifacts keep their keys
        settings["preprocessing"] = chosen.preprocessing

    def make(draft: Draft, checkpoint: Path) -> None:
        if missing is not None and engine == "required":
            raise BackendMissing(missing)
        _write_models(run, target, draft, student, quantized)
        _check_models(run, target, draft, student, quantized)
        audited = (
            None
            if target.missing()
            else _audited(run, target, draft.folder / _name(target, INT8_STEM), student, quantized)
        )
        draft.metrics["audit"] = None if audited is None else audited.model_dump(mode="json")
        draft.metrics["engines"] = _engines(run, target, draft.folder, missing) if engine != "off" else []

    parents = {"student": student, "quantized": quantized}
    return run.stage(f"export-{target_name}", kind="exported", settings=settings, parents=parents, make=make)


def bench_stage(run: Run, target_name: str, exported: Artifact) -> Artifact | None:
    """Latency of a target's float and int8 files on the recipe's device; None where it would say nothing."""
    target = run.target(target_name)
    chosen = run.recipe.bench
    placed = takes_place(chosen, target)
    if not placed and (reason := target.absent_here()) is not None:
        run.watcher.message(f"Target '{target_name}' is not measured here: it {reason}.")
        return None
    settings = {"target": target_name, **chosen.model_dump(mode="json"), "machine": platform.node()}
    name, parents = f"bench-{target_name}", {"exported": exported}
    if placed and not run.open_only and not run.is_there(name, "bench", settings, parents):
        return _bench_on_place(run, target, exported, name, settings)

    def make(draft: Draft, checkpoint: Path) -> None:
        files = {FLOAT32: exported.file(_name(target, FLOAT_STEM)), INT8: exported.file(_name(target, INT8_STEM))}
        feeds = {INPUT: taken(run, example_inputs(run, chosen.batch).numpy())}
        device = run.member("devices", chosen.device)
        record = bench_files(chosen, target, files, feeds, device=device, watcher=run.watcher)
        (draft.folder / "bench.json").write_text(as_json(record), encoding="utf-8")

    return run.stage(name, kind="bench", settings=settings, parents=parents, make=make)


def _bench_on_place(
    run: Run, target: Target, exported: Artifact, name: str, settings: Mapping[str, Any]
) -> Artifact | None:
    """The same over a connection; None where the device's processor is another than the target's."""
    chosen = run.recipe.bench
    with open_place(chosen.device, chosen.device_options) as place:
        if (reason := unfit(target, place.about(), place.name)) is not None:
            run.watcher.message(f"Target '{target.name}' is not measured on {place.name}: it {reason}.")
            return None

        def make(draft: Draft, checkpoint: Path) -> None:
            models = [
                placed_file(rung, target.name, exported.file(_name(target, stem)))
                for rung, stem in ((FLOAT32, FLOAT_STEM), (INT8, INT8_STEM))
            ]
            record = bench_on(
                place,
                models,
                {INPUT: taken(run, example_inputs(run, chosen.batch).numpy())},
                chosen,
                preprocessing=run.spec.preprocessing,
                takes_images=run.recipe.export.preprocessing == "inside",
                watcher=run.watcher,
            )
            (draft.folder / "bench.json").write_text(as_json(record), encoding="utf-8")

        return run.stage(name, kind="bench", settings=settings, parents={"exported": exported}, make=make)


def bench_files(
    chosen: BenchSettings,
    target: Target,
    files: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    device: Device,
    watcher: Watcher,
) -> dict[str, Any]:
    """Measure files that ONNX Runtime does not run against each other, by rung; plain values for bench.json."""
    threads = 1 if chosen.profile == "mobile" else chosen.threads
    protocol = Protocol(
        budget_ms=chosen.budget_ms,
        percentile=chosen.percentile,
        confidence=chosen.confidence,
        queries=chosen.queries,
        max_seconds=chosen.max_seconds,
    )
    with device.pinned(threads) as cores:
        runners = {rung: target.runner(path, threads=threads) for rung, path in files.items()}
        try:
            measured = measure(
                runners,
                feeds,
                protocol=protocol,
                progress=lambda done, total: watcher.progress(done, total, "timing"),
            )
        finally:
            for runner in runners.values():
                runner.__exit__(None, None, None)
        operators = {rung: target.operator_times(path, feeds, runs=30, threads=threads) for rung, path in files.items()}
    return {
        "target": target.name,
        "device": target.runs_on or chosen.device,
        "runtime": target.runtime,
        "threads": threads,
        "batch": chosen.batch,
        "latency": {rung: latency.model_dump() for rung, latency in measured.latencies.items()},
        "ratio": _ratio(measured),
        "cold": {},  # it is measured where ONNX Runtime runs the files
        "operators": {rung: [asdict(one) for one in times] for rung, times in operators.items()},
        "slow_ops": slow_operators(operators.get("onnx_int8", [])),
        "sizes": {rung: path.stat().st_size for rung, path in files.items()},
        "fingerprint": device.fingerprint(),
        "cores": cores,
    }


def _ratio(measured: Measurement) -> dict[str, Any] | None:
    if not {"onnx_float", "onnx_int8"} <= set(measured.latencies):
        return None
    return measured.ratio("onnx_float", "onnx_int8").model_dump()


def _write_models(run: Run, target: Target, draft: Draft, student: Artifact, quantized: Artifact) -> None:
    ids = {"student_id": student.id, "quantized_id": quantized.id, "target": target.name, "recipe": run.recipe.name}
    example = example_inputs(run, 2)
    programs: dict[str, tuple[nn.Module, bool]] = {
        FLOAT_STEM: (network_of(run, run.recipe.student, student), False),
        INT8_STEM: (program_of(run, quantized, student), True),
    }
    for name, (program, int8) in programs.items():
        notes = metadata(run.spec, {**ids, "precision": "int8" if int8 else "float32"})
        path = draft.folder / _name(target, name)
        target.write(program, example, path, int8=int8, metadata=notes, opset=run.recipe.export.opset)
        if (row := put_inside(run, target, path)) is not None:
            draft.metrics.setdefault("preprocessing", []).append(row)
    draft.spec = shipped_spec(run)
    (draft.folder / "spec.json").write_text(draft.spec.model_dump_json(indent=1), encoding="utf-8")


def _check_models(run: Run, target: Target, draft: Draft, student: Artifact, quantized: Artifact) -> None:
    """Run both files over the whole test split; keep their logits, their parity and golden vectors."""
    rows = []
    for stem, parent in ((FLOAT_STEM, student), (INT8_STEM, quantized)):
        name = _name(target, stem)
        with target.reference(draft.folder / name, threads=torch.get_num_threads()) as runner:
            found = predict_runner(runner, seen(run, evaluation_batches(run.data.test, run.data.preprocessing)))
            if stem == INT8_STEM:
                _golden(run, runner, draft.folder / "golden.npz")
        np.savez_compressed(_predictions_file(draft.folder, name), logits=found.logits, labels=found.labels)
        expected = predictions_of(parent)
        rows.append({"target": target.name, "file": name, **parity(expected.logits, found.logits).model_dump()})
    draft.metrics["parity"] = rows


def _audited(run: Run, target: Target, path: Path, student: Artifact, quantized: Artifact) -> Fusion:
    """The int8 file's audit, without the layers that were left in float on purpose."""
    fusion = fusion_of(target.audit(path))
    chosen = chosen_groups(run, plan_of(quantized), student)
    return without_chosen(fusion, chosen, program_of(run, quantized, student), path) if chosen else fusion


def _name(target: Target, stem: str) -> str:
    return f"{stem}{target.suffix}"


def _golden(run: Run, runner: Runner, path: Path) -> None:
    """Inputs and the answers that the shipped file gives to them, in pieces as large as the file takes."""
    ids = torch.arange(min(_GOLDEN, len(run.data.train)))
    batches = seen(run, evaluation_batches(run.data.train, run.data.preprocessing, ids=ids))
    golden_vectors(taken(run, example_inputs(run, _GOLDEN).numpy()), predict_runner(runner, batches).logits, path)


def _predictions_file(folder: Path, model: str) -> Path:
    return folder / predictions_name(model)


def predictions_name(model: str) -> str:
    """The file that keeps the test logits of an exported model file."""
    return f"predictions_{Path(model).stem}.npz"


def _engines(run: Run, target: Target, folder: Path, missing: str | None) -> list[dict[str, Any]]:
    if missing is not None:
        run.watcher.message(f"No engine was built: {missing}")
        return [
            {"path": "", "library": "tensorrt", "version": "", "target": target.name, "status": f"not built: {missing}"}
        ]
    records = []
    for name in (INT8_STEM, FLOAT_STEM):
        for built in target.build(folder / _name(target, name), settings=run.recipe.export):
            records.append(
                {
                    "path": built.path.relative_to(folder).as_posix(),
                    "library": str(built.fingerprint["library"]),
                    "version": str(built.fingerprint["version"]),
                    "compute_capability": str(built.fingerprint["compute_capability"]),
                    "size_bytes": built.path.stat().st_size,
                    "target": target.name,
                    "status": "built",
                    "precision": "int8 and float16" if name == INT8_STEM else "float32",
                }
            )
    return records


def pieces(record: Artifact) -> dict[str, Any]:
    """The plain values of a bench artifact."""
    values: dict[str, Any] = json.loads(record.file("bench.json").read_bytes())
    return values
