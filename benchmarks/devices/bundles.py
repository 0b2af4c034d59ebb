"""From a bundle to its answers and its verdict on a device: over ssh to this host, and to an emulated 64-bit Arm.

    python benchmarks/devices/bundles.py --run runs/digits --run runs/fashion_mnist \
        --bundle lite0.zip --samples evaluation.npz --userland FOLDER

Each run is packed as `edgekd pack` does it. Then on each device: deploy with its golden vectors, the whole test split
through the int8 file of every target, and the latency verdict at p99 with 662 queries. On Arm the same answers are
held against those of this host; what is timed there is the emulator, and is marked so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
from _record import RESULTS, write
from loopback_ssh import MISSING, READY, SshServer, arm64_python, ssh_server

from edgekd import pipeline
from edgekd._intervals import wilson_interval
from edgekd.batches import evaluation_batches
from edgekd.bundle import Bundle, install, open_bundle
from edgekd.devices._arm64_userland import USERLAND
from edgekd.devices._base import open_place
from edgekd.devices._place import Place, SessionSettings
from edgekd.pipeline._bench_bundle import bench_bundle_on
from edgekd.pipeline._run import Run
from edgekd.pipeline._watcher import Silent
from edgekd.recipe import BenchSettings, Recipe
from edgekd.report import Report, from_json

NAME = "devices/bundles"
GOAL_QUERIES, GOAL_PERCENTILE = 662, 99.0
_BATCH, _BATCHES_A_REQUEST = 32, 8
_EMULATED_QUERIES = 30


@dataclass(frozen=True)
class Case:
    """A bundle, and inputs whose answers are compared.

    Args:
        name: of the network.
        bundle: the file.
        inputs: (n, ...), as the model takes them.
        labels: (n,), where they are known.
    """

    name: str
    bundle: Path
    inputs: np.ndarray
    labels: np.ndarray | None


def main(argv: Sequence[str]) -> Path:
    """Measure and write; gives the JSON file."""
    options = parsed(argv)
    if not READY:
        raise SystemExit(MISSING)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as scratch:
        folder = Path(scratch)
        with ssh_server(folder / "sshd") as server:
            for case in cases(options, folder):
                found[case.name] = both(case, server, folder, options)
                print(case.name, found[case.name]["agreement"], flush=True)
    results = {"n": {name: one["samples"] for name, one in found.items()}, "bundles": found}
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def cases(options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Every bundle that was asked for."""
    for run in options.run:
        bundle = folder / f"{run.name}.zip"
        pipeline.pack(run, bundle)
        inputs, labels = test_split(run)
        yield Case(run.name, bundle, inputs[: options.limit], labels[: options.limit])
    for bundle, samples in zip(options.bundle, options.samples, strict=True):
        with np.load(samples, allow_pickle=False) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        labels = kept.pop("labels", None)
        inputs = next(iter(kept.values()))[: options.limit]
        yield Case(bundle.stem, bundle, inputs, None if labels is None else labels[: options.limit])


