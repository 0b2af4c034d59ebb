"""The README's table about devices, from the records of this folder's scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["RECORDS", "table"]

Read = Callable[[str], dict[str, Any]]

RECORDS = ("device_bundles", "devices_verdicts", "devices_overhead")
_HERE, _ARM = "ssh_host", "ssh_arm64"


def table(read: Read) -> str:
    """What was asked of devices and what was measured."""
    bundles, verdicts, overhead = (read(name) for name in RECORDS)
    rows = ["| | asked | measured | n |", "|---|---|---|---|"]
    for name, one in bundles["bundles"].items():
        rows += _bundle(name, one)
    rows += _verdicts(verdicts)
    harness, bench = overhead["harness"], overhead["bench"]
    low, high = bench["ci95"]
    rows += [
        f"| what the harness adds to a call of {harness['busy_ms']:g} ms | at most 1 % | {harness['share']:.2%} |"
        f" {harness['n']} |",
        f"| p50 of `edgekd bench` over that of a bare loop, {bench['bare_p50_ms']:.1f} ms, interleaved | within 3 % |"
        f" {bench['ratio']:.3f} ({low:.3f} to {high:.3f}) | {bench['n']} blocks |",
    ]
    machine = bundles["machine"]
    return "\n".join([f"{machine['model']}; the Arm is emulated, so only its answers count.", "", *rows])


def _bundle(name: str, one: Mapping[str, Any]) -> list[str]:
    rows = []
    for device, found in one["devices"].items():
        models = [model for model in found["golden"]["models"] if model["outputs"]]
        right = sum(all(output["within"] for output in model["outputs"]) for model in models)
        where = (
            "over ssh"
            if device == _HERE
            else f"over ssh on {found['machine']}, ONNX Runtime {found['runtime_version']}"
        )
        rows.append(
            f"| {name} {where}: models whose golden answers hold | all | {right} of {len(models)} |"
            f" {max(model['samples'] for model in models)} samples each |"
        )
    host = one["devices"][_HERE]
    int8 = next(row for row in host["latency"] if row["rung"] == "onnx_int8")
    rows.append(
        f"| {name} over ssh: int8, p99 under 500 ms with 99 % confidence | PASS | {int8['verdict']}, p99"
        f" {int8['p99_ms']:.3g} ms | {int8['n']} |"
    )
    for what, found in one["agreement"].items():
        low, high = found["ci95"]
        rows.append(
            f"| {name}: same class on Arm as on x86, {_file(what)} | | {found['top1']:.2%} ({low:.2%} to {high:.2%}) |"
            f" {found['n']} |"
        )
    return rows


def _file(what: str) -> str:
    return "each its own int8 file" if what == "each its own" else f"the int8 file for {what.removesuffix(' on both')}"


def _verdicts(record: Mapping[str, Any]) -> list[str]:
    goals, few = record["goals"], record["few_samples"]
    rows = [row for found in record["independent"].values() for row in found]
    trials = f"{len(rows)} settings, {rows[0]['trials']} trials each"
    hard = max(max(row["wrong_pass"], row["wrong_fail"]) for found in record["dependent"].values() for row in found)
    return [
        f"| wrong PASS, budget 1 % under the true percentile, worst setting | at most 1 % |"
        f" {goals['wrong_pass']['measured']:.2%} | {trials} |",
        f"| wrong FAIL, budget 1 % over it, worst setting | at most 1 % | {goals['wrong_fail']['measured']:.2%} |"
        f" {trials} |",
        f"| either, where neighbouring queries resemble each other strongly | none | {hard:.1%} | the same |",
        f"| a p99 from {few['samples']} samples | never | {few['p99_values']} times | {few['trials']} |",
    ]


if __name__ == "__main__":
    raise SystemExit(f"{Path(__file__).name} is read by benchmarks/readme.py")
