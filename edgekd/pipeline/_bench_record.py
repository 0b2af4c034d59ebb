"""The plain values of bench.json: latencies, cold starts, operators, and whether int8 was worth it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd._node_names import float_times
from edgekd._placement_gate import costly_operators, runs_int8, worth_of
from edgekd._sustained import invalid_reason, trip_of
from edgekd.devices._place import Cold, Measured, NodePlacement
from edgekd.measure import Latency, Protocol, compare, latency_of
from edgekd.pipeline._bench_models import FLOAT16, FLOAT32, INT8, PlacedModel
from edgekd.pipeline._bench_state import Bench, protocol_of
from edgekd.targets._profile import OperatorTime, slow_operators

__all__ = ["cold_record", "steady_record", "worth_record"]


def steady_record(bench: Bench, measured: Measured) -> dict[str, Any]:
    protocol = protocol_of(bench.chosen)
    latencies = {rung: _latency(measured, rung, protocol) for rung in measured.models}
    operators = {rung: _operators(nodes) for rung, nodes in bench.nodes.items()}
    return {
        "target": bench.target,
        "device": bench.place.name,
        "runtime": bench.about.runtime,
        "threads": bench.threads,
        "batch": bench.chosen.batch,
        "budget_is": bench.chosen.budget_is,
        "latency": {rung: latency.model_dump() for rung, latency in latencies.items()},
        "ratio": _ratio(latencies, FLOAT32),
        "operators": {rung: [vars(one) for one in times] for rung, times in operators.items()},
        "slow_ops": slow_operators(operators.get(INT8, [])),
        "sizes": {rung: one.size_bytes for rung, one in bench.models.items()},
        "fingerprint": bench.about.model_dump(),
        "about": bench.about.model_dump(),
        "cores": measured.cores,
        "readings": [one.model_dump() for one in measured.readings],
        "invalid": invalid_reason(measured.readings, cores=measured.cores, trip_c=trip_of(bench.about.details)),
    }


def _latency(measured: Measured, rung: str, protocol: Protocol) -> Latency:
    timed = measured.models[rung]
    return latency_of(
        timed.samples_ms,
        protocol=protocol,
        started_ms=timed.started_ms,
        warmup=timed.warmup,
        steady=timed.steady,
        provider_requested=timed.provider_requested,
        provider_used=timed.provider_used,
    )


def _ratio(latencies: Mapping[str, Latency], reference: str) -> dict[str, Any] | None:
    if not {reference, INT8} <= set(latencies):
        return None
    return compare(latencies[reference].samples_ms, latencies[INT8].samples_ms).model_dump()


def _operators(nodes: Sequence[NodePlacement]) -> list[OperatorTime]:
    total = sum(node.mean_us for node in nodes) or 1.0
    times = [
        OperatorTime(
            name=node.node,
            op=node.op,
            provider=node.provider,
            mean_us=node.mean_us,
            share=node.mean_us / total,
            int8=runs_int8(node),
        )
        for node in nodes
    ]
    return sorted(times, key=lambda one: -one.mean_us)


def cold_record(bench: Bench, model: PlacedModel) -> dict[str, Any]:
    """Medians over new processes."""
    repeats = bench.chosen.cold_repeats
    found: list[Cold] = bench.place.cold(model.name, bench.feeds, session=bench.session(), repeats=repeats)
    return {
        "process_ms": statistics.median(one.process_ms for one in found),
        "load_ms": statistics.median(one.load_ms for one in found),
        "first_ms": statistics.median(one.first_ms for one in found),
        "cold_ms": statistics.median(one.load_ms + one.first_ms for one in found),
        "total_ms": statistics.median(one.process_ms + one.load_ms + one.first_ms for one in found),
        "peak_bytes": int(statistics.median(one.peak_bytes for one in found)),
        "baseline_bytes": int(statistics.median(one.baseline_bytes for one in found)),
        "model_bytes": int(statistics.median(one.peak_bytes - one.baseline_bytes for one in found)),
        "repeats": len(found),
    }


def worth_record(bench: Bench, measured: Measured) -> list[dict[str, Any]]:
    if INT8 not in bench.models or bench.about.emulated:
        return []
    samples = {rung: timed.samples_ms for rung, timed in measured.models.items()}
    ratios = {rung: compare(samples[rung], samples[INT8]) for rung in (FLOAT32, FLOAT16) if rung in samples}
    before = {}
    if FLOAT32 in bench.models:
        files = bench.models[INT8].nodes(), bench.models[FLOAT32].nodes()
        before = float_times(bench.nodes[INT8], bench.nodes[FLOAT32], *files)
    operators = costly_operators(bench.nodes[INT8], before)
    row = worth_of(ratios.get(FLOAT32), ratios.get(FLOAT16), operators, target=bench.target, device=bench.place.name)
    return [] if row is None else [row.model_dump()]