def test_split(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of a run's test split as its model takes them, and their classes."""
    report = from_json((run / "report.json").read_bytes(), source=str(run))
    work = Run(Recipe.model_validate(report.recipe), run, None, Silent())
    batches = list(evaluation_batches(work.data.test, work.data.preprocessing))
    inputs = np.concatenate([batch.inputs.numpy() for batch in batches])
    return inputs, np.concatenate([batch.labels.numpy() for batch in batches])


def both(case: Case, server: SshServer, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One bundle on this host over ssh, then on the emulated Arm."""
    places = {"ssh_host": server.options()}
    if options.userland is not None:
        python = arm64_python(folder / "arm64-python", options.userland)
        places["ssh_arm64"] = server.options(python, silence_seconds=900.0)
    rows, answers = {}, {}
    with open_bundle(case.bundle) as bundle:
        for name, given in places.items():
            with open_place(server.name, given) as place:
                rows[name], answers[name] = on_device(bundle, case, place, folder / f"{case.name}-{name}", options)
            print(case.name, name, rows[name]["verdict"], flush=True)
    return {"samples": len(case.inputs), "devices": rows, "agreement": agreement(answers)}


def on_device(
    bundle: Bundle, case: Case, place: Place, there: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a bundle does on one device: golden vectors, the test split, the verdict."""
    about = place.about()
    done = install(bundle, place, str(there))
    int8 = [entry for entry in bundle.manifest.models if entry.rung == "onnx_int8"]
    logits = {}
    for entry in int8:
        if entry.runtime != "onnxruntime":
            continue
        place.put(bundle.files_for(entry))
        logits[entry.target] = answered(place, entry.file, entry.inputs[0].name, case.inputs)
    queries = _EMULATED_QUERIES if about.emulated else GOAL_QUERIES
    settings = BenchSettings(
        device=place.name,
        percentile=GOAL_PERCENTILE,
        queries=min(queries, options.queries),
        max_seconds=300.0,
        budget_ms=options.budget_ms,
    )
    report = bench_bundle_on(bundle, place, settings)
    shutil.rmtree(there)
    row = {
        "machine": about.machine,
        "emulated": about.emulated,
        "runtime_version": about.runtime_version,
        "golden": done.replay.model_dump(mode="json"),
        "accuracy": {
            target: accuracy(values, case.labels) for target, values in logits.items() if case.labels is not None
        },
        **latency(report),
    }
    return row, logits


def answered(place: Place, model: str, name: str, inputs: np.ndarray) -> np.ndarray:
    """A model's answers to all inputs, in requests of a bounded size."""
    found = []
    step = _BATCH * _BATCHES_A_REQUEST
    for start in range(0, len(inputs), step):
        part = inputs[start : start + step]
        feeds: list[Mapping[str, np.ndarray]] = [
            {name: np.ascontiguousarray(part[at : at + _BATCH])} for at in range(0, len(part), _BATCH)
        ]
        for outputs in place.run(model, feeds, SessionSettings(cores=None)):
            found.append(next(iter(outputs.values())))
    return np.concatenate(found)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def agreement(answers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Top-1 agreement of the same file on Arm and on x86, and of Arm's own file with x86's own."""
    if "ssh_arm64" not in answers:
        return {}
    here, arm = answers["ssh_host"], answers["ssh_arm64"]
    pairs = {f"{target} on both": (here[target], arm[target]) for target in here}
    if {"onnxruntime_x86", "onnxruntime_arm"} <= set(here):
        pairs["each its own"] = (here["onnxruntime_x86"], arm["onnxruntime_arm"])
    found = {}
    for name, (one, other) in pairs.items():
        same = int((one.argmax(axis=1) == other.argmax(axis=1)).sum())
        found[name] = {
            "top1": same / len(one),
            "ci95": list(wilson_interval(same, len(one))),
            "n": len(one),
            "largest_difference": float(np.abs(one - other).max()),
        }
    return found


def latency(report: Report) -> dict[str, Any]:
    """The verdict and the rows of one report."""
    kept = ("rung", "target", "n", "p50_ms", "p90_ms", "p99_ms", "upper_ms", "verdict", "is_latency")
    return {
        "verdict": report.verdict.overall if report.verdict else None,
        "reasons": report.verdict.reasons if report.verdict else [],
        "latency": [{key: getattr(row, key) for key in kept} for row in report.latency],
        "int8_vs_float": [row.model_dump(mode="json") for row in report.int8_vs_float],
        "notes": report.notes,
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "device_bundles.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="unused: nothing is drawn")
    parser.add_argument("--run", type=Path, action="append", default=[], help="folder of a finished run; repeatable")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle that is there; repeatable")
    parser.add_argument("--samples", type=Path, action="append", default=[], help=".npz of inputs for each bundle")
    parser.add_argument("--limit", type=int, help="the first so many samples only")
    parser.add_argument("--queries", type=int, default=GOAL_QUERIES, help="timed queries of each model")
    parser.add_argument("--budget-ms", type=float, default=500.0, help="at p99")
    userland = os.environ.get(USERLAND)
    parser.add_argument(
        "--userland", type=Path, default=Path(userland) if userland else None, help="folder of the arm64 userland"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
