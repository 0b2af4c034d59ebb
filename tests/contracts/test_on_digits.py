"""Every loss and every method trains on digits: float, resumed bit for bit, and as a quantized graph.

A loss for transformers says in its case file (see test_losses.py) with DIGITS which layers of the transformer here it
joins; every other one is given two layers of `tiny`.
"""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cases import case
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.engine import Hooks, Tick, fit
from edgekd.losses._base import Split
from edgekd.methods._base import Context, Method, WeightedLoss
from edgekd.models.tiny import Tiny
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.taps import TupleOutputs, logits_of

LOSSES = [name for name in CATALOGS["losses"].names() if name != "cross_entropy"]
METHODS = [name for name in CATALOGS["methods"].names() if name != "alone"]
TAPS = ("layer1", "layer2")
RUN: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.02, "warmup_epochs": 0.0, "clip_grad_norm": 1.0}
CPU = ComputeSettings(device="cpu", threads=1)


class Layer(nn.Module):
    """Self-attention with two heads, its map and its fused projection as modules of their own, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.attention, self.out = nn.Linear(width, 3 * width), nn.Softmax(dim=-1), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        found = self.attention(q @ k.transpose(-2, -1) * (width // 2) ** -0.5) @ v
        return tokens + cast(Tensor, self.out(found.transpose(1, 2).reshape(batch, count, width)))


class Transformer(nn.Module):
    """Sixteen tokens of 2 x 2 pixels, two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.layers(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1)))


@cache
def data() -> DataBundle:
    member = CATALOGS["datasets"].load("digits").member
    bundle: DataBundle = member(member.Options()).load(Wanted(seed=0, val_fraction=0.1, limit_train=96))
    return bundle


def network(kind: str, seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(2 * width) if kind == "transformer" else Tiny(Tiny.Options(width=width)).build(10, (1, 8, 8))


def member(catalog: str, name: str, options: dict[str, Any]) -> Any:
    found = CATALOGS[catalog].load(name).member
    return found(found.Options(**options))


def loss_options(name: str) -> tuple[str, dict[str, Any]]:
    """The kind of network that a loss is tried on, and its options there."""
    about = case("losses", name)
    if "DIGITS" in about:
        return "transformer", about["DIGITS"]
    fields = CATALOGS["losses"].options(name).model_fields
    options: dict[str, Any] = {option: list(TAPS) for option in fields if option.endswith("_taps")}
    return "tiny", options | {option: TAPS[-1] for option in fields if option.endswith("_tap")}


def with_loss(name: str) -> tuple[str, Callable[[nn.Module, Context], Method]]:
    """The kind of network, and `offline` with labels and this loss around a student."""
    kind, options = loss_options(name)
    equal = len(set(case("losses", name).get("CHANNELS", (4, 7)))) == 1
    teacher = network(kind, 7, 4 if equal or kind == "transformer" else 6)

    def make(student: nn.Module, context: Context) -> Method:
        torch.manual_seed(3)
        terms = [("cross_entropy", 1.0, {}), (name, 0.1, options)]
        losses = [WeightedLoss(term, member("losses", term, more), weight) for term, weight, more in terms]
        return cast(Method, CATALOGS["methods"].load("offline").member(student, [teacher], losses, None, context))

    return kind, make


def with_method(name: str) -> tuple[str, Callable[[nn.Module, Context], Method]]:
    about, found = case("methods", name), CATALOGS["methods"].load(name).member
    teachers = [network("tiny", 7 + index) for index in range(about.get("TEACHERS", 1))] if found.needs_teacher else []

    def make(student: nn.Module, context: Context) -> Method:
        torch.manual_seed(3)
        losses = [WeightedLoss(one, member("losses", one, {}), 0.5) for one in ("cross_entropy", "kd")]
        method: Method = found(student, teachers, losses, found.Options(**about.get("OPTIONS", {})), context)
        return method

    return "tiny", make


def batches(method: Method) -> Batches:
    split = data()
    sampling = type(method).sampling
    return Batches(split.train, batch_size=32, classes=10, preprocessing=split.preprocessing, seed=1, sampling=sampling)


def context(peer: Callable[[int], nn.Module]) -> Context:
    return Context(Split(data().train.labels, 10), peer)


def trained(kind: str, make: Callable[[nn.Module, Context], Method], **more: Any) -> Method:
    method = make(network(kind, 0), context(lambda index: network(kind, index)))
    fit(method, batches(method), settings=TrainSettings(**RUN), compute=CPU, seed=5, **more)
    return method


def stop_in_the_second_epoch(tick: Tick) -> None:
    if tick.epoch == 1 and tick.step == tick.steps // 2 + 2:
        signal.raise_signal(signal.SIGINT)


def check_float(kind: str, make: Callable[[nn.Module, Context], Method], folder: Path) -> None:
    whole = trained(kind, make)
    with pytest.raises(KeyboardInterrupt):
        trained(kind, make, checkpoint=folder / "run.pt", progress=stop_in_the_second_epoch)
    resumed = trained(kind, make, checkpoint=folder / "run.pt")
    fresh = network(kind, 0).state_dict()
    found = whole.exported().state_dict()
    assert found.keys() == fresh.keys()  # no connector, branch, bank or peer is left in what is shipped
    assert any(not torch.equal(found[key], fresh[key]) for key in fresh)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), f"{key} differs after a resume"


