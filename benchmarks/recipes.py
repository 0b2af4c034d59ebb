"""Run a shipped recipe as a user would and keep what its report says: `python benchmarks/recipes.py digits`.

The wall time is that of the `edgekd run` command in a new folder, start-up included. With `--run FOLDER` a run that
is there already is recorded instead; its time is then the sum of its stages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _record import RESULTS, write

ROOT = Path(__file__).parent.parent
_KEPT = ("ladder", "paired", "latency", "int8_vs_float", "fusion", "parity", "engines", "mobile", "stages", "notes")


def main() -> int:
    """Run, record, and say where; the exit code is the run's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="name of a recipe in examples/")
    parser.add_argument("--run", type=Path, help="record this finished run instead of running")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.run is not None:
        report, seconds, code = _report(arguments.run), None, 0
    else:
        with tempfile.TemporaryDirectory() as folder:
            report, seconds, code = _run(arguments.recipe, Path(folder) / "run")
    seconds_of = {stage["stage"]: stage["seconds"] for stage in report["stages"]}
    for name in seconds_of:  # a stage that was broken off and went on counts its earlier epochs too
        trained = sum(one["seconds"] or 0.0 for one in report["curves"] if one["stage"] == name)
        seconds_of[name] = max(seconds_of[name], trained)
    results = {
        "wall_s": seconds,
        "stages_s": sum(seconds_of.values()),
        "exit_code": code,
        "verdict": report["verdict"]["overall"],
        **{key: report[key] for key in _KEPT},
    }
    out = arguments.out or RESULTS / f"recipe_{arguments.recipe}.json"
    seed = int(report["recipe"]["seed"])
    print(write(out, name="recipes", seed=seed, argv=[arguments.recipe], results=results))
    print(tables(results))
    return code


def tables(results: dict[str, Any]) -> str:
    """The README's tables of one run, in Markdown."""
    lines = ["| rung | target | accuracy | 95 % interval | seeds: mean ± sd | agreement with teacher | size |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in results["ladder"]:
        seeds = f"{row['mean']:.2%} ± {row['sd'] * 100:.2f}" if row["sd"] is not None else ""
        agreement = f"{row['agreement']:.2%}" if row["agreement"] is not None else ""
        size = f"{row['size_bytes'] / 1024:.0f} KiB" if row["size_bytes"] else ""
        low, high = row["ci95"]
        lines.append(
            f"| {row['rung']} | {row['target'] or ''} | {row['value']:.2%} | {low:.2%} to {high:.2%} | {seeds} |"
            f" {agreement} | {size} |"
        )
    lines += ["", "| rung b against a | difference (points) | 95 % interval | p |", "|---|---|---|---|"]
    for row in results["paired"]:
        low, high = (100 * value for value in row["ci95"])
        lines.append(
            f"| {row['b']} against {row['a']} | {100 * row['difference']:+.2f} | {low:+.2f} to {high:+.2f} |"
            f" {row['p_value']:.3f} |"
        )
    lines += ["", "| file | target | p50 | p90 | verdict at budget |", "|---|---|---|---|---|"]
    for row in results["latency"]:
        lines.append(
            f"| {row['rung']} | {row['target']} | {row['p50_ms']:.3g} ms | {row['p90_ms']:.3g} ms |"
            f" {row['verdict']} at {row['budget_ms']:g} ms |"
        )
    for row in results["int8_vs_float"]:
        low, high = row["ci95"]
        lines += ["", f"int8 against float, interleaved: {row['speedup']:.2f}x ({low:.2f} to {high:.2f})."]
    return "\n".join(lines)


def _run(recipe: str, out: Path) -> tuple[dict[str, Any], float, int]:
    command = [sys.executable, "-m", "edgekd.cli", "run", str(ROOT / "examples" / f"{recipe}.toml"), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run([*command, "--quiet", "--json"], stdout=subprocess.PIPE, check=False, text=True)
    seconds = time.perf_counter() - started
    return _report(out), seconds, done.returncode


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    sys.exit(main())
