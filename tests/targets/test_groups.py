"""Fusion groups: their names, what belongs to them, and how a recipe names them."""

from __future__ import annotations

import pytest
import torch
from int8_models import FAMILIES
from torch import Tensor, nn

from edgekd import quantize
from edgekd.catalog import CATALOGS
from edgekd.errors import UsageError
from edgekd.targets._groups import Group, chosen, groups


class Branches(nn.Module):
    """Two additions in one module, a layer used twice, and a functional pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        once = self.act(self.first(x))
        twice = self.first(once) + once
        return self.head((twice + x).mean((2, 3)))


def found(network: nn.Module, size: int = 16) -> list[Group]:
    return groups(quantize.folded(network.eval(), torch.randn(2, 3, size, size)))


def test_names_are_module_paths_and_unique():
    names = [group.name for group in found(Branches())]
    assert names == ["first", "first_1", "add", "add_1", "global_average_pool", "head"]


def test_a_group_ends_behind_its_relu_and_a_shared_result_does_not():
    by_name = {group.name: group for group in found(Branches())}
    assert by_name["first"].end.target is torch.ops.aten.relu.default
    assert by_name["first_1"].end is by_name["first_1"].node


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_unique_names_that_are_paths_of_its_modules(family: str):
    member = CATALOGS["models"].load(family).member
    network = member(member.Options(**FAMILIES[family])).build(10, (3, 32, 32))
    listed = found(network, 32)
    names = [group.name for group in listed]
    assert len(set(names)) == len(names)
    modules = dict(network.named_modules())
    for group in listed:
        if group.operator.role == "weighted" and "shortcut" not in group.name:
            # a normalisation that stands alone becomes a convolution under its own name
            assert isinstance(modules[group.name], (nn.Conv2d, nn.Linear, nn.BatchNorm2d)), group.name


def test_names_match_exactly_by_module_and_by_pattern():
    listed = found(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), nn.Flatten(), nn.Linear(1024, 2))
    )
    assert chosen(listed, ["0.1"]) == {"0.1"}
    assert chosen(listed, ["0"]) == {"0.0", "0.1"}
    assert chosen(listed, ["*.0", "2"]) == {"0.0", "2"}
    assert chosen(listed, ["*"]) == {"0.0", "0.1", "2"}


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"quantize.float_layers: no layer 'haed'.*Did you mean 'head'"):
        chosen(found(Branches()), ["haed"])
