"""Share of quantizable operators that run as int8 kernels in ONNX Runtime, for every model family.

Each network has random weights; it is quantized, exported, optimized by the runtime itself, and read back. The file for
Arm is audited by the runtime's rules for Arm (signed activations stay signed), on whatever machine this is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _networks import Network, calibrator, inputs, int8_file, target
from _record import add_common_options, write

NAME = "fusion_coverage"

NETWORKS = {
    one.name: one
    for one in (
        Network("tiny", "tiny", size=16, classes=10),
        Network("resnet8", "resnet", {"depth": 8}, size=32, classes=10),
        Network("resnet20", "resnet", {"depth": 20}, size=32, classes=10),
        Network("resnet18", "resnet", {"depth": 18}, size=64),
        Network("resnet50", "resnet", {"depth": 50}, size=64),
        Network("wrn_16_2", "wrn", {"depth": 16, "width": 2.0}, size=32, classes=10),
        Network("wrn_40_1", "wrn", {"depth": 40, "width": 1.0}, size=32, classes=10),
        Network("mobilenet_v2_0.5", "mobilenet_v2", {"width": 0.5}, size=64),
        Network("mobilenet_v2_1.0", "mobilenet_v2", {"width": 1.0}, size=64),
    )
}
TARGETS = ("onnxruntime_x86", "onnxruntime_arm")


def coverage(network: Network, folder: Path, *, target_name: str, seed: int) -> dict[str, Any]:
    """The audit of one network for one target."""
    chosen = target(target_name)
    path = int8_file(
        network.build(seed),
        [inputs(network, 4, seed=seed + 1)],
        folder / f"{network.name}_{target_name}.onnx",
        target=chosen,
        reduce_range=False,
        calibrator=calibrator("minmax"),
    )
    audit = chosen.audit(path)
    return {
        "quantizable": audit.quantizable,
        "int8": audit.int8,
        "coverage": audit.coverage,
        "islands": [f"{island.op} '{island.name}': {island.cause}" for island in audit.islands],
        "float_by_nature": dict(audit.legitimate),
        "operators_that_run": dict(sorted(audit.operators.items())),
    }


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Audit and write; gives the JSON file."""
    options = parsed(argv)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as folder:
        for name in options.models:
            found = {
                one: coverage(NETWORKS[name], Path(folder), target_name=one, seed=options.seed)
                for one in options.targets
            }
            rows[name] = {**NETWORKS[name].facts(), "targets": found}
            _tell(name, found)
    lowest = min(one["coverage"] for row in rows.values() for one in row["targets"].values())
    results = {"n": len(rows) * len(options.targets), "lowest_coverage": lowest, "goal": 1.0, "rows": rows}
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


def _tell(name: str, targets: Mapping[str, Mapping[str, Any]]) -> None:
    told = ", ".join(f"{key} {one['int8']}/{one['quantizable']}" for key, one in targets.items())
    print(f"{name}: {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
