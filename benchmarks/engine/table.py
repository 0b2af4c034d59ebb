"""The README's tables about the engine, from the records of this folder's scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["RECORDS", "scaling", "table"]

Read = Callable[[str], dict[str, Any]]

RECORDS = (
    "engine_throughput", "engine_throughput_2_threads", "engine_cache_build", "engine_qat_step",
    "engine_kills", "engine_processes", "engine_resumed_start",
)  # fmt: skip
_WAYS = {
    "alone": "edgekd, student alone",
    "cached": "edgekd, from a warm cache",
    "online": "edgekd, with the teacher",
    "by_hand": "by hand",
    "by_hand_channels_last": "by hand, channels last",
    "torchdistill": "torchdistill 1.1.5",
}


def table(read: Read) -> str:
    """What was asked of the engine and what was measured, then the throughput of every way."""
    found = {name: read(name) for name in RECORDS}
    rows = ["| | asked | measured | n |", "|---|---|---|---|", *_asked(found)]
    one, two = found["engine_throughput"], found["engine_throughput_2_threads"]
    return "\n".join([_machine(one), "", *rows, "", *_throughput(one, two)])


def scaling(read: Read) -> str:
    """Throughput of two processes over one, for every batch."""
    found = read("engine_processes")
    rows = [
        "| batch | | images/s | over one process | 95 % interval | of processor time |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "one": "one process",
        "two": "two processes, statistics of the whole batch",
        "two_own_statistics": "two processes, `sync_batch_norm = false`",
        "apart": "two processes that know nothing of each other",
    }
    for batch, one in found["rows"].items():
        for way, name in names.items():
            ratio = one["over_one"].get(way)
            more = f"{ratio['ratio']:.2f} | {_interval(ratio['ci95'])} | {ratio['ratio_cpu']:.2f}" if ratio else "| | "
            rows.append(f"| {batch} | {name} | {one['images_per_s'][way]:.0f} | {more} |")
    steps = " and ".join(
        f"{one['step_ms_of_one']:.0f} ms at a batch of {batch}" for batch, one in found["rows"].items()
    )
    told = f"A step of one process takes {steps}; {found['n']} epochs of each, in turns."
    return "\n".join([f"{_machine(found)} {told}", "", *rows])


def _machine(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    return f"{machine['model']}, {machine['cores_allowed']} core(s) for this, torch {record['versions']['torch']}."


def _asked(found: Mapping[str, dict[str, Any]]) -> list[str]:
    kills = found["engine_kills"]
    rows = [*_distilling(found["engine_throughput"]), *_distilling(found["engine_throughput_2_threads"])]
    rows += [
        _ratio(f"cache build over bare inference, {_form(one)}", "at least 0.95", one["build_over_bare"])
        for one in found["engine_cache_build"]["rows"].values()
    ]
    rows += [
        _ratio(f"step of int8 with distillation over float, ranges {phase}", "at most 1.3", one)
        for phase, one in found["engine_qat_step"]["over_float"].items()
        if phase in ("track", "learn", "frozen")
    ]
    lost = kills["in_training"]["max_seconds_lost"]
    rows += [
        f"| runs killed at a random moment that end with the same artifacts | all | {kills['identical']} of"
        f" {kills['n']} | {kills['n']} |",
        f"| training lost to a kill, at most | {kills['goals']['training_seconds_lost']['at_most']:.2f} s (the interval"
        f" and a step) | {lost:.2f} s | {kills['in_training']['n']} |",
    ]
    for batch, one in found["engine_processes"]["rows"].items():
        two, own = (one["over_one"][name] for name in ("two", "two_own_statistics"))
        rows.append(_ratio(f"two processes over one, batch {batch}", "at least 1.8", two))
        rows.append(_ratio("the same, each with its own batch statistics", "at least 1.8", own))
    start = found["engine_resumed_start"]
    rows.append(
        f"| start of a resumed run of digits to its first step | at most 5 s |"
        f" {start['seconds_to_first_step']['median']:.1f} s | {start['n']} |"
    )
    return rows


def _distilling(speed: Mapping[str, Any]) -> list[str]:
    ratios, goals = speed["ratios"], speed["goals"]
    sizes = speed["forward_flops"]["teacher_over_student"]
    more = f", {speed['threads']} threads" if speed["threads"] > 1 else ""
    teacher = f"(teacher {sizes:.1f} students)"
    asked = f"at least {goals['cached_over_by_hand']['at_least']:.2f}"
    reading = 100 * goals["share_of_reading"]["measured"]
    return [
        _ratio(f"cached over alone{more} {teacher}", "at least 0.95", ratios["cached_over_alone"]),
        _ratio(f"with the teacher over by hand{more}", "at least 0.98", ratios["online_over_by_hand"]),
        _ratio(
            f"the same, by hand in channels last{more}", "at least 0.98", ratios["online_over_by_hand_channels_last"]
        ),
        _ratio(f"cached over by hand{more}", asked, ratios["cached_over_by_hand"]),
        f"| reading, of a cached step{more} | at most 5 % | {reading:.1f} % | {speed['n']} |",
    ]


def _form(one: Mapping[str, Any]) -> str:
    kept = "all" if one["top_k"] is None else f"{one['top_k']} of"
    taps = " and a layer" if one["taps"] else ""
    return f"{kept} {one['classes']} logits{taps} in {one['dtype']}: {one['bytes_per_view']:.0f} bytes a view"


def _ratio(name: str, asked: str, one: Mapping[str, Any]) -> str:
    interval = _interval(one["ci95"])
    processor = f", {one['ratio_cpu']:.2f} of processor time"
    return f"| {name} | {asked} | {one['ratio']:.2f} ({interval}){processor} | {one['n']} |"


def _interval(ci95: Any) -> str:
    return "no interval" if ci95 is None else f"{ci95[0]:.2f} to {ci95[1]:.2f}"


def _throughput(*records: Mapping[str, Any]) -> list[str]:
    rows = ["| way | threads | images/s | per processor second |", "|---|---|---|---|"]
    for record in records:
        for way, name in _WAYS.items():
            if (one := record["ways"].get(way)) is not None:
                speeds = f"{one['images_per_s']:.0f} | {one['images_per_cpu_s']:.0f}"
                rows.append(f"| {name} | {record['threads']} | {speeds} |")
    return rows


if __name__ == "__main__":
    raise SystemExit(f"{Path(__file__).name} is read by benchmarks/readme.py")
