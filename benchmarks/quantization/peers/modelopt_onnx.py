"""NVIDIA ModelOpt's post-training quantization of an ONNX file: signed symmetric activations, TensorRT's rule."""

from __future__ import annotations

from _worker import Job, run
from modelopt.onnx.quantization import quantize as modelopt_quantize


def quantize(job: Job) -> None:
    """Calibrate on the processor; the rest of the graph stays float32, so that any runtime takes the file."""
    modelopt_quantize(
        str(job.model),
        quantize_mode="int8",
        calibration_data={"image": job.images},
        calibration_method=job.options["method"],
        calibration_shapes=f"image:1x{'x'.join(str(side) for side in job.images.shape[1:])}",
        calibration_eps=["cpu"],
        output_path=str(job.output),
        high_precision_dtype="fp32",
        log_level="WARNING",
    )


if __name__ == "__main__":
    run(quantize, packages=("nvidia-modelopt", "onnxruntime", "onnx", "numpy"))
