"""edgekd's post-training quantization of the ONNX file alone, as `edgekd quantize model.onnx` does it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import onnx
from _networks import calibrator, target
from _worker import Job, run

from edgekd.export import save_onnx
from edgekd.quantize_onnx import quantize_onnx


def from_onnx(job: Job) -> None:
    """Quantize for ONNX Runtime on x86, one thread."""
    found = quantize_onnx(
        onnx.load(job.model),
        job.feeds(job.options["batch"]),
        target=target("onnxruntime_x86"),
        calibrator=calibrator(job.options["calibrator"]),
        reduce_range=job.options["reduce_range"],
    )
    save_onnx(found.model, job.output)


if __name__ == "__main__":
    run(from_onnx, packages=("edgekd", "torch", "onnx", "onnxruntime", "numpy"))
