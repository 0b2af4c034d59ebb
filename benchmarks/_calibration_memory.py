"""One process that calibrates and prints its peak memory: `python _calibration_memory.py TOOL MODEL IMAGES FILE`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from _calibrating import MODELS, batches, peer_calibrated, prepared

from edgekd import quantize

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(tool: str, name: str, count: int, source: Path) -> None:
    """Calibrate with entropy and print what memory that took, in MiB.

    Args:
        tool: edgekd or onnxruntime.
        name: of the model.
        count: images.
        source: the float ONNX file, for onnxruntime.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = MODELS[name]
    if tool == "edgekd":
        graph = prepared(model.build(0), next(batches(model, 4, seed=0)), name="entropy", reduce_range=True)
        before = _restarted()
        quantize.calibrate(graph, batches(model, count, seed=1))
    else:
        before = _restarted()
        peer_calibrated(source, batches(model, count, seed=1), "entropy")
    print(json.dumps({"before_mib": before, "peak_mib": _field("VmHWM")}))


def _restarted() -> float:
    """Let the peak start anew, since export takes more than calibration; gives what is taken now."""
    _RESET.write_text("5")
    return _field("VmRSS")


def _field(name: str) -> float:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
