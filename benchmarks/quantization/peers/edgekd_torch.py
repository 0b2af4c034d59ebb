"""edgekd's post-training quantization of the torch student the float file was exported from."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from _networks import calibrator, target
from _students import OPSET, module_of
from _worker import Job, run

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Correction
from edgekd.export import onnx_from_torch, save_onnx


def from_torch(job: Job) -> None:
    """Calibrate and correct, convert and write, as the pipeline's stages do."""
    torch.set_num_threads(1)
    x86 = target("onnxruntime_x86")
    module = module_of(job.options["student"], job.options["source"])
    batches = torch.split(torch.from_numpy(job.images), job.options["batch"])
    with job.phase("calibrate"):
        calibrated = quantize.post_training(
            module,
            batches[0][:2],
            lambda: batches,
            numerics=x86.numerics,
            calibrator=calibrator(job.options["calibrator"]),
            reduce_range=job.options["reduce_range"],
            corrections=[correction(name) for name in job.options.get("corrections", ())],
        )
    with job.phase("convert"):
        program = quantize.convert(calibrated.graph, batches[0][:2], numerics=x86.numerics)
    with job.phase("export"):
        model = onnx_from_torch(program, batches[0][:2], target=x86, opset=OPSET, int8=True, metadata={})
        save_onnx(model, job.output)


def correction(name: str) -> Correction:
    """A correction with its default options."""
    member = CATALOGS["corrections"].load(name).member
    found: Correction = member(member.Options())
    return found


if __name__ == "__main__":
    run(from_torch, packages=("edgekd", "torch", "torchao", "onnx", "onnxscript", "onnxruntime", "numpy"))
