"""The report's rows of one bench record: latency, int8 against float, cold start and memory, operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd._device_rows import cold_rows, device_rows, end_to_end_rows, plain_rows
from edgekd.measure import Latency as Measured
from edgekd.report import Int8VsFloat, Latency, Mobile, Operator

__all__ = ["bench_fields", "bench_notes"]


def bench_fields(benches: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The fields of a report that bench records give.

    Args:
        benches: the plain values of bench.json, by target.
    """
    several = len(benches) > 1
    fields: dict[str, Any] = {"latency": [], "latency_samples": {}, "int8_vs_float": [], "mobile": [], "operators": []}
    for target, bench in benches.items():
        label = f" {target}" if several else ""
        fields["latency"] += _latency_rows(target, bench, label)
        fields["int8_vs_float"] += _int8_vs_float_rows(target, bench)
        fields["mobile"] += _mobile_rows(target, bench)
        fields["operators"] += _operator_rows(target, bench)
        fields["latency_samples"] |= {
            f"{rung}{label}": values["samples_ms"] for rung, values in bench["latency"].items()
        }
        for count, swept in bench.get("sweep", {}).items():
            fields["latency_samples"] |= {
                _swept(rung, label, count): values["samples_ms"] for rung, values in swept["latency"].items()
            }
        rows, samples = end_to_end_rows(target, bench, label)
        fields["latency_samples"] |= samples
        found: dict[str, list[Any]] = {
            "devices": list(device_rows(bench)),
            "cold": list(cold_rows(target, bench)),
            "end_to_end": list(rows),
            **plain_rows(bench),
        }
        for name, more in found.items():
            fields.setdefault(name, [])
            # two targets on one device are one device
            fields[name] += [row for row in more if row not in fields[name]]
    return fields


def bench_notes(bench: dict[str, Any]) -> list[str]:
    """What a reader must know before using a record's numbers."""
    notes = list(bench.get("notes", []))
    if (bench.get("about") or {}).get("emulated"):
        notes.append(f"{bench['device']} is emulated: its answers count, its times are no latency.")
    return notes


def _swept(rung: str, label: str, count: str) -> str:
    return f"{rung}{label}, {count} threads"


def _latency_rows(target: str, bench: dict[str, Any], label: str) -> list[Latency]:
    rows = [
        _latency_row(target, bench, rung, values, samples=f"{rung}{label}", invalid=bench.get("invalid"))
        for rung, values in bench["latency"].items()
    ]
    for count, swept in bench.get("sweep", {}).items():
        for rung, values in swept["latency"].items():
            row = _latency_row(target, bench, rung, values, samples=_swept(rung, label, count), invalid=None)
            # the budget is about the number of threads that the recipe names
            none = dict.fromkeys(("budget_ms", "percentile", "confidence", "verdict", "reason", "cold_ms", "first_ms"))
            rows.append(row.model_copy(update={**none, "threads": int(count), "cores": swept["cores"], "sweep": True}))
    return rows


def _latency_row(
    target: str, bench: dict[str, Any], rung: str, values: dict[str, Any], *, samples: str, invalid: str | None
) -> Latency:
    cold = bench["cold"].get(rung) or {}
    about = bench.get("about") or {}
    row = Latency(
        **{key: values[key] for key in Latency.model_fields if key in values},
        rung=rung,
        target=target,
        device=bench["device"],
        runtime=bench["runtime"],
        threads=bench["threads"],
        batch=bench["batch"],
        cold_ms=cold.get("cold_ms"),
        first_ms=cold.get("first_ms"),
        reason=Measured.model_validate(values).reason,
        runtime_version=about.get("runtime_version"),
        cores=bench["cores"],
        samples=samples,
        is_latency=not about.get("emulated", False),
    )
    if not row.is_latency or bench.get("budget_is", "inference") != "inference":
        return row.model_copy(update=dict.fromkeys(("budget_ms", "verdict", "reason")))
    if invalid is not None:
        return row.model_copy(update={"verdict": "INVALID", "reason": f"{invalid[0].upper()}{invalid[1:]}"})
    return row


def _int8_vs_float_rows(target: str, bench: dict[str, Any]) -> list[Int8VsFloat]:
    if bench["ratio"] is None or (bench.get("about") or {}).get("emulated"):
        return []
    ci95 = bench["ratio"]["ci95"]
    return [
        Int8VsFloat(
            target=target,
            device=bench["device"],
            speedup=bench["ratio"]["speedup"],
            ci95=None if ci95 is None else tuple(ci95),
            slow_ops=bench["slow_ops"],
        )
    ]


def _mobile_rows(target: str, bench: dict[str, Any]) -> list[Mobile]:
    """Cold start and memory of one bench record."""
    if (bench.get("about") or {}).get("emulated"):
        return []
    return [
        Mobile(
            rung=name,
            target=target,
            device=bench["device"],
            cold_ms=cold["cold_ms"],
            first_ms=cold["first_ms"],
            peak_memory_mib=round(cold["peak_bytes"] / 2**20, 1),
            size_bytes=bench["sizes"][name],
        )
        for name, cold in bench["cold"].items()
    ]


def _operator_rows(target: str, bench: dict[str, Any]) -> list[Operator]:
    """Operator times of one bench record; an emulated processor's say nothing."""
    if (bench.get("about") or {}).get("emulated"):
        return []
    wanted = set(Operator.model_fields)
    return [
        Operator(rung=name, target=target, **{key: value for key, value in one.items() if key in wanted})
        for name, operators in bench["operators"].items()
        for one in operators
    ]
