"""The networks that the benchmarks measure: edgekd's own families with seeded weights and lively batch statistics.

Random weights are enough for latency, size and coverage. They are not enough for batch normalisation left as it is
made (mean 0, variance 1), which folds into nothing; so each gets a random scale and shift, and statistics from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import quantize
from edgekd.calibration._base import Calibrator
from edgekd.catalog import CATALOGS
from edgekd.export import onnx_from_torch, save_onnx
from edgekd.targets._base import Target

__all__ = ["Network", "calibrator", "float_file", "inputs", "int8_file", "target"]

_OPSET = 20
_STATISTICS_BATCH = 8


@dataclass(frozen=True)
class Network:
    """One network of a family.

    Args:
        name: as the results call it.
        model: the family, a member of `edgekd list models`.
        options: the family's options.
        size: height and width of the input, pixels.
        classes: K.
        channels: of the input.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    classes: int = 1000
    channels: int = 3

    def build(self, seed: int) -> nn.Module:
        """The network in eval mode."""
        torch.manual_seed(seed)
        family = CATALOGS["models"].load(self.model).member
        module: nn.Module = family(family.Options(**self.options)).build(
            self.classes, (self.channels, self.size, self.size)
        )
        norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
        for one in norms:
            nn.init.uniform_(one.weight, 0.5, 1.5)
            nn.init.normal_(one.bias, 0.0, 0.2)
            one.momentum = 1.0  # the batch's statistics in place of mean 0 and variance 1
        with torch.no_grad():
            module.train()(inputs(self, _STATISTICS_BATCH, seed=seed))
        for one in norms:
            one.momentum = 0.1
        return module.eval()

    def facts(self) -> dict[str, Any]:
        """What it is, for the record."""
        return {"model": self.model, "options": dict(self.options), "input": [self.channels, self.size, self.size]}


def inputs(network: Network, count: int, *, seed: int) -> Tensor:
    """Normalised images of noise, coarse and fine, shape (count, C, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, network.channels)
    fine = torch.randn(*shape, network.size, network.size, generator=generator)
    coarse = torch.randn(*shape, 4, 4, generator=generator)
    return 0.5 * fine + nn.functional.interpolate(coarse, size=(network.size, network.size), mode="bilinear")


def target(name: str) -> Target:
    """A target by name."""
    found: Target = CATALOGS["targets"].load(name).member()
    return found


def calibrator(name: str) -> Calibrator:
    """A calibrator by name, with its default options."""
    member = CATALOGS["calibration"].load(name).member
    found: Calibrator = member(member.Options())
    return found


def int8_file(
    module: nn.Module,
    batches: list[Tensor],
    path: Path,
    *,
    target: Target,
    reduce_range: bool,
    calibrator: Calibrator,
) -> Path:
    """Post-training quantization of a network for a target, written as ONNX; gives the path."""
    graph = quantize.prepare(
        module, batches[0], numerics=target.numerics, calibrator=calibrator, reduce_range=reduce_range
    )
    quantize.calibrate(graph, batches)
    program = quantize.convert(graph, batches[0], numerics=target.numerics)
    return _saved(program, batches[0], path, target=target, int8=True)


def float_file(module: nn.Module, example: Tensor, path: Path, *, target: Target) -> Path:
    """The float network, written as ONNX for a target; gives the path."""
    return _saved(module, example, path, target=target, int8=False)


def _saved(module: nn.Module, example: Tensor, path: Path, *, target: Target, int8: bool) -> Path:
    return save_onnx(onnx_from_torch(module, example, target=target, opset=_OPSET, int8=int8, metadata={}), path)
