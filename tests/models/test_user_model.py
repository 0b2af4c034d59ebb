from __future__ import annotations

import pytest
import torch

from edgekd.catalog import CATALOGS
from edgekd.errors import UsageError
from edgekd.models._base import ModelFactory

SOURCE = """
from torch import nn
def linear(classes, input_shape, hidden=4):
    pixels = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, classes))
def text(classes, input_shape):
    return "no module"
number = 3
"""


@pytest.fixture(autouse=True)
def _users_file(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def factory(name: str, **options: object) -> ModelFactory:
    entry = CATALOGS["models"].load(f"users_networks:{name}", allow_user_code=True)
    return entry.member(entry.member.Options(**options), entry.argument)


def test_function_is_called_with_classes_shape_and_options():
    model = factory("linear", hidden=9).build(3, (2, 4, 4))
    assert model(torch.randn(5, 2, 4, 4)).shape == (5, 3)
    assert model[1].out_features == 9


def test_error_names_the_option_when_the_function_does_not_take_it():
    with pytest.raises(UsageError, match=r"users_networks:linear.*hiden.*Correct the options"):
        factory("linear", hiden=9).build(3, (2, 4, 4))


def test_error_names_the_type_when_the_function_gives_no_module():
    with pytest.raises(UsageError, match=r"users_networks:text' must return a torch.nn.Module, got str"):
        factory("text").build(3, (2, 4, 4))


def test_error_names_the_type_when_it_is_no_function():
    with pytest.raises(UsageError, match="must be a function, got int"):
        factory("number").build(3, (2, 4, 4))


def test_user_code_is_refused_when_the_recipe_does_not_allow_it():
    with pytest.raises(UsageError, match="allow_user_code = true"):
        CATALOGS["models"].load("users_networks:linear")
