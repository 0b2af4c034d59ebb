"""Intel Neural Compressor's static quantization of an ONNX file (package onnx-neural-compressor)."""

from __future__ import annotations

from typing import Any

import onnx
from _worker import Job, run
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import CalibrationMethod, QuantFormat, QuantType, config, quantize


class Images(data_reader.CalibrationDataReader):  # type: ignore[misc]
    """One image at a time; the tool goes through them more than once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def rewind(self) -> None:
        self._feeds = self._job.feeds()


def static(job: Job) -> None:
    """Quantize with its own choice of operators for ONNX Runtime on a processor."""
    chosen = config.StaticQuantConfig(
        calibration_data_reader=Images(job),
        calibrate_method=getattr(CalibrationMethod, job.options["method"]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=job.options["reduce_range"],
        calibration_sampling_size=len(job.images),
        execution_provider="CPUExecutionProvider",
    )
    quantize(str(job.model), str(job.output), chosen)
    # it puts large weights into a file beside the model, which would be forgotten in its size
    model = onnx.load(job.output)
    job.output.with_name(f"{job.output.name}_data").unlink(missing_ok=True)
    onnx.save(model, job.output)


if __name__ == "__main__":
    run(static, packages=("onnx-neural-compressor", "onnxruntime", "onnx", "numpy"))
