"""Every built-in family on Fashion-MNIST, float and int8, paired on the same test images: what int8 costs.

    python benchmarks/quantization/families.py --teacher runs/fashion_mnist/teacher-*/model.safetensors

For each family and seed a student is distilled from the same resnet14 (two epochs), quantized by calibration
(`int8_ptq`) and by quantization-aware distillation (`int8`), with the defaults of a recipe. What is there already in
`--runs` is not made again. About 15 minutes of one core for each student.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _record import RESULTS, write

STUDENTS = {
    "resnet": "depth = 8",
    "wrn": "depth = 10\nwidth = 1.5",  # at width 1 it is the resnet of depth 8
    "mobilenet_v2": "width = 0.5",
    "tiny": "width = 16",
}
_RECIPE = """name = "families"

[data]
name = "fashion_mnist"

[data.augment]
crop = 2
flip = true

[teacher]
model = "resnet"
depth = 14
weights = "{teacher}"

[student]
model = "{family}"
{student}

[distill]
baseline = false
losses = [
  {{ name = "cross_entropy", weight = 0.1 }},
  {{ name = "kd", weight = 0.9, tau = 4.0 }},
]

[distill.train]
epochs = 2

[compute]
threads = 1
"""
_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, by degrees of freedom


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then write the record and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="weights of a resnet14 on Fashion-MNIST")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="where the runs lie")
    parser.add_argument("--families", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "quantization_families.json")
    given = parser.parse_args(argv)
    teacher = _kept(given.teacher, given.runs)
    found = {family: [_student(family, seed, teacher, given.runs) for seed in given.seeds] for family in given.families}
    results = {"seeds": given.seeds, "families": {family: summary(rows) for family, rows in found.items()}}
    shown = ["--teacher", "TEACHER.safetensors", "--families", *given.families, "--seeds", *map(str, given.seeds)]
    print(write(given.out, name="quantization/families", seed=given.seeds[0], argv=shown, results=results))
    print(table(results))
    return 0


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What one family's students say together.

    Args:
        rows: one for each seed, from `_row`.
    """
    found: dict[str, Any] = {"students": rows}
    for rung in ("int8_ptq", "int8"):
        differences = [row[f"{rung}_minus_student"]["points"] for row in rows]
        mean, count = statistics.fmean(differences), len(differences)
        reach = _T_975[count - 1] * statistics.stdev(differences) / math.sqrt(count) if 2 <= count <= 5 else None
        found[f"{rung}_minus_student"] = {
            "points": mean,
            "ci95": None if reach is None else [mean - reach, mean + reach],
        }
    found["int8_at_least_student_minus_0_1"] = found["int8_minus_student"]["points"] >= -0.1
    found["ptq_keeps"] = min(row["int8_ptq"] / row["student"] for row in rows)
    found["ptq_keeps_99_percent"] = found["ptq_keeps"] >= 0.99
    return found


def table(results: dict[str, Any]) -> str:
    """The README's table, in Markdown."""
    lines = ["| family | student | int8_ptq - student | int8 - student | PTQ keeps at least |", "|---|---|---|---|---|"]
    for family, found in results["families"].items():
        accuracy = statistics.fmean(row["student"] for row in found["students"])
        cells = [_points(found[f"{rung}_minus_student"]) for rung in ("int8_ptq", "int8")]
        lines.append(f"| {family} | {accuracy:.2%} | {cells[0]} | {cells[1]} | {found['ptq_keeps']:.2%} |")
    return "\n".join(lines)


def _points(found: dict[str, Any]) -> str:
    interval = "" if found["ci95"] is None else " ({:+.2f} to {:+.2f})".format(*found["ci95"])
    return f"{found['points']:+.2f}{interval}"


def _kept(teacher: Path, runs: Path) -> Path:
    """The teacher's weights in the folder of the runs: a recipe of the same text every time."""
    runs.mkdir(parents=True, exist_ok=True)
    copy = runs.resolve() / "teacher.safetensors"
    if not copy.exists():
        shutil.copyfile(teacher, copy)
    return copy


def _student(family: str, seed: int, teacher: Path, runs: Path) -> dict[str, Any]:
    recipe, out = runs / f"{family}.toml", runs / f"{family}-{seed}"
    recipe.write_text(_RECIPE.format(teacher=teacher, family=family, student=STUDENTS[family]), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "edgekd.cli",
        "quantize",
        str(recipe),
        "--set",
        f"seed={seed}",
        "--quiet",
        "--overwrite",
    ]
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return row_of(json.loads((out / "report.json").read_text(encoding="utf-8")), seed)


def row_of(report: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracies and paired differences of one run's report, in points where they are differences."""
    ladder = {row["rung"]: row["value"] for row in report["ladder"]}
    row: dict[str, Any] = {"seed": seed} | {rung: ladder[rung] for rung in ("teacher", "student", "int8_ptq", "int8")}
    for pair in report["paired"]:
        rung = pair["b"].split(" ")[0]
        if pair["a"] == "student" and rung in ("int8_ptq", "int8"):
            row[f"{rung}_minus_student"] = {
                "points": 100 * pair["difference"],
                "ci95": [100 * one for one in pair["ci95"]],
                "p_value": pair["p_value"],
                "n": pair["n"],
            }
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