@cache
def calibrated(kind: str, taps: tuple[str, ...]) -> GraphModule:
    student = network(kind, 0).eval()
    example = next(iter(Batches(data().train, batch_size=32, classes=10, preprocessing=data().preprocessing, seed=1)
                        .epoch(0))).inputs  # fmt: skip
    graph = quantize.prepare(
        student,
        example[:8],
        numerics=CATALOGS["targets"].load("onnxruntime_x86").member().numerics,
        calibrator=member("calibration", "minmax", {}),
        reduce_range=False,
        taps=taps,
    )
    quantize.calibrate(graph, [example])
    return graph


def check_int8(kind: str, make: Callable[[nn.Module, Context], Method]) -> None:
    plain = make(network(kind, 0), context(lambda index: network(kind, index)))
    own = type(plain).student_taps(plain.options)
    taps = tuple(dict.fromkeys([*(tap for term in plain.losses for tap in term.loss.student_taps()), *own]))
    graph = copy.deepcopy(calibrated(kind, taps))
    method = make(TupleOutputs(graph, taps), context(lambda index: network(kind, 0)))

    def phase(module: nn.Module, training: bool) -> None:
        quantize.set_phase(graph, "track" if training else "frozen")

    settings = TrainSettings(**(RUN | {"epochs": 1, "optimizer": "adamw", "lr": 1e-3}))
    result = fit(method, batches(method), settings=settings, compute=CPU, seed=5, hooks=Hooks(set_training=phase))
    assert all(math.isfinite(term.raw) for term in result.history[-1].terms.values())
    before, images = calibrated(kind, taps), torch.randn(4, 1, 8, 8)
    quantize.set_phase(before, "frozen")
    assert not torch.equal(logits_of(before(images)), logits_of(graph(images)))
    program = quantize.convert(graph, images, numerics=CATALOGS["targets"].load("onnxruntime_x86").member().numerics)
    assert logits_of(program(images)).shape == (4, 10)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_trains_a_float_student_and_resumes(name: str, tmp_path: Path) -> None:
    check_float(*with_loss(name), tmp_path)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_trains_an_int8_student(name: str) -> None:
    check_int8(*with_loss(name))


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_a_float_student_and_resumes(name: str, tmp_path: Path) -> None:
    check_float(*with_method(name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_method_trains_an_int8_student(name: str) -> None:
    check_int8(*with_method(name))
