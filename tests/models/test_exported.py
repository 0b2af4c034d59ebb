"""A teacher from a program of torch.export."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export, save

from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.models.exported import Exported
from edgekd.models.tiny import Tiny
from edgekd.taps import Tapped

CLASSES, SHAPE = 3, (1, 8, 8)


def original() -> nn.Module:
    torch.manual_seed(0)
    return Tiny(Tiny.Options(width=4)).build(CLASSES, SHAPE).eval()


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network with any batch up to 4, and with a batch of 2."""
    folder = tmp_path_factory.mktemp("programs")
    found = {name: folder / f"{name}.pt2" for name in ("any", "two")}
    save(export(original(), (images(2),), dynamic_shapes=({0: Dim("batch", min=2, max=4)},)), found["any"])
    save(export(original(), (images(2),)), found["two"])
    return found


def built(path: Path, classes: int = CLASSES, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    return Exported(Exported.Options(), str(path)).build(classes, shape)


@pytest.mark.parametrize("name", ["any", "two"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_answers_are_those_of_the_network_when_the_batch_is_bounded_or_fixed(saved, name, count):
    with torch.no_grad():
        torch.testing.assert_close(built(saved[name])(images(count)), original()(images(count)))


def test_it_is_frozen_and_its_modules_can_be_tapped(saved):
    network = built(saved["any"])
    logits, features = Tapped(network, ["program.layer1"])(images(3))
    assert not logits.requires_grad
    torch.testing.assert_close(features, Tapped(original(), ["layer1"])(images(3))[1].detach())
    assert not network.train().training
    assert copy.deepcopy(network) is network
    assert network.parameter_count == sum(parameter.numel() for parameter in original().parameters())


def test_it_names_both_sides_when_something_does_not_fit(saved):
    with pytest.raises(MismatchError, match=r"takes an input of shape \(.*, 1, 8, 8\), the data gives \(B, 3, 8, 8\)"):
        built(saved["any"], shape=(3, 8, 8))
    with pytest.raises(MismatchError, match="gives 3 classes, the data has 5"):
        built(saved["any"], classes=5)
    with pytest.raises(MismatchError, match=r"built for inputs of shape \(B, 1, 8, 8\)"):
        built(saved["two"])(torch.zeros(2, 1, 9, 9))


def test_it_refuses_a_program_that_trains(tmp_path):
    save(export(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train(), (images(2),)), tmp_path / "trains.pt2")
    with pytest.raises(MismatchError, match=r"was exported in training mode \('dropout.*Call model.eval\(\)"):
        built(tmp_path / "trains.pt2")


def test_it_refuses_programs_of_another_kind(tmp_path):
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    save(export(Two(), (images(2), images(2))), tmp_path / "two.pt2")
    with pytest.raises(MismatchError, match="has 2 inputs"):
        built(tmp_path / "two.pt2")
    save(export(nn.Flatten(), (torch.zeros(2, *SHAPE, dtype=torch.uint8),)), tmp_path / "bytes.pt2")
    with pytest.raises(MismatchError, match=r"takes torch.uint8"):
        built(tmp_path / "bytes.pt2")


def test_it_refuses_what_is_no_program(tmp_path):
    with pytest.raises(UsageError, match=r"Write exported:PATH.pt2"):
        Exported(Exported.Options(), "").build(CLASSES, SHAPE)
    with pytest.raises(ModelFileError, match=r"gone.pt2 does not exist"):
        built(tmp_path / "gone.pt2")
    (tmp_path / "broken.pt2").write_bytes(b"not a program")
    with pytest.raises(ModelFileError, match=r"cannot read it as a program of torch.export"):
        built(tmp_path / "broken.pt2")
