"""ONNX Runtime's own tool: `quantize_static`, QDQ, u8 activations, s8 weights per channel.

`reduce_range` is what its documentation advises for x86 processors without VNNI.
"""

from __future__ import annotations

from typing import Any

from _worker import Job, run
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Images(CalibrationDataReader):  # type: ignore[misc]
    """One image at a time, as in the tool's own examples."""

    def __init__(self, job: Job) -> None:
        self._feeds = job.feeds()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantize(job: Job) -> None:
    """Prepare, calibrate and quantize the float file."""
    prepared = job.output.with_suffix(".prepared.onnx")
    with job.phase("prepare"):
        quant_pre_process(str(job.model), str(prepared))
    quantize_static(
        str(prepared),
        str(job.output),
        Images(job),
        quant_format=QuantFormat.QDQ,
        calibrate_method=getattr(CalibrationMethod, job.options["method"]),
        per_channel=True,
        reduce_range=job.options["reduce_range"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


if __name__ == "__main__":
    run(quantize, packages=("onnxruntime", "onnx", "numpy"))
