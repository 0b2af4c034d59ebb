"""Every loss with and without kd, and every method, on one pair of networks with one budget: float and int8.

Fashion-MNIST at 14 x 14 pixels; teachers (resnet8, trained on all 54,000 images) teach a student (tiny, width 8) that
is given 6,000 of them: with few images of its own, a student has something to gain. All ways get the same epochs,
schedule and seeds; the last epoch counts, nothing is picked by test accuracy. The int8 student is calibrated and then
distilled by the same method and losses for one epoch, as a recipe does by default.

What is there already in `--keep` is not made again, so several processes can share the seeds between them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from _pair import Pair, TransformerPair, distilled
from _record import RESULTS, write
from _rows import BASELINE, PLAIN_KD, ROWS, TRANSFORMER_ROWS, Row

NAME = "methods/compare"
_PAIRS = {"convolutions": (Pair, ROWS), "transformers": (TransformerPair, TRANSFORMER_ROWS)}
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def main(argv: Sequence[str]) -> Path | None:
    """Train what is missing; write once every row has every seed."""
    options = parsed(argv)
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    kind, rows = _PAIRS[options.pair]
    pair = kind(options.keep, images=options.images, epochs=options.epochs, teacher_epochs=options.teacher_epochs)
    for seed in options.train_seeds:
        for name in options.rows:
            kept = _place(options.keep, name, seed)
            if not kept.exists():
                kept.write_text(json.dumps(_attempt(pair, rows[name], name, seed)), encoding="utf-8")
    missing = [(name, seed) for name in options.rows for seed in options.seeds if not _found(options.keep, name, seed)]
    if missing:
        print(f"{len(missing)} of {len(options.rows) * len(options.seeds)} trainings are still to be made")
        return None
    if not {BASELINE, PLAIN_KD} <= set(options.rows):
        print(f"nothing is written without {BASELINE} and {PLAIN_KD}, which all others are held against")
        return None
    made = table(options.keep, {name: rows[name] for name in options.rows}, options.seeds)
    results = {**pair.facts(), "n": len(options.seeds), "rows": made}
    numbers = {"epochs": options.epochs, "teacher-epochs": options.teacher_epochs, "images": options.images}
    shown = ["--pair", options.pair, *(word for key, value in numbers.items() for word in (f"--{key}", str(value)))]
    out = options.out or RESULTS / ("methods.json" if options.pair == "convolutions" else "methods_transformers.json")
    return write(out, name=NAME, seed=0, argv=shown, results=results)


def _attempt(pair: Pair, row: Row, name: str, seed: int) -> dict[str, Any]:
    started = time.process_time()
    found = distilled(pair, row, seed)
    found["seconds"] = time.process_time() - started
    print(f"{name} {seed}: {found['float']:.4f} {found['int8']:.4f} {found['seconds']:.0f} s", flush=True)
    return found


def table(keep: Path, rows: Mapping[str, Row], seeds: Sequence[int]) -> dict[str, Any]:
    """Each row's mean, deviation and paired differences over the seeds, in points."""
    found = {name: [json.loads(_place(keep, name, seed).read_text()) for seed in seeds] for name in rows}
    result = {}
    for name, runs in found.items():
        entry: dict[str, Any] = {"group": rows[name].group, "method": rows[name].method}
        entry["losses"] = [[loss, weight, dict(options)] for loss, weight, options in rows[name].losses]
        for rung in ("float", "int8_ptq", "int8"):
            values = [100 * run[rung] for run in runs]
            entry[rung] = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "seeds": values}
        for base in (BASELINE, PLAIN_KD):
            entry[f"over_{base}"] = _difference(runs, found[base], "float", "float")
        entry["int8_over_float"] = _difference(runs, runs, "int8", "float")
        entry["agreement_with_teacher"] = statistics.mean(run["agreement"] for run in runs)
        # the first training of all also made the teachers: the median is without them
        entry["seconds"] = statistics.median(run["seconds"] for run in runs)
        result[name] = entry
    return result


def _difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], a: str, b: str) -> Any:
    """Mean paired difference in points with its 95 % interval (Student's t over seeds)."""
    values = [100 * (one[a] - other[b]) for one, other in zip(ours, theirs, strict=True)]
    mean, sd = statistics.mean(values), statistics.stdev(values)
    half = _T95[len(values) - 1] * sd / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def _place(keep: Path, name: str, seed: int) -> Path:
    return keep / f"{name.replace(' ', '_').replace(',', '')}.{seed}.json"


def _found(keep: Path, name: str, seed: int) -> bool:
    return _place(keep, name, seed).exists()


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(_PAIRS), default="convolutions")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="default: all of the pair's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-seeds", nargs="*", type=int, help="those that this process trains; default: all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--keep", type=Path, help="folder of what is done; runs/methods, and one for each other pair")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    known = list(_PAIRS[options.pair][1])
    options.rows = options.rows or known
    if unknown := set(options.rows) - set(known):
        parser.error(f"no such rows of this pair: {', '.join(sorted(unknown))}")
    options.keep = options.keep or Path(
        "runs/methods" if options.pair == "convolutions" else "runs/methods_transformers"
    )
    options.train_seeds = options.seeds if options.train_seeds is None else options.train_seeds
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
