"""Every correction of the catalog: tensors change, never the structure, so that a saved state fits a plain graph."""

from __future__ import annotations

import copy
import math
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from odd_networks import CLASSES, images, odd_network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._preparing import folded
from edgekd.calibration._fake_quantize import quantizers
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context, Correction
from edgekd.spec import Options

CATALOG = CATALOGS["corrections"]
NAMES = CATALOG.names()
X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
SETTINGS: dict[str, Any] = {"numerics": X86, "calibrator": MinMax(Options()), "reduce_range": True}
QUICK: dict[str, dict[str, Any]] = {"adaround": {"iterations": 30, "positions": 256}}


class Everything(nn.Module):
    """Convolutions with batch normalisation and ReLU6 in a row, one of them depthwise, then layer normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.norm = nn.LayerNorm(12)
        self.wide, self.head = nn.Linear(12, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.wide(self.norm(self.maps(x)))))
        return logits


@cache
def _network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Everything()
        for one in network.modules():
            if isinstance(one, nn.BatchNorm2d):
                nn.init.uniform_(one.weight, 0.2, 2.0)
                nn.init.normal_(one.bias, 0.0, 0.3)
            if isinstance(one, nn.LayerNorm):
                nn.init.uniform_(one.weight, 0.1, 4.0)
        with torch.no_grad():
            network.train()(images(64))
    return network.eval()


@cache
def _model(stage: str) -> nn.Module:
    if stage == "network":
        return _network()
    if stage == "folded":
        return folded(_network(), images(4))
    graph = quantize.prepare(_network(), images(4), **SETTINGS)
    quantize.calibrate(graph, batches())
    return graph


def model_of(correction: Correction) -> Any:
    """A model of the stage, its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(_model(correction.stage))


def batches() -> list[Tensor]:
    return list(images(64, seed=1).split(16))


def context_of(correction: Correction, model: nn.Module, seed: int = 0) -> Context:
    reference = None
    if correction.stage == "calibrated":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = copy.deepcopy(model)
        quantize.set_phase(reference, "off")
        assert isinstance(reference, GraphModule)
    return Context(batches, X86, True, seed, reference)


def made(name: str) -> Correction:
    member = CATALOG.load(name).member
    correction = member(member.Options(**QUICK.get(name, {})))
    assert isinstance(correction, Correction)
    return correction


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def applied(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model behind a correction, and its tensors before."""
    correction = made(name)
    model = model_of(correction)
    before = tensors(model)
    correction.apply(model, context_of(correction, model, seed))
    return model, before


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(inputs)
    return found if isinstance(found, Tensor) else found[0]


def test_catalog_holds_the_corrections() -> None:
    expected = {"adaround", "batch_norm_reestimation", "bias_correction", "cross_layer_equalization", "smooth_quant"}
    assert expected <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_member_knows_its_name_and_stage(name: str) -> None:
    assert made(name).name == name
    assert made(name).stage in ("network", "folded", "calibrated")


@pytest.mark.parametrize("name", NAMES)
def test_some_tensors_change_and_the_structure_does_not(name: str) -> None:
    model, before = applied(name)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [
        key for key in before if before[key].shape != after[key].shape or before[key].dtype != after[key].dtype
    ] == []
    assert [key for key in before if not torch.equal(before[key], after[key])] != []
    assert all(bool(value.isfinite().all()) for value in after.values())
    if isinstance(model, GraphModule):
        assert model.code == model_of(made(name)).code


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_tensors(name: str) -> None:
    first, second = (applied(name)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_phases_and_modes_are_left_as_they_were(name: str) -> None:
    model, _ = applied(name)
    assert {one.phase for _, one in quantizers(model)} <= {"frozen"}
    if made(name).stage == "network":
        assert not any(one.training for one in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_float_function_stays_when_the_stage_promises_it(name: str) -> None:
    model, _ = applied(name)
    if made(name).stage == "folded":
        assert quantize.sqnr_db(logits(_network(), images(32, seed=5)), logits(model, images(32, seed=5))) > 100


@pytest.mark.parametrize("name", NAMES)
def test_int8_does_not_fall_apart(name: str) -> None:
    done = quantize.post_training(_network(), images(4), batches, corrections=[made(name)], **SETTINGS)
    (line,) = done.corrections
    assert (line.name, line.stage) == (name, made(name).stage)
    assert line.after_db > line.before_db - 5.0
    assert line.after_db > 15.0
    assert done.samples == 64


@pytest.mark.parametrize("name", NAMES)
def test_saved_state_fits_a_graph_that_was_prepared_without_the_correction(name: str) -> None:
    done = quantize.post_training(_network(), images(4), batches, corrections=[made(name)], **SETTINGS)
    state = tensors(done.graph)
    plain = quantize.prepare(_network(), images(4), **SETTINGS)
    quantize.restore(plain, state)
    assert torch.equal(logits(plain, images(16)), logits(done.graph, images(16)))
    programs = [quantize.convert(one, images(2), numerics=X86) for one in (done.graph, plain)]
    assert torch.equal(programs[0](images(16)), programs[1](images(16)))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_correct_is_no_error(name: str) -> None:
    network = odd_network("LinearOnly")
    done = quantize.post_training(network, images(4), batches, corrections=[made(name)], **SETTINGS)
    assert math.isfinite(done.corrections[0].after_db)
