"""The normal form of exported graphs: each rewrite keeps what is computed, and leaves alone what it must."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd._normal_form import normalise
from edgekd.quantize import capture


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def inputs() -> Tensor:
    return torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 4


def normalised(module: nn.Module) -> list[str]:
    """The operators of a module's graph after normalising, which must compute the same."""
    graph = capture(module, inputs())
    normalise(graph)
    graph.graph.lint()
    with torch.no_grad():
        torch.testing.assert_close(graph(inputs())[0], module.eval()(inputs()), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(graph(inputs()[:1])[0], module(inputs()[:1]), rtol=1e-6, atol=1e-6)
    _has_shapes(graph)
    return [str(node.target).removeprefix("aten.") for node in graph.graph.nodes if node.op == "call_function"]


def _has_shapes(graph: GraphModule) -> None:
    assert all("val" in node.meta for node in graph.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda x: F.relu(x), ["relu.default"]),
        (lambda x: F.relu_(x + 1), ["add.Tensor", "relu.default"]),
        (lambda x: x.clamp(min=0), ["relu.default"]),
        (lambda x: x.clamp_min(0.0), ["relu.default"]),
        (lambda x: torch.clamp(x, 0), ["relu.default"]),
        (lambda x: x.clamp(0, 6), ["hardtanh.default"]),
        (lambda x: torch.clamp(x, min=0.0, max=2.5), ["hardtanh.default"]),
        (lambda x: F.relu6(x), ["hardtanh.default"]),
        (lambda x: F.relu6(x + 1, inplace=True), ["add.Tensor", "hardtanh.default"]),
        (lambda x: F.hardtanh(x, 0.0, 6.0), ["hardtanh.default"]),
        (lambda x: F.silu(x), ["sigmoid.default", "mul.Tensor"]),
        (lambda x: x.mean((2, 3)), ["adaptive_avg_pool2d.default", "flatten.using_ints"]),
        (lambda x: x.mean([-1, -2], keepdim=True), ["adaptive_avg_pool2d.default"]),
        (lambda x: x.mean((2, 3), dtype=torch.float32), ["adaptive_avg_pool2d.default", "flatten.using_ints"]),
        (lambda x: F.dropout(x, 0.3, training=False).contiguous().relu(), ["relu.default"]),
        (lambda x: F.relu(F.max_pool2d(x, 2)), ["relu.default", "max_pool2d.default"]),
        (lambda x: F.relu6(F.max_pool2d(x, 3, 2, 1)), ["hardtanh.default", "max_pool2d.default"]),
    ],
)
def test_operator_takes_its_normal_form(function: Callable[[Tensor], Tensor], operators: list[str]) -> None:
    assert normalised(_Function(function)) == operators


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda x: x.clamp(-1, 1), ["clamp.default"]),
        (lambda x: x.clamp(max=3.0), ["clamp.default"]),
        (lambda x: x.clamp_min(0.5), ["clamp_min.default"]),
        (lambda x: F.hardtanh(x), ["hardtanh.default"]),
        (lambda x: x.mean((1, 2)), ["mean.dim"]),
        (lambda x: x.mean(3), ["mean.dim"]),
        (lambda x: x.flatten(2).mean((1, 2)), ["flatten.using_ints", "mean.dim"]),
        (lambda x: x.mean((2, 3), dtype=torch.float64), ["mean.dim"]),
        (lambda x: F.gelu(F.max_pool2d(x, 2)), ["max_pool2d.default", "gelu.default"]),
    ],
)
def test_operator_stays_when_it_is_another_one(function: Callable[[Tensor], Tensor], operators: list[str]) -> None:
    assert normalised(_Function(function)) == operators


def test_max_pool_stays_before_the_activation_when_somebody_else_reads_it() -> None:
    def function(x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 2)
        return F.relu(pooled) + pooled

    assert normalised(_Function(function)) == ["max_pool2d.default", "relu.default", "add.Tensor"]


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "operator"),
    [
        (3, "same", 1, "conv2d.default"),
        ((1, 5), "same", (1, 2), "conv2d.default"),
        (2, "same", 2, "conv2d.default"),
        (3, "valid", 2, "conv2d.default"),
        (2, "same", 1, "conv2d.padding"),  # one side more than the other: no numbers say that
    ],
)
def test_padding_by_name_becomes_numbers(kernel: int, padding: str, dilation: int, operator: str) -> None:
    torch.manual_seed(0)
    assert normalised(nn.Conv2d(4, 5, kernel, padding=padding, dilation=dilation)) == [operator]


def test_who_reads_after_a_write_in_place_reads_what_was_written() -> None:
    def function(x: Tensor) -> Tensor:
        x = x * 1.5
        before = x.sum((1, 2, 3), keepdim=True)
        y = x.relu_()
        x += 1
        return x + y + before

    operators = normalised(_Function(function))
    assert not any(one.split(".")[0].endswith("_") for one in operators)


@pytest.mark.parametrize("base_first", [True, False])
def test_write_through_a_view_is_left_alone(base_first: bool) -> None:
    def function(x: Tensor) -> Tensor:
        x = x * 1.5
        view = x[:, :2]
        if base_first:
            x.relu_()
        else:
            view.relu_()
        return x + view.sum(1, keepdim=True)

    assert "relu_.default" in normalised(_Function(function))
