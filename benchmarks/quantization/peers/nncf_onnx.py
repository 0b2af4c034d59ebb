"""NNCF's post-training quantization of an ONNX file, with its default bias correction."""

from __future__ import annotations

import nncf
import onnx
from _worker import Job, run
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix


def quantize(job: Job) -> None:
    """Quantize as NNCF's ONNX examples do; its preset decides whether activations are symmetric.

    Where weights have to give up a bit, NNCF gives it up in the first layer only unless it is told otherwise.
    """
    model = onnx.load(job.model)
    fix = OverflowFix.DISABLE
    if job.options["reduce_range"]:
        fix = OverflowFix.ENABLE if job.options["fixed"] == "all" else OverflowFix.FIRST_LAYER
    quantized = nncf.quantize(
        model,
        nncf.Dataset(list(job.feeds())),
        preset=nncf.QuantizationPreset(job.options["preset"]),
        subset_size=len(job.images),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
    )
    onnx.save(quantized, job.output)


if __name__ == "__main__":
    run(quantize, packages=("nncf", "onnxruntime", "onnx", "numpy"))
