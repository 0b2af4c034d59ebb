"""From the plain values of bench.json to the report's rows about devices."""

from __future__ import annotations

from typing import Any

from edgekd._latency import Protocol, latency_of
from edgekd._report_device_model import (
    ColdStartRow,
    DeviceRow,
    EndToEndRow,
    EnergyRow,
    PlacementRow,
    Record,
    Sustained,
    Worth,
)
from edgekd._statistics import nearest_rank

__all__ = ["cold_rows", "device_rows", "end_to_end_rows", "plain_rows"]

_PLAIN: dict[str, type[Record]] = {
    "placement": PlacementRow,
    "sustained": Sustained,
    "energy": EnergyRow,
    "worth": Worth,
}
_MIB = 2**20


def device_rows(bench: dict[str, Any]) -> list[DeviceRow]:
    """The device of a record; none where the record is of this program's own processor."""
    about = bench.get("about")
    if not about:
        return []
    return [DeviceRow(device=bench["device"], **{key: about[key] for key in DeviceRow.model_fields if key in about})]


def cold_rows(target: str, bench: dict[str, Any]) -> list[ColdStartRow]:
    """Cold starts with their parts; a record that does not tell when its process began has none."""
    return [
        ColdStartRow(
            rung=rung,
            target=target,
            device=bench["device"],
            process_ms=cold["process_ms"],
            load_ms=cold["load_ms"],
            first_ms=cold["first_ms"],
            total_ms=cold["total_ms"],
            peak_memory_mib=cold["peak_bytes"] / _MIB,
            baseline_memory_mib=cold["baseline_bytes"] / _MIB,
            model_memory_mib=cold["model_bytes"] / _MIB,
            repeats=cold["repeats"],
            is_latency=not _emulated(bench),
        )
        for rung, cold in bench["cold"].items()
        if "process_ms" in cold
    ]


def end_to_end_rows(target: str, bench: dict[str, Any], label: str) -> tuple[list[EndToEndRow], dict[str, list[float]]]:
    """From image to labels, and the samples of the whole by their keys.

    Args:
        target: of the record.
        bench: the record.
        label: what the keys of this record's samples end with.
    """
    measured = bench.get("end_to_end")
    if not measured:
        return [], {}
    rows, samples = [], {}
    for rung, parts in measured["models"].items():
        key = f"{rung}{label}, end to end"
        row, whole = _end_to_end(target, bench, rung, parts, key)
        rows.append(_judged(row, bench, measured["invalid"]))
        samples[key] = whole
    return rows, samples


def plain_rows(bench: dict[str, Any]) -> dict[str, list[Any]]:
    """Rows that the record holds as the report does."""
    rows = bench.get("rows", {})
    found = {name: [model.model_validate(row) for row in rows.get(name, [])] for name, model in _PLAIN.items()}
    if _emulated(bench):
        found["sustained"] = [row.model_copy(update={"is_latency": False}) for row in found["sustained"]]
    return found


def _end_to_end(
    target: str, bench: dict[str, Any], rung: str, parts: dict[str, list[float]], key: str
) -> tuple[EndToEndRow, list[float]]:
    asked = next(iter(bench["latency"].values()))
    protocol = Protocol(budget_ms=asked["budget_ms"], percentile=asked["percentile"], confidence=asked["confidence"])
    whole = [sum(one) for one in zip(*parts.values(), strict=True)]
    latency = latency_of(whole, protocol=protocol)
    row = EndToEndRow(
        rung=rung,
        target=target,
        device=bench["device"],
        n=len(whole),
        preprocess_p50_ms=nearest_rank(parts["preprocess_ms"], 50),
        inference_p50_ms=nearest_rank(parts["inference_ms"], 50),
        postprocess_p50_ms=nearest_rank(parts["postprocess_ms"], 50),
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        p99_ms=latency.p99_ms,
        lower_ms=latency.lower_ms,
        upper_ms=latency.upper_ms,
        budget_ms=latency.budget_ms,
        percentile=latency.percentile,
        confidence=latency.confidence,
        verdict=latency.verdict,
        reason=latency.reason,
        samples=key,
        is_latency=not _emulated(bench),
    )
    return row, whole


def _judged(row: EndToEndRow, bench: dict[str, Any], invalid: str | None) -> EndToEndRow:
    """The row with its verdict: none where the budget is about the inference, or the processor is emulated."""
    if not row.is_latency or bench["budget_is"] != "end_to_end":
        return row.model_copy(update=dict.fromkeys(("budget_ms", "verdict", "reason")))
    if invalid is not None:
        return row.model_copy(update={"verdict": "INVALID", "reason": f"{invalid[0].upper()}{invalid[1:]}"})
    return row


def _emulated(bench: dict[str, Any]) -> bool:
    return bool((bench.get("about") or {}).get("emulated"))
