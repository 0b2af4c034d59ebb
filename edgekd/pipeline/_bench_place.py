"""Measure models on a device by one protocol: placement, cold start, steady state in turns, end to end, sustained.

What comes back are the plain values of bench.json; `_bench_rows` makes the report's rows of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd._node_names import meant_int8
from edgekd._placement_gate import placement_of
from edgekd._report_device_model import PlacementRow
from edgekd.devices._place import TENSORRT, About, Measured, NodePlacement, Place
from edgekd.errors import GateFailed, ModelFileError, UsageError
from edgekd.pipeline._bench_models import FLOAT16, FLOAT32, INT8, PlacedModel, computes_in_float16, float16_twin
from edgekd.pipeline._bench_record import cold_record, steady_record, worth_record
from edgekd.pipeline._bench_stages import end_to_end, energy, sustained, sweep
from edgekd.pipeline._bench_state import Bench
from edgekd.pipeline._watcher import Watcher
from edgekd.recipe import BenchSettings
from edgekd.spec import Preprocessing
from edgekd.targets._base import Target

__all__ = ["bench_on", "takes_place", "unfit"]

_PLACEMENT_RUNS = 30
_EMULATED_RUNS = 3


def takes_place(chosen: BenchSettings, target: Target) -> bool:
    """Whether a target's files are measured over a connection: everything that ONNX Runtime runs.

    Raises:
        UsageError: another runtime's files cannot be measured anywhere but in this process.
    """
    if target.runtime == "onnxruntime":
        return True
    if chosen.device != "cpu":
        raise UsageError(
            f"Target '{target.name}' runs in {target.runtime}, which is measured on this machine only. Set"
            " bench.device = 'cpu', or choose a target of ONNX Runtime."
        )
    return False


def unfit(target: Target, about: About, device: str) -> str | None:
    """Why latency on a device would say nothing about a target, to follow "it"; None if it would."""
    machines: Sequence[str] = getattr(target, "machines", ())
    if not machines or about.machine.lower() in {one.lower() for one in machines}:
        return None
    return f"is for {machines[0]} processors; {device} is {about.machine}"


def bench_on(
    place: Place,
    models: Sequence[PlacedModel],
    feeds: Mapping[str, np.ndarray],
    chosen: BenchSettings,
    *,
    preprocessing: Preprocessing | None,
    takes_images: bool = False,
    watcher: Watcher,
) -> dict[str, Any]:
    """Measure models of one student against each other on a device; plain values for bench.json.

    Args:
        place: open.
        models: each of another rung; a float16 twin of the float32 file is added where the runtime has its kernels.
        feeds: inputs by name, the same for all.
        chosen: protocol and budget.
        preprocessing: from an image to the input; None where it is not known, and then nothing is timed end to end.
        takes_images: the models take uint8 images themselves.
        watcher: told about progress.

    Raises:
        UsageError: more threads or other cores than the device has, or an end-to-end budget without preprocessing.
        BackendMissing, ModelFileError, StorageError, MismatchError: see `Place`.
    """
    about = place.about()
    threads = 1 if chosen.profile == "mobile" else chosen.threads
    _check(chosen, about, place.name, threads, has_preprocessing=preprocessing is not None)
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        bench = Bench(place, about, chosen, {one.rung: one for one in models}, feeds, watcher, threads)
        place.put({name: path for one in models for name, path in one.files.items()})
        for rung, model in bench.models.items():
            bench.nodes[rung] = _nodes(bench, model)
        _add_float16(bench, Path(folder))
        rows = {"placement": [row.model_dump() for row in _placements(bench)]}
        measured = _timed(bench)
        record = steady_record(bench, measured)
        record["cold"] = _cold(bench)
        names = {rung: one.name for rung, one in bench.models.items()}
        gated = INT8 if INT8 in names else next(iter(names))
        if preprocessing is not None:
            record["end_to_end"] = end_to_end(
                place, names, chosen, bench.session(), bench.timing(), preprocessing=preprocessing, inside=takes_images
            )
        record["sweep"] = sweep(place, names, feeds, chosen, bench.session, bench.timing(), about=about)
        rows |= _long_runs(bench, measured, names, gated)
        record["rows"] = rows | {"worth": worth_record(bench, measured)}
        record["notes"] = bench.notes
    return record


def _cold(bench: Bench) -> dict[str, Any]:
    if bench.session().provider == TENSORRT:
        bench.notes.append(
            f"{bench.place.name}: no cold start was measured: it is that of a process with ONNX Runtime, and an engine"
            " of TensorRT needs none."
        )
        return {}
    return {rung: cold_record(bench, one) for rung, one in bench.models.items()}


def _long_runs(bench: Bench, steady: Measured, names: Mapping[str, str], gated: str) -> dict[str, Any]:
    """The sustained run of one model, and the energy of all: of that one over that run."""
    shared = (bench.feeds, bench.chosen, bench.session(), bench.timing())
    rows = sustained(bench.place, names[gated], *shared, rung=gated, target=bench.target, about=bench.about)
    others = {rung: name for rung, name in names.items() if not (rows["energy"] and rung == gated)}
    rows["energy"] += energy(bench.place, others, *shared, steady, target=bench.target)
    return rows


def _check(chosen: BenchSettings, about: About, device: str, threads: int, *, has_preprocessing: bool) -> None:
    most = about.cores
    wanted = max([threads, *chosen.sweep_threads])
    if most is not None and wanted > most:
        key = "bench.threads" if wanted == threads else "bench.sweep_threads"
        raise UsageError(f"{key} asks for {wanted} threads; {device} has {most} cores that may be used. Ask for fewer.")
    if chosen.cores and len(chosen.cores) < threads:
        raise UsageError(
            f"bench.cores names {len(chosen.cores)} cores for {threads} threads. Name as many, or lower bench.threads."
        )
    if chosen.budget_is == "end_to_end" and not has_preprocessing:
        raise UsageError(
            "bench.budget_is is 'end_to_end', but the preprocessing is not known: an ONNX file alone does not tell it."
            " Measure a bundle or a recipe, or hold the inference against the budget."
        )


def _nodes(bench: Bench, model: PlacedModel) -> list[NodePlacement]:
    runs = _EMULATED_RUNS if bench.about.emulated else _PLACEMENT_RUNS
    return bench.place.placement(model.name, bench.feeds, session=bench.session(), runs=runs)


def _add_float16(bench: Bench, folder: Path) -> None:
    """A float16 file of the same student, where the device's runtime computes in float16."""
    if FLOAT32 not in bench.models or INT8 not in bench.models:
        return
    twin = float16_twin(bench.models[FLOAT32], folder)
    if isinstance(twin, str):
        bench.notes.append(twin)
        return
    try:
        bench.place.put(twin.files)
        nodes = _nodes(bench, twin)
    except ModelFileError as error:
        bench.notes.append(f"float16 was not measured: {error}")
        return
    if not computes_in_float16(nodes):
        bench.notes.append(
            f"float16 was not measured: the runtime of {bench.place.name} has no float16 kernels for this model and"
            " would compute in float32."
        )
        return
    bench.models[FLOAT16], bench.nodes[FLOAT16] = twin, nodes


def _placements(bench: Bench) -> list[PlacementRow]:
    rows = []
    for rung, model in bench.models.items():
        file = model.nodes()
        rows.append(
            placement_of(
                bench.nodes[rung],
                rung=rung,
                target=model.target,
                device=bench.place.name,
                requested=bench.session().provider,
                meant_int8=meant_int8(bench.nodes[rung], file) if file.has_quantizers else None,
                # float16 is only reported
                allowed=bench.chosen.allow_fallback or rung == FLOAT16,
            )
        )
    return rows


def _timed(bench: Bench) -> Measured:
    measured = bench.place.measure(
        {rung: one.name for rung, one in bench.models.items()},
        bench.feeds,
        session=bench.session(),
        timing=bench.timing(),
        progress=lambda done, total: bench.watcher.progress(done, total, f"timing on {bench.place.name}"),
    )
    for rung, timed in measured.models.items():
        if timed.provider_used != timed.provider_requested:
            raise GateFailed(
                f"'{rung}' was to run on {timed.provider_requested} and runs on {timed.provider_used} on"
                f" {bench.place.name}; its time would be another's. Repair that provider or ask for the one that runs."
            )
    return measured
