"""The results of one student as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown"]

_HEAD = (
    "| tool | setting | {quality} | SQNR dB | KL | ONNX Runtime: ms, over float | OpenVINO: ms, over float"
    " | calibration s | peak MiB | file KiB |"
)


def markdown(results: Mapping[str, Any]) -> str:
    """One row a way, in the order they ran; ways that gave no file come with the reason.

    Args:
        results: what `compare.py` wrote.
    """
    rows = results["rows"]
    labelled = any("accuracy" in _quality(row) for row in rows.values())
    head = _HEAD.format(quality="accuracy" if labelled else "agreement with float")
    lines = [head, "|" + "---|" * head.count(" | ") + "---|"]
    lines += [_line(row, "accuracy" if labelled else "agreement") for row in rows.values() if "error" not in row]
    lines += ["", _note(results)]
    for row in rows.values():
        if "error" in row:
            lines.append(f"\n{row['tool']}, {row['setting']}: no file. {row['error']}")
    return "\n".join(lines)


def _line(row: Mapping[str, Any], measure: str) -> str:
    quality = _quality(row)
    cells = [
        row["tool"],
        row["setting"],
        _percent(quality.get(measure)),
        _number(quality.get("sqnr_db"), "{:.1f}"),
        _number(quality.get("kl"), "{:.4f}"),
        *(_time(row["latency"].get(runtime)) for runtime in ("onnxruntime", "openvino")),
        f"{row['cpu_seconds']:.1f}" if "cpu_seconds" in row else "",
        f"{row['peak_rss_bytes'] / 2**20:.0f}" if "peak_rss_bytes" in row else "",
        f"{row['size_bytes'] / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _quality(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row.get("quality", {}).get("onnxruntime", {})
    return found


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["ci95"]
    return f"{value['value']:.2%} ({100 * low:.2f} to {100 * high:.2f})"


def _number(value: Mapping[str, Any] | None, form: str) -> str:
    if value is None or value["value"] is None:
        return ""
    return form.format(value["value"])


def _time(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    ratio = found["cpu"].get("speedup_over_float")
    text = f"{found['cpu']['median_ms']:.3g}"
    if ratio is None:
        return text
    interval = f" ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f})" if ratio["ci95"] else ""
    return f"{text}, {ratio['speedup']:.2f}x{interval}"


def _note(results: Mapping[str, Any]) -> str:
    data = results["data"]
    what = "photographs' crops" if data["data"] == "photographs" else "test images"
    return (
        f"n = {results['n']} {what}, {data['calibration_images']} calibration images, one thread, batch 1;"
        " milliseconds and seconds are of processor time;"
        f" {'7' if results['reduce_range'] else '8'}-bit weights where a tool has the choice."
    )
