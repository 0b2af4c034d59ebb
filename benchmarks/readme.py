"""Write the README's result tables from benchmarks/results, so that no number is copied by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _record import RESULTS
from recipes import tables

README = Path(__file__).parent.parent / "README.md"


def main() -> int:
    """Replace every marked block; a block whose results are not there is an error."""
    text = README.read_text(encoding="utf-8")
    blocks = {
        "digits": recipe_block("recipe_digits"),
        "fashion_mnist": recipe_block("recipe_fashion_mnist"),
        "latency": latency_block(_read("latency_vs_onnxruntime")),
        "tensorrt": engine_block(_read("tensorrt_engines")),
    }
    for name, block in blocks.items():
        pattern = rf"<!-- results:{name} -->.*?<!-- /results:{name} -->"
        replacement = f"<!-- results:{name} -->\n\n{block}\n\n<!-- /results:{name} -->"
        text, count = re.subn(pattern, lambda _, new=replacement: new, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks 'results:{name}', 1 is needed")
    README.write_text(text, encoding="utf-8")
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
