"""edgekd's losses beside torchdistill's on the same random tensors: values, gradients, and who follows the paper.

torchdistill runs in an environment of its own that this script makes, in a process of its own. Where the two have
other conventions, its value is brought to edgekd's by arithmetic that the record names, never by changing its code.
Both are held against the paper's equation, written out in double precision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "quantization"))

import numpy as np
import torch
from _conventions import LOSSES
from _environments import ENVIRONMENTS, Environment, cache_folder, python_of
from _equations import EQUATIONS, VARIANTS
from _loss_cases import EDGEKD, Case, cases, value_and_gradient
from _record import add_common_options, write
from numpy.typing import NDArray

__all__ = ["FOLLOWS", "NAME", "TOLERANCE", "answered", "main", "ours", "rows", "table"]

NAME = "methods/torchdistill_values"
TOLERANCE = 1e-5  # relative: of values to the other value, of gradients to the largest entry
FOLLOWS = 1e-4  # of a gradient to an equation's: looser, because float32 meets double precision

_PEER = "torchdistill"
_WORKER = Path(__file__).parent / "peers" / "torchdistill_losses.py"
# torchvision, which it declares and its losses do not import, has no processor-only build for every torch
_NEEDED = Environment(
    first=("torch==2.13.0", "numpy", "pyyaml", "scipy"), packages=("--no-deps", "torchdistill==1.1.5")
)
_PRIVATE = ("--environments", "--python")
_SECONDS = 600


Found = tuple[float, NDArray[np.float64]]


def main(argv: Sequence[str]) -> Path:
    """Compare and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    chosen = cases(options.seed)
    python = options.python or _interpreter(options.environments, recreate=options.recreate)
    answers, versions = answered(chosen, python)
    found = rows(chosen, answers)
    results = {"tolerance": TOLERANCE, "peer_versions": versions, "rows": found}
    print(table(found))
    return write(options.out, name=NAME, seed=options.seed, argv=_public(argv), results=results)


def ours(case: Case) -> Found:
    """edgekd's value and gradient."""
    return value_and_gradient(EDGEKD[case.loss], case, torch.float32)


def answered(chosen: Sequence[Case], python: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """What torchdistill gives for each case, by `KEY/value`, `KEY/value_gradient` and the same of `joined`.

    Raises:
        CalledProcessError: the worker failed.
    """
    described = {
        case.key: {"loss": case.loss, "options": dict(case.options), "tensors": list(case.tensors)} for case in chosen
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = Path(scratch)
        arrays = {f"{case.key}/{name}": values for case in chosen for name, values in case.tensors.items()}
        np.savez(folder / "inputs.npz", **cast(Any, arrays))
        (folder / "cases.json").write_text(json.dumps(described), encoding="utf-8")
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [str(python), str(_WORKER), "--folder", str(folder)]
        subprocess.run(command, check=True, timeout=_SECONDS, env={**os.environ, **threads})
        with np.load(folder / "answers.npz") as file:
            answers = dict(file)
        return answers, json.loads((folder / "versions.json").read_text(encoding="utf-8"))


def rows(chosen: Sequence[Case], answers: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The comparison of every loss."""
    found: dict[str, Any] = {}
    for loss, side in LOSSES.items():
        compared = {case.name: _compared(case, answers) for case in chosen if case.loss == loss}
        found[loss] = {
            "torchdistill": side.peer,
            "joins": side.joins,
            "agrees": all(one.get("agrees", False) for one in compared.values()),
            "difference": _largest(compared, "difference"),
            "gradient_difference": _largest(compared, "gradient_difference"),
            "paper": side.source,
            "follows_paper": {
                who: all(one["equation"][who]["follows"] for one in compared.values())
                for who in ("edgekd", "torchdistill")
                if all(who in one["equation"] for one in compared.values())
            },
            "differs": side.differs,
            "n": len(compared),
            "cases": compared,
        }
    return found


def _compared(case: Case, answers: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    mine, paper = ours(case), value_and_gradient(EQUATIONS[case.loss], case, torch.float64)
    result: dict[str, Any] = {"options": dict(case.options), "shapes": case.shapes, "edgekd": mine[0]}
    equation = {"value": paper[0], "edgekd": _held(mine, paper)}
    theirs, joined = (_answer(answers, case, kind) for kind in ("value", "joined"))
    if theirs is not None:
        result["torchdistill"] = theirs[0]
        equation["torchdistill"] = _held(theirs, paper)
    if joined is not None:
        difference, gradient_difference = _difference(mine[0], joined[0]), _gradient_difference(mine[1], joined[1])
        result.update(
            joined=joined[0],
            difference=difference,
            gradient_difference=gradient_difference,
            agrees=max(difference, gradient_difference) <= TOLERANCE,
        )
    elif theirs is not None:
        variant = value_and_gradient(VARIANTS[case.loss], case, torch.float64)
        result["torchdistill_and_its_convention"] = {
            "difference": _difference(theirs[0], variant[0]),
            "gradient_difference": _gradient_difference(theirs[1], variant[1]),
        }
    return {**result, "equation": equation}


def _held(side: Found, paper: Found) -> dict[str, Any]:
    """A side against the equation: the constant between the two values, and whether it is one of gradients too."""
    times = side[0] / paper[0]
    off = _gradient_difference(side[1], times * paper[1])
    return {"times": times, "gradient_off": off, "follows": off <= FOLLOWS}


def _answer(answers: Mapping[str, NDArray[Any]], case: Case, kind: str) -> Found | None:
    if f"{case.key}/{kind}" not in answers:
        return None
    return float(answers[f"{case.key}/{kind}"]), answers[f"{case.key}/{kind}_gradient"].astype(np.float64)


def _difference(one: float, other: float) -> float:
    return abs(one - other) / abs(other)


def _gradient_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def _largest(compared: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    return max((one[name] for one in compared.values() if name in one), default=None)


def table(found: Mapping[str, Any]) -> str:
    """One line for each loss, as Markdown."""
    lines = ["| loss | torchdistill | agrees | difference | of gradients | edgekd / torchdistill follow the paper |"]
    lines.append("|---|---|---|---|---|---|")
    for loss, row in found.items():
        numbers = ("" if row[key] is None else f"{row[key]:.1e}" for key in ("difference", "gradient_difference"))
        follows = " / ".join("yes" if one else "no" for one in row["follows_paper"].values())
        lines.append(
            f"| {loss} | {row['torchdistill'] or 'none'} | {'yes' if row['agrees'] else 'no'} |"
            f" {' | '.join(numbers)} | {follows} |"
        )
    return "\n".join(lines)


def _interpreter(folder: Path, *, recreate: bool) -> Path:
    # the machinery keeps the int8 tools' environments by name; this one is made the same way, and joins them here
    cast(dict[str, Environment], ENVIRONMENTS)[_PEER] = _NEEDED
    return python_of(_PEER, folder, recreate=recreate)


def _public(argv: Sequence[str]) -> list[str]:
    words, kept = iter(argv), []
    for word in words:
        if word in _PRIVATE:
            next(words, None)
        elif word != "--recreate" and not word.startswith(tuple(f"{one}=" for one in _PRIVATE)):
            kept.append(word)
    return kept


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, "torchdistill_values")
    parser.add_argument("--environments", type=Path, default=cache_folder() / "environments", help="of peers")
    parser.add_argument("--recreate", action="store_true", help="make torchdistill's environment anew")
    parser.add_argument("--python", type=Path, help="an interpreter that has torch and torchdistill, instead")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
