"""What the tests of methods in which networks learn together share: tiny networks, a run, and an int8 student."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, FitResult, Hooks, fit
from edgekd.losses._base import Loss, Split
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD
from edgekd.methods._base import Batch, Context, Method, WeightedLoss
from edgekd.models.tiny import Tiny
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing
from edgekd.taps import TupleOutputs

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def network(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Tiny(Tiny.Options(width=4)).build(classes, (1, 8, 8))


def context(*, labelled: bool = True, peer: Callable[[int], nn.Module] | None = None) -> Context:
    labels = torch.arange(24) % 3 if labelled else torch.full((24,), -1)
    return Context(Split(labels, 3), peer or (lambda index: network(seed=10 + index)))


def cross_entropy(weight: float = 1.0) -> WeightedLoss:
    return WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), weight)


def kd(weight: float = 1.0, tau: float = 1.0) -> WeightedLoss:
    return WeightedLoss("kd", KD(KD.Options(tau=tau)), weight)


def hint(weight: float = 1.0, student: str = "layer1", teacher: str = "layer1") -> WeightedLoss:
    loss: Loss = Hint(Hint.Options(student_tap=student, teacher_tap=teacher))
    return WeightedLoss("hint", loss, weight)


def batch(count: int = 6) -> Batch:
    inputs = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(inputs, torch.eye(3)[torch.arange(count) % 3], torch.arange(count), epoch=0, progress=0.0)


def total(method: Method, one: Batch) -> Tensor:
    return torch.stack([term.value * term.weight for term in method.terms(one).values()]).sum()


def batches() -> Batches:
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(24) % 3
    pixels = torch.rand(24, 1, 8, 8, generator=generator)
    plain = Preprocessing(size=[8, 8], channels=1, mean=[0.5], std=[0.5])
    return Batches(InMemorySamples(pixels, labels), batch_size=12, classes=3, preprocessing=plain, seed=3)


def trained(
    method: Method, *, checkpoint: Path | None = None, stop: bool = False, hooks: Hooks | None = None
) -> FitResult:
    """Two epochs of two steps; or one, and then it is killed."""

    def on_epoch(record: EpochRecord) -> None:
        raise KeyboardInterrupt

    if stop:
        hooks = Hooks(on_epoch=on_epoch)
    settings = TrainSettings(epochs=2, batch_size=12, lr=0.05, warmup_epochs=0.0)
    return fit(
        method,
        batches(),
        settings=settings,
        compute=ComputeSettings(device="cpu"),
        checkpoint=checkpoint,
        hooks=hooks,
    )


def assert_resumes_equal(make: Callable[[], Method], folder: Path) -> None:
    """A run that is killed after an epoch and started again ends with the very weights of one that was not."""
    whole, part = make(), make()
    trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(part, checkpoint=folder / "run", stop=True)
    again = make()
    assert trained(again, checkpoint=folder / "run").resumed_at == 1
    after, wanted = again.state_dict(), whole.state_dict()
    assert after.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in after.items())


@cache
def _graph(taps: tuple[str, ...], target: str) -> GraphModule:
    calibrator = CATALOGS["calibration"].load("minmax").member
    graph = quantize.prepare(
        network(seed=3).eval(),
        EXAMPLE,
        numerics=CATALOGS["targets"].load(target).member.numerics,
        calibrator=calibrator(calibrator.Options()),
        reduce_range=False,
        taps=taps,
    )
    quantize.calibrate(graph, [batch(12).inputs])
    quantize.set_phase(graph, "frozen")
    return graph


def int8_student(taps: Sequence[str], *, target: str = "xnnpack") -> TupleOutputs:
    """The calibrated graph of `network(seed=3)` with these taps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch copies a graph by names that it has deprecated
        return TupleOutputs(copy.deepcopy(_graph(tuple(taps), target)), taps)


def of_int8() -> Context:
    """What an int8 student has beside it: copies of the float one."""
    return context(peer=lambda index: network(seed=3).eval())


def int8_hooks() -> Hooks:
    """A prepared graph has no modes."""
    return Hooks(set_training=lambda module, training: None)
