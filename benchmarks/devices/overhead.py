"""What the harness itself costs: inside the timed region, between two of them, and against a bare loop.

`inside`: how much longer a busy wait of 5 ms is by the harness's clock than by its own, and what an empty call takes.
`between`: wall time of the timed rounds that is in no sample, for each query. `bench`: the p50 that the place `cpu`
measures, over a connection to a process of its own, against a loop around `session.run` in another process that imports
nothing of edgekd; blocks of both take turns, pinned to the same core, and the interval is over blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from _record import RESULTS, write
from onnx import TensorProto, helper, numpy_helper

from edgekd.agent.timing import timed_rounds
from edgekd.devices._base import open_place
from edgekd.devices._place import Place, SessionSettings, Timing
from edgekd.measure import compare

__all__ = ["NAME", "bare_loop", "bench_against_bare", "busy", "inside_and_between", "main", "workload"]

NAME = "devices/overhead"
BUSY_MS, MOST, WITHIN = 5.0, 0.01, 0.03
_CHANNELS, _SIZE = 64, 32
_BARE = """
import json, os, sys, time
import numpy, onnxruntime
model, feed, core, warmup, queries = sys.argv[1:]
if core:
    os.sched_setaffinity(0, {int(core)})
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
feeds = {"x": numpy.load(feed)}
for _ in range(int(warmup)):
    session.run(None, feeds)
print("ready", flush=True)
for line in sys.stdin:
    samples = []
    for _ in range(int(queries)):
        begin = time.perf_counter_ns()
        session.run(None, feeds)
        samples.append((time.perf_counter_ns() - begin) / 1e6)
    print(json.dumps(samples), flush=True)
