"""Small trained networks and the files that each target makes of them, made once for all tests.

Random networks amplify the rounding of a single code until it says nothing about the export; a few steps of training
on an easy task give logits with a margin.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.export import metadata, model_spec, onnx_from_torch
from edgekd.spec import Preprocessing
from edgekd.targets._base import Target

CLASSES = 10
SIZE = 32
PIXELS = Preprocessing(size=[SIZE, SIZE], channels=3, mean=[0.5, 0.4, 0.3], std=[0.25, 0.25, 0.25])
SPEC = model_spec(PIXELS, [f"class {index}" for index in range(CLASSES)])
NOTES = metadata(SPEC, {"target": "any", "recipe": "test"})
FAMILIES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 8},
    "resnet": {"depth": 8, "width": 0.5},
    "wrn": {"depth": 10, "width": 0.5},
    "mobilenet_v2": {"width": 0.1, "stem_stride": 1},
}
# of mobilenet_v2's 19 stages: each kind once. At this width the channels of those left out are the same.
_KEPT = (0, 1, 2, 3, 11, 12, 14, 17, 18)


def target(name: str) -> Target:
    made: Target = CATALOGS["targets"].load(name).member()
    return made


@cache
def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten smooth patterns under noise, and which pattern each image has."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(patterns, size=(SIZE, SIZE), mode="bilinear")[labels] + 0.5 * noise, labels


@cache
def network(family: str, *, whole: bool = False) -> nn.Module:
    """A trained member of a family in eval mode; not to be changed. mobilenet_v2 is shortened unless `whole`."""
    factory = CATALOGS["models"].load(family).member
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model: nn.Module = factory(factory.Options(**FAMILIES[family])).build(CLASSES, (3, SIZE, SIZE))
        if family == "mobilenet_v2" and not whole:
            model.features = nn.Sequential(OrderedDict((str(i), model.features[i]) for i in _KEPT))  # type: ignore[index]
        _train(model)
    return model.eval()


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    inputs, labels = images(320, 0)
    for step in range(20):
        part = slice(step % 8 * 40, step % 8 * 40 + 40)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[part]), labels[part]).backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over what follows
    with torch.no_grad():
        model(inputs[:160])


def calibrated(family: str, name: str, *, whole: bool = False) -> GraphModule:
    """A prepared and calibrated graph for a target; a reduced range on x86, whose oldest processors need that."""
    inputs, _ = images(320, 0)
    graph = quantize.prepare(
        network(family, whole=whole),
        inputs[:4],
        numerics=target(name).numerics,
        calibrator=_calibrator("mse"),
        reduce_range=target(name).sums_in_16_bits,
    )
    quantize.calibrate(graph, inputs[:64].split(32))
    return graph


def _calibrator(name: str) -> Any:
    member = CATALOGS["calibration"].load(name).member
    return member(member.Options())


@cache
def _program(family: str, name: str, whole: bool) -> GraphModule:
    return quantize.convert(
        calibrated(family, name, whole=whole), images(320, 0)[0][:2], numerics=target(name).numerics
    )


def program(family: str, name: str, *, whole: bool = False) -> GraphModule:
    """The int8 program of a target, a copy of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(_program(family, name, whole))


@cache
def _exported(family: str, name: str, opset: int, int8: bool, whole: bool) -> bytes:
    module = program(family, name, whole=whole) if int8 else network(family, whole=whole)
    model = onnx_from_torch(module, images(320, 0)[0][:2], target=target(name), opset=opset, int8=int8, metadata=NOTES)
    return model.SerializeToString(deterministic=True)


def exported(family: str, name: str, *, opset: int = 20, int8: bool = True, whole: bool = False) -> onnx.ModelProto:
    """The finished file of a target, a copy of its own."""
    return onnx.load_model_from_string(_exported(family, name, opset, int8, whole))


@cache
def content(family: str, name: str, *, int8: bool = True) -> bytes:
    """The file of a target as it writes it itself; some take long."""
    made = target(name)
    module = program(family, name) if int8 else network(family)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{made.suffix}"
        assert made.write(module, images(320, 0)[0][:2], path, int8=int8, metadata=NOTES) == path
        return path.read_bytes()


def program_logits(family: str, name: str, count: int, *, whole: bool = False) -> np.ndarray:
    """What the int8 program gives for test images."""
    with torch.no_grad():
        found: np.ndarray = _program(family, name, whole)(images(count, 1)[0]).numpy()
    return found


def sqnr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    return quantize.sqnr_db(torch.from_numpy(wanted), torch.from_numpy(found))
