"""The report's rows of one bench record: latency, int8 against float, cold start and memory, operators."""

from __future__ import annotations

from typing import Any

from edgekd.measure import Latency as Measured
from edgekd.report import Int8VsFloat, Latency, Mobile, Operator

__all__ = ["int8_vs_float_rows", "latency_rows", "mobile_rows", "operator_rows"]


def latency_rows(target: str, bench: dict[str, Any]) -> list[Latency]:
    """The report's latency rows of one bench record."""
    rows = []
    for name, values in bench["latency"].items():
        cold = bench["cold"].get(name) or {}
        shared = {key: values[key] for key in Latency.model_fields if key in values}
        rows.append(
            Latency(
                **shared,
                rung=name,
                target=target,
                device=bench["device"],
                runtime=bench["runtime"],
                threads=bench["threads"],
                batch=bench["batch"],
                cold_ms=cold.get("cold_ms"),
                first_ms=cold.get("first_ms"),
                reason=Measured.model_validate(values).reason,
            )
        )
    return rows


def int8_vs_float_rows(target: str, bench: dict[str, Any]) -> list[Int8VsFloat]:
    if bench["ratio"] is None:
        return []
    return [
        Int8VsFloat(
            target=target,
            device=bench["device"],
            speedup=bench["ratio"]["speedup"],
            ci95=tuple(bench["ratio"]["ci95"]),
            slow_ops=bench["slow_ops"],
        )
    ]


def mobile_rows(target: str, bench: dict[str, Any]) -> list[Mobile]:
    """Cold start and memory of one bench record."""
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


def operator_rows(target: str, bench: dict[str, Any]) -> list[Operator]:
    """Operator times of one bench record."""
    wanted = set(Operator.model_fields)
    return [
        Operator(rung=name, target=target, **{key: value for key, value in one.items() if key in wanted})
        for name, operators in bench["operators"].items()
        for one in operators
    ]