"""


def busy(milliseconds: float, taken: list[float]) -> Callable[[], None]:
    """A call that keeps the processor busy for so long, and notes how long it was by its own clock."""

    def call() -> None:
        begin = time.perf_counter_ns()
        end = begin + round(milliseconds * 1e6)
        now = begin
        while now < end:
            now = time.perf_counter_ns()
        taken.append((now - begin) / 1e6)

    return call


def inside_and_between(queries: int) -> dict[str, Any]:
    """The harness around a busy wait of 5 ms and around nothing; milliseconds, medians over the queries."""
    taken: list[float] = []
    rounds = timed_rounds({"busy": busy(BUSY_MS, taken)}, queries=queries, max_seconds=600.0)
    samples, starts = rounds.samples_ms["busy"], rounds.started_ms["busy"]
    ends = [start + sample for start, sample in zip(starts, samples, strict=True)]
    inside = [sample - own for sample, own in zip(samples, taken, strict=True)]
    between = [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)]
    empty = timed_rounds({"empty": lambda: None}, queries=queries, max_seconds=600.0).samples_ms["empty"]
    return {
        "n": queries,
        "busy_ms": BUSY_MS,
        "inside_ms": statistics.median(inside),
        "inside_p99_ms": float(np.quantile(inside, 0.99)),
        "between_ms": statistics.median(between),
        "between_p99_ms": float(np.quantile(between, 0.99)),
        "empty_call_ms": statistics.median(empty),
        "share": (statistics.median(inside) + statistics.median(between)) / BUSY_MS,
    }


def workload(path: Path, *, layers: int, seed: int) -> Path:
    """An ONNX file of 3x3 convolutions, 38 million multiply-adds each."""
    rng = np.random.default_rng(seed)
    nodes, weights, name = [], [], "x"
    for index in range(layers):
        kernel = rng.normal(0.0, 0.05, (_CHANNELS, _CHANNELS, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes += [
            helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        name = f"r{index}"
    shape = (1, _CHANNELS, _SIZE, _SIZE)
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def bare_loop(model: Path, feed: Path, *, core: int | None, warmup: int, queries: int) -> subprocess.Popen[str]:
    """A process that answers each line with the samples of one block, in ms as JSON; it has said that it is ready."""
    words = [str(model), str(feed), "" if core is None else str(core), str(warmup), str(queries)]
    process = subprocess.Popen(
        [sys.executable, "-c", _BARE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if process.stdout is None or process.stdout.readline().strip() != "ready":
        raise SystemExit("the bare loop did not start")
    return process


def bench_against_bare(
    place: Place, folder: Path, *, blocks: int, queries: int, layers: int, seed: int
) -> dict[str, Any]:
    """p50 of the place over p50 of the bare loop, block by block in turns.

    Args:
        place: open, on this machine.
        folder: for files.
        blocks: of each.
        queries: in a block.
        layers: of the workload.
        seed: of its weights.
    """
    model = workload(folder / "workload.onnx", layers=layers, seed=seed)
    feeds = {"x": np.random.default_rng(seed + 1).normal(size=(1, _CHANNELS, _SIZE, _SIZE)).astype(np.float32)}
    np.save(folder / "x.npy", feeds["x"])
    place.put({"workload.onnx": model})
    session = SessionSettings(threads=1)
    timing = Timing(queries=queries, max_seconds=600.0, warmup_min=20, window=10, warmup_max_seconds=2.0)
    first = place.measure({"m": "workload.onnx"}, feeds, session=session, timing=timing)
    core = first.cores[0] if first.cores else None
    ours, bare = [], []
    with bare_loop(model, folder / "x.npy", core=core, warmup=40, queries=queries) as process:
        if process.stdin is None or process.stdout is None:
            raise SystemExit("the bare loop has no pipes")
        for _ in range(blocks):
            found = place.measure({"m": "workload.onnx"}, feeds, session=session, timing=timing)
            ours.append(statistics.median(found.models["m"].samples_ms))
            process.stdin.write("go\n")
            process.stdin.flush()
            bare.append(statistics.median(json.loads(process.stdout.readline())))
        process.stdin.close()
    ratio = compare(ours, bare, seed=seed)
    return {
        "blocks": blocks,
        "queries": queries,
        "bench_p50_ms": statistics.median(ours),
        "bare_p50_ms": statistics.median(bare),
        "ratio": ratio.speedup,
        "ci95": ratio.ci95,
        "n": ratio.n,
        "blocks_bench_ms": ours,
        "blocks_bare_ms": bare,
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """Measure, tell and write; the path of the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "devices_overhead.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--blocks", type=int, default=40, help="of the place and of the bare loop each")
    parser.add_argument("--queries", type=int, default=64, help="in a block")
    parser.add_argument("--layers", type=int, default=5, help="of the workload; choose them for about 5 ms")
    parser.add_argument("--quick", action="store_true", help="few blocks, to see that it works")
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    blocks, queries = (10, 16) if options.quick else (options.blocks, options.queries)
    harness = inside_and_between(100 if options.quick else 1000)
    with tempfile.TemporaryDirectory(prefix="edgekd-overhead-") as folder, open_place("cpu") as place:
        bench = bench_against_bare(
            place, Path(folder), blocks=blocks, queries=queries, layers=options.layers, seed=options.seed
        )
    print(
        f"harness: {harness['inside_ms']:.5f} ms inside, {harness['between_ms']:.5f} ms between: {harness['share']:.3%}"
    )
    print(f"bench {bench['bench_p50_ms']:.4g} ms, bare {bench['bare_p50_ms']:.4g} ms: {bench['ratio']:.4f}", end=" ")
    print(bench["ci95"])
    off = abs(bench["ratio"] - 1)
    results = {
        "harness": harness,
        "bench": bench,
        "goals": {
            "harness_share": {"at_most": MOST, "measured": harness["share"], "met": harness["share"] <= MOST},
            "p50_off": {"at_most": WITHIN, "measured": off, "met": off <= WITHIN},
        },
    }
    return write(options.out, name=NAME, seed=options.seed, argv=given, results=results)


if __name__ == "__main__":
    print(main())
