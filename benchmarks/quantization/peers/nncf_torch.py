"""NNCF's quantization-aware training: quantize the torch student, train it on, export it.

NNCF 3 has no distillation, so it learns from labels alone; epochs, batch size and images are those of edgekd's run.
The settings are those of NNCF's own example (Adam, learning rate 1e-5). It exports fake quantization, which becomes
Q/DQ pairs around float weights; NNCF means such a file for OpenVINO.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import nncf
import numpy as np
import torch
from _worker import Job, run
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.torch import force_build_cpu_extensions
from torch import nn

_LEARNING_RATE = 1e-5
_OPSET = 17


def quantize(job: Job) -> None:
    """Post-training quantization, `epochs` of training, export."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = _student(job.options)
    images = torch.from_numpy(job.images)
    fix = OverflowFix.ENABLE if job.options["reduce_range"] else OverflowFix.DISABLE
    with job.phase("quantize"):
        quantized = nncf.quantize(
            module,
            nncf.Dataset(torch.split(images, 1)),
            subset_size=len(images),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
        )
    with job.phase("train"):
        _train(quantized, job.options)
    with job.phase("export"):
        bare = nncf.strip(quantized.eval(), example_input=images[:2])
        names = {"input_names": ["image"], "output_names": ["logits"]}
        batch = {"image": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(
            bare, (images[:2],), str(job.output), dynamo=False, opset_version=_OPSET, dynamic_axes=batch, **names
        )


def _student(options: dict[str, Any]) -> nn.Module:
    """The network by its family and options; edgekd's model definitions need torch and pydantic only."""
    from safetensors.torch import load_file

    family = importlib.import_module(f"edgekd.models.{options['family']}")
    factory = getattr(family, family.__all__[0])
    module: nn.Module = factory(factory.Options(**options["family_options"])).build(10, (1, 28, 28))
    module.load_state_dict(load_file(options["weights"]))
    return _Wrapped(module).eval()


class _Wrapped(nn.Module):
    """NNCF hangs a module of its own onto the outermost one; as part of an nn.Sequential it would be called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


def _train(module: nn.Module, options: dict[str, Any]) -> None:
    with np.load(options["training"]) as stored:
        images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE)
    module.train()
    for _ in range(options["epochs"]):
        for chosen in torch.randperm(len(images)).split(options["batch"]):
            loss = nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    force_build_cpu_extensions()  # once, for minutes; it is kept, and is no part of the quantization
    run(quantize, packages=("nncf", "torch", "onnx", "numpy"))
