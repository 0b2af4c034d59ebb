from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import MismatchError, UsageError
from edgekd.taps import Tapped, TupleOutputs, logits_of, named_outputs, probe, tapped


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.pair = Pair()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(self.pair(inputs)[0]))


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


def test_outputs_are_those_of_the_modules_when_tapped():
    model, example = network().eval(), torch.randn(2, 1, 4, 4)
    logits, relu, conv = Tapped(model, ["2", "0"])(example)
    torch.testing.assert_close(conv, model[0](example))
    torch.testing.assert_close(relu, model[2](model[1](model[0](example))))
    torch.testing.assert_close(logits, model(example))


def test_gradient_flows_through_a_tap():
    model = network()
    Tapped(model, ["0"])(torch.randn(2, 1, 4, 4))[1].sum().backward()
    assert model[0].weight.grad is not None
    assert model[4].weight.grad is None


def test_nothing_stays_on_the_model_when_the_forward_ends_or_fails():
    model = network()
    wrapped = Tapped(model, ["0", "4"])
    wrapped(torch.randn(2, 1, 4, 4))
    with pytest.raises(RuntimeError):
        wrapped(torch.randn(2, 1, 9, 9))
    assert all(len(module._forward_hooks) == 0 for module in model.modules())
    assert list(model.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize(("name", "expected"), [("layr", "Did you mean 'layer'"), ("", "no module ''")])
def test_error_suggests_a_module_when_the_tap_is_unknown(name, expected):
    with pytest.raises(UsageError, match=expected):
        Tapped(Twice(), [name])


@pytest.mark.parametrize(
    ("name", "expected"), [("layer", "ran 2 times"), ("unused", "ran 0 times"), ("pair", "gives a tuple, not a tensor")]
)
def test_error_names_the_tap_when_it_is_not_one_tensor(name, expected):
    with pytest.raises(UsageError, match=f"Tap '{name}' {expected}"):
        Tapped(Twice(), [name])(torch.randn(2, 3))


def test_exported_graph_equals_the_wrapper_when_named():
    wrapped = Tapped(network().eval(), ["2", "0"])
    example = torch.randn(2, 1, 4, 4)
    graph = TupleOutputs(torch.export.export(wrapped, (example,)).module(), ["2", "0"])
    for ours, theirs in zip(wrapped(example), graph(example), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tuple_outputs_refuses_when_the_count_differs():
    graph = TupleOutputs(Pair(), ["a", "b"])
    with pytest.raises(MismatchError, match=r"returned 2 tensors, but 3 were named: logits and \['a', 'b'\]"):
        graph(torch.randn(1, 3))


def test_tapped_wraps_once_and_drops_repeats():
    model = network()
    wrapped = tapped(model, ["0", "2", "0"])
    assert wrapped.names == ("0", "2")
    assert tapped(wrapped, ["2"]) is wrapped
    with pytest.raises(UsageError, match="wrapped without the tap '3'"):
        tapped(wrapped, ["3"])


def test_named_outputs_splits_logits_and_taps():
    wrapped = tapped(network().eval(), ["0"])
    result = wrapped(torch.randn(2, 1, 4, 4))
    logits, taps = named_outputs(wrapped, result)
    assert logits is result[0]
    assert list(taps) == ["0"]
    assert logits_of(result) is logits_of(logits) is logits


def test_probe_leaves_no_trace_when_the_model_is_training():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    (output,) = probe(tapped(model, ()), torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert not output.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
