"""Write the README's result tables from benchmarks/results, so that no number is copied by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _record import RESULTS
from devices import table as devices
from engine import table as engine
from quantization import families, table
from recipes import tables

README = Path(__file__).parent.parent / "README.md"
SCALING = README.parent / "docs" / "scaling.md"
STUDENTS = {
    "efficientnet_lite0": "EfficientNet-Lite0, 224x224",
    "efficientnet_lite2": "EfficientNet-Lite2, 260x260",
    "fashion_resnet8": "The resnet8 of `examples/fashion_mnist.toml`",
}


def main() -> int:
    """Replace every marked block; a block whose results are not there is an error."""
    text = README.read_text(encoding="utf-8")
    blocks = {
        "digits": recipe_block("recipe_digits"),
        "fashion_mnist": recipe_block("recipe_fashion_mnist"),
        "latency": latency_block(_read("latency_vs_onnxruntime")),
        "tensorrt": engine_block(_read("tensorrt_engines")),
        "quantization": "\n\n".join(student_block(name, title) for name, title in STUDENTS.items()),
        "families": families.table(_read("quantization_families")),
        "methods": "\n\n".join(methods_block(_read(path.stem)) for path in sorted(RESULTS.glob("methods*.json"))),
        "engine": engine.table(_read),
        "devices": devices.table(_read),
        "calibration": calibration_block(_read("calibration"), [_read("qat_step"), _read("qat_step_compiled")]),
    }
    for name, block in blocks.items():
        pattern = rf"<!-- results:{name} -->.*?<!-- /results:{name} -->"
        replacement = f"<!-- results:{name} -->\n\n{block}\n\n<!-- /results:{name} -->"
        text, count = re.subn(pattern, lambda _, new=replacement: new, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks 'results:{name}', 1 is needed")
    README.write_text(text, encoding="utf-8")
    page = SCALING.read_text(encoding="utf-8")
    block = f"<!-- results:scaling -->\n\n{engine.scaling(_read)}\n\n<!-- /results:scaling -->"
    page, count = re.subn(
        "<!-- results:scaling -->.*?<!-- /results:scaling -->", lambda _: block, page, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"docs/scaling.md has {count} blocks 'results:scaling', 1 is needed")
    SCALING.write_text(page, encoding="utf-8")
    return 0


def recipe_block(name: str) -> str:
    """Ladder, differences and latency of a shipped recipe."""
    results = _read(name)
    machine = results["machine"]
    took = (
        f"{results['wall_s']:.0f} s in all"
        if results["wall_s"]
        else f"{results['stages_s'] / 60:.0f} min in all stages"
    )
    vnni = "with VNNI" if machine["has_vnni"] else "without VNNI"
    head = f"{machine['model']}, {machine['cores_allowed']} cores, {vnni}; {took}; verdict {results['verdict']}."
    return f"{head}\n\n{tables(results)}"


def latency_block(results: dict[str, Any]) -> str:
    """Ours, float and the runtime's own tool, interleaved."""
    lines = [
        "| model | float / edgekd int8 | float / quantize_static int8 | edgekd / quantize_static, time | coverage |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        ratios = row["ratios"]
        cells = [
            _interval(ratios[key])
            for key in ("float_over_edgekd", "float_over_quantize_static", "edgekd_over_quantize_static")
        ]
        coverage = row["files"]["edgekd"]["fusion"]["coverage"]
        lines.append(f"| {name} {tuple(row['input'])} | {' | '.join(cells)} | {coverage:.1f} |")
    vnni = "has" if results["has_vnni"] else "has no"
    lines += ["", f"n = {max(row['n'] for row in results['rows'].values())} rounds; this processor {vnni} VNNI."]
    return "\n".join(lines)


def engine_block(results: dict[str, Any]) -> str:
    """Sizes of engines and what they hold."""
    lines = [
        "| model | file | weights | ONNX | engine SM86 | engine SM89 | convolutions fed by int8 | parser errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        for precision, one in row["files"].items():
            audit = one.get("audit")
            fed = f"{audit['convolutions_fed_by_int8']} of {audit['convolutions']}" if audit else ""
            engines = [_megabytes(one["engines"][sm]["engine_bytes"]) for sm in ("sm86", "sm89")]
            weights = _megabytes(sum(one["weight_bytes"].values()))
            lines.append(
                f"| {name} | {precision} | {weights} | {_megabytes(one['onnx_bytes'])} | {' | '.join(engines)} |"
                f" {fed} | {len(one['parser_errors'])} |"
            )
    lines += ["", f"{results['library']} {results['library_version']}, built without a GPU; not run, which needs one."]
    return "\n".join(lines)


def student_block(name: str, title: str) -> str:
    """Every tool's int8 files of one student."""
    return f"**{title}**\n\n{table.markdown(_read(f'quantization_{name}'))}"


def methods_block(record: dict[str, Any]) -> str:
    """Every way to train the student: the two baselines first, then by its float accuracy within each group."""
    rows = record["rows"]
    first = ["student_alone", "kd"]
    rest = sorted((name for name in rows if name not in first), key=lambda name: -rows[name]["float"]["mean"])
    best = max(rows[name]["float"]["mean"] for name in rows)
    lines = [
        "| student | float | over `student_alone` | over `kd` | int8 | int8 - float | agrees with the teacher | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (*first, *rest):
        row = rows[name]
        cells = [
            f"**{name}**" if row["float"]["mean"] == best else name,
            f"{row['float']['mean']:.2f} ± {row['float']['sd']:.2f}",
            "" if name == "student_alone" else _points(row["over_student_alone"]),
            "" if name in first else _points(row["over_kd"]),
            f"{row['int8']['mean']:.2f} ± {row['int8']['sd']:.2f}",
            _points(row["int8_over_float"]),
            f"{row['agreement_with_teacher']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    teachers = ", ".join(f"{100 * one:.2f} %" for one in record["teachers_test_accuracy"])
    pair = f"{record['teacher']} ({teachers}), to {record['student']}"
    return "\n".join([f"{pair[0].upper()}{pair[1:]}:", "", *lines])


def _points(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def calibration_block(calibration: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Time and memory of calibration, and what a training step costs."""
    speed, memory = calibration["speed"], calibration["memory"]
    faster = speed["cpu_times_faster"]
    entropy = calibration["quality"]["8_bit_weights"]["edgekd_entropy"]["db_over_onnxruntime_entropy"]
    low, high = entropy["ci95"]
    lines = [
        f"- Calibration of {calibration['model']} against ONNX Runtime's entropy calibrator"
        f" ([`calibration.py`](benchmarks/calibration.py)): {faster['median']:.2f} times faster per image in"
        f" processor time ({faster['least']:.2f} to {faster['most']:.2f} in {calibration['n']} rounds), output SQNR"
        f" {entropy['db']:+.2f} dB ({low:+.2f} to {high:+.2f}) with 8-bit weights. Peak memory"
        f" {_growth(memory, 'edgekd')}; ONNX Runtime {_growth(memory, 'onnxruntime')}.",
        _whole_files(),
        "",
        "| a step of quantization-aware training over one of float | ranges tracked | ranges learned (LSQ) | frozen |",
        "|---|---|---|---|",
    ]
    for step in steps:
        compiled = ", both by torch.compile" if step["compiled"] else ""
        for name, row in step["rows"].items():
            cells = [row["ratios"][f"{mode}_over_float"] for mode in ("track", "learn", "frozen")]
            shown = [f"{one['ratio']:.2f}x ({one['ci95'][0]:.2f} to {one['ci95'][1]:.2f})" for one in cells]
            lines.append(f"| {name}, batch {row['batch']}{compiled} | {' | '.join(shown)} |")
    prepared = [f"{name} {one['seconds']:.1f} s" for step in steps for name, one in step["prepare"].items()]
    if prepared:
        lines += ["", f"From the float student to the graph that is trained, checks included: {', '.join(prepared)}."]
    return "\n".join(lines)


def _whole_files() -> str:
    """From the float ONNX file to the int8 one, edgekd against the runtime's entropy method."""
    found = []
    for name in ("efficientnet_lite0", "efficientnet_lite2"):
        rows = _read(f"quantization_{name}")["rows"]
        ours, theirs = rows["edgekd_ptq"]["cpu_seconds"], rows["ort_entropy"]["cpu_seconds"]
        found.append(f"{name} {ours:.1f} against {theirs:.1f} s ({theirs / ours:.1f} times faster)")
    shown = "; ".join(found)
    return f"- From a float ONNX file to its int8 one, 64 images, against `quantize_static` by Entropy: {shown}."


def _growth(memory: dict[str, Any], tool: str) -> str:
    counts = sorted(memory[tool], key=int)
    first, last = (memory[tool][count]["peak_mib"] for count in (counts[0], counts[-1]))
    return f"{first:.0f} MiB for {counts[0]} images and {last:.0f} for {counts[-1]}"


def _interval(ratio: dict[str, Any]) -> str:
    low, high = ratio["ci95"]
    return f"{ratio['speedup']:.3f} ({low:.3f} to {high:.3f})"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    sys.exit(main())
