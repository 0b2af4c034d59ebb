"""What the methods without a teacher share: which losses they take, training, an interrupted one, int8 students."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, FitResult, Hooks, fit
from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Split
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.dkd import DKD
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD
from edgekd.methods._base import Batch, Context, Method, WeightedLoss
from edgekd.methods._self_taught import SelfTaught, even_shares, halves, pooled
from edgekd.models.tiny import Tiny
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing
from edgekd.taps import TupleOutputs

OPTIONS: dict[str, dict[str, Any]] = {
    "own_teacher": {"taps": ["stem", "layer1"], "deepest_tap": "layer2"},
    "last_batch": {},
    "progressive": {},
    "class_pairs": {},
    "two_views": {"features_tap": "layer2"},
}
NAMES = list(OPTIONS)
PIXELS = Preprocessing(size=[8, 8], channels=1, mean=[0.5], std=[0.5])
LABELS = torch.arange(30) % 3
IMAGES = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(7))


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def labels_loss(weight: float = 0.5) -> WeightedLoss:
    return WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), weight)


def answers_loss(weight: float = 0.5) -> WeightedLoss:
    return WeightedLoss("kd", KD(KD.Options()), weight)


def made(name: str, student: nn.Module, losses: list[WeightedLoss] | None = None) -> SelfTaught:
    member = CATALOGS["methods"].load(name).member
    losses = losses or [labels_loss(), answers_loss(), WeightedLoss("dkd", DKD(DKD.Options()), 0.1)]
    method: SelfTaught = member(student, [], losses, member.Options(**OPTIONS[name]), Context(Split(LABELS, 3)))
    return method


def batches(method: Method) -> Batches:
    return Batches(
        InMemorySamples(IMAGES, LABELS),
        batch_size=8,
        classes=3,
        preprocessing=PIXELS,
        seed=0,
        augment=AugmentSettings(crop=1, flip=True, mixup=0.2),
        sampling=type(method).sampling,
    )


def trained(method: Method, checkpoint: Path | None = None, *, epochs: int = 2, **hooks: Any) -> FitResult:
    return fit(
        method,
        batches(method),
        settings=TrainSettings(epochs=epochs, lr=0.05, batch_size=8, warmup_epochs=0.0),
        compute=ComputeSettings(device="cpu"),
        checkpoint=checkpoint,
        hooks=Hooks(**hooks),
    )


def stop_after_the_first(record: EpochRecord) -> None:
    if record.epoch == 0:
        raise KeyboardInterrupt


def float_method(name: str) -> SelfTaught:
    torch.manual_seed(3)
    student = network()
    student.fc = nn.Sequential(nn.Dropout(0.3), student.fc)  # draws random numbers
    return made(name, student)


@cache
def calibrated(taps: tuple[str, ...]) -> GraphModule:
    numerics = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
    calibrator = CATALOGS["calibration"].load("minmax").member
    torch.manual_seed(0)
    graph = quantize.prepare(
        network(),
        IMAGES[:4],
        numerics=numerics,
        calibrator=calibrator(calibrator.Options()),
        reduce_range=True,
        taps=taps,
    )
    quantize.calibrate(graph, [IMAGES * 2 - 1])
    quantize.set_phase(graph, "frozen")
    return graph


def int8_method(name: str) -> tuple[SelfTaught, dict[str, Any]]:
    """A method around a calibrated graph, and the hooks that the engine needs for it."""
    member = CATALOGS["methods"].load(name).member
    taps = member.student_taps(member.Options(**OPTIONS[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = copy.deepcopy(calibrated(taps))
    hooks = {
        "on_step": lambda progress: quantize.set_phase(graph, "track"),
        "set_training": lambda module, training: quantize.set_phase(graph, "frozen"),
    }
    return made(name, TupleOutputs(graph, taps)), hooks


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_and_names_every_term(name: str) -> None:
    method = float_method(name)
    result = trained(method, epochs=4)
    first, last = result.history[0].terms, result.history[-1].terms
    assert list(first) == list(last)
    assert {"cross_entropy"} < set(first)
    assert any(term.startswith("kd") for term in first)
    assert last["cross_entropy"].raw < first["cross_entropy"].raw
    assert all(term.raw > 0 for key, term in last.items() if not key.startswith("features"))


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_bit_for_bit_when_it_was_interrupted(name: str, tmp_path: Path) -> None:
    whole, cut, resumed = (float_method(name) for _ in range(3))
    trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(cut, tmp_path / "checkpoint.pt", on_epoch=stop_after_the_first)
    result = trained(resumed, tmp_path / "checkpoint.pt")
    assert result.resumed_at == 1
    assert same(whole, resumed)


@pytest.mark.parametrize("name", NAMES)
def test_int8_student_is_trained_and_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, hooks = int8_method(name)
    torch.manual_seed(1)
    before = copy.deepcopy(whole.student.state_dict())
    trained(whole, **hooks)
    weights = [key for key, _ in whole.student.named_parameters()]
    assert weights
    assert not any(torch.equal(before[key], whole.student.state_dict()[key]) for key in weights)
    cut, hooks = int8_method(name)
    with pytest.raises(KeyboardInterrupt):
        trained(cut, tmp_path / "checkpoint.pt", on_epoch=stop_after_the_first, **hooks)
    resumed, hooks = int8_method(name)
    trained(resumed, tmp_path / "checkpoint.pt", **hooks)
    assert same(whole, resumed)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient_under_autocast(name: str) -> None:
    method = float_method(name)
    batch = next(iter(batches(method).epoch(0)))
    method.prepare(batch.inputs)
    method.start_epoch(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.terms(Batch(batch.inputs, batch.labels, batch.ids, epoch=1, progress=0.5))
    assert all(term.value.isfinite() and term.value.dtype == torch.float32 for term in terms.values())
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in method.student.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_losses_that_read_a_teacher_s_tap_are_left_out(name: str) -> None:
    hint = WeightedLoss("hint", Hint(Hint.Options(student_tap="layer1", teacher_tap="not there")), 1.0)
    method = made(name, network(), [labels_loss(), hint, answers_loss()])
    method.prepare(torch.randn(2, 1, 8, 8))
    assert [term.name for term in method.losses] == ["cross_entropy", "kd"]


@pytest.mark.parametrize("name", NAMES)
def test_error_names_the_kind_of_loss_that_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match=f"Method '{name}' needs a loss that compares .*got: cross_entropy. Add kd"):
        made(name, network(), [labels_loss()])
    with pytest.raises(UsageError, match=f"Method '{name}' needs a loss that learns from the labels, got: kd. Add cr"):
        made(name, network(), [answers_loss()])


@pytest.mark.parametrize("name", NAMES)
def test_error_when_the_network_gives_no_logits(name: str) -> None:
    maps = network()
    maps.fc = nn.Unflatten(1, (4, 4))
    with pytest.raises(MismatchError, match=r"The student gives an output of shape \(2, 4, 4\)"):
        made(name, maps).prepare(torch.randn(2, 1, 8, 8))


def test_even_shares_keep_proportions_and_sum_to_one() -> None:
    assert [one.weight for one in even_shares([labels_loss(1.0), answers_loss(3.0)])] == [0.25, 0.75]
    assert [one.weight for one in even_shares([labels_loss(0.0), answers_loss(0.0)])] == [0.5, 0.5]


def test_halves_hold_every_row_once() -> None:
    batch = Batch(torch.randn(5, 1), torch.randn(5, 3), torch.arange(5), epoch=2, progress=0.5)
    first, second = halves(batch)
    assert [first.ids.tolist(), second.ids.tolist()] == [[0, 1, 2], [3, 4]]
    assert torch.equal(torch.cat([first.inputs, second.inputs]), batch.inputs)
    assert second.epoch == 2


def test_maps_are_pooled_and_vectors_kept() -> None:
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert pooled(maps, method="m", tap="t").tolist() == [[1.5, 5.5]]
    assert pooled(torch.ones(2, 3), method="m", tap="t").shape == (2, 3)
    with pytest.raises(MismatchError, match=r"m needs features .* but tap 't' gives \(1, 2, 3\)"):
        pooled(torch.ones(1, 2, 3), method="m", tap="t")
