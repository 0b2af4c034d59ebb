"""Networks of timm and torchvision; skipped, with the reason a user would read, where they do not load."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import BackendMissing, MismatchError, UsageError
from edgekd.models._external import out_of_place, package
from edgekd.models.timm import Timm
from edgekd.models.torchvision import Torchvision


def needs(name: str) -> None:
    try:
        package(name)
    except BackendMissing as error:
        pytest.skip(str(error))


def test_package_names_the_extra_when_it_is_missing():
    with pytest.raises(
        BackendMissing, match=r"'no_such_extra' needs the package 'no_such_extra'.*Install edgekd\[no_such_extra\]"
    ):
        package("no_such_extra")


def test_package_says_what_to_install_when_it_does_not_load(tmp_path, monkeypatch):
    (tmp_path / "built_for_another_torch.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        BackendMissing, match=r"does not load beside this torch: operator nms does not exist.*one release"
    ):
        package("built_for_another_torch")


def test_taps_keep_their_values_when_the_next_layer_worked_in_place():
    model = out_of_place(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)))
    example = torch.tensor([[-1.0, 1.0]])
    assert model(example).tolist() == [[0.0, 1.0]]
    assert example.tolist() == [[-1.0, 1.0]]


def test_timm_builds_for_the_data():
    needs("timm")
    model = Timm(Timm.Options(), "resnet10t").build(7, (1, 32, 32))
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_timm_suggests_a_name_when_unknown():
    needs("timm")
    with pytest.raises(UsageError, match=r"timm has no model 'resnet18x'.*Did you mean 'resnet18'"):
        Timm(Timm.Options(), "resnet18x").build(7, (1, 32, 32))


def test_torchvision_builds_for_the_data():
    needs("torchvision")
    model = Torchvision(Torchvision.Options(), "mobilenet_v3_small").build(7, (3, 32, 32))
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_torchvision_refuses_data_without_three_channels():
    needs("torchvision")
    with pytest.raises(MismatchError, match="takes 3 channels, the data has 1"):
        Torchvision(Torchvision.Options(), "resnet18").build(7, (1, 32, 32))


def test_torchvision_suggests_a_name_when_unknown():
    needs("torchvision")
    with pytest.raises(UsageError, match=r"torchvision has no classifier 'resnet19'.*Did you mean"):
        Torchvision(Torchvision.Options(), "resnet19").build(7, (3, 32, 32))
