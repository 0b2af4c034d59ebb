"""Ranges that learn by gradient, for all quantizers of a prepared graph at once.

Learning starts from the calibrated ranges and, for weights, from the scales that follow them: the first step computes
what the calibrated graph computes. What learns are parameters named `gain` and `shift`, there only between
`learn_ranges` and `settle_ranges`; the state of a settled graph has the names that a tracked one has, and `scale` for
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd.calibration._fake_quantize import ActivationQuantizer, WeightQuantizer, quantizers
from edgekd.calibration._rounding import moved_ends, scaled

__all__ = [
    "learn_ranges",
    "match_scales",
    "quantized_weights",
    "settle_ranges",
    "settled_state",
]


def learn_ranges(graph: GraphModule, *, activations: bool = True, weights: bool = True, rate: float = 1.0) -> None:
    """Give the ranges of a calibrated graph parameters, which train in phase `learn`.

    The range of the graph's input stays as calibrated: data do not adapt to it, and its gradient would have to come
    back through the whole first layer. The parameters are relative to the ranges at the start. An adaptive optimizer
    (AdamW) therefore moves a scale by about `rate` times its learning rate of itself in a step; plain gradient descent
    moves it by what LSQ says.

    Args:
        graph: prepared and calibrated.
        activations: learn the scales of activations, and the offsets of those that reach to both sides of 0.
        weights: learn a scale for each output channel; otherwise scales follow the weights.
        rate: learning rate of the scales over that of the weights, > 0.
    """
    if activations:
        of_input = {str(user.target) for node in graph.graph.nodes if node.op == "placeholder" for user in node.users}
        for name, quantizer in quantizers(graph):
            if isinstance(quantizer, ActivationQuantizer) and name not in of_input:
                quantizer.learn()
    if weights:
        for quantizer, weight in quantized_weights(graph):
            quantizer.learn(weight)
    for _, quantizer in quantizers(graph):
        quantizer.own_rate = rate


def settle_ranges(graph: nn.Module) -> None:
    """Keep what the ranges learned as it is, and remove their parameters."""
    for _, quantizer in quantizers(graph):
        quantizer.settle()


def quantized_weights(graph: GraphModule) -> Iterator[tuple[WeightQuantizer, nn.Parameter]]:
    """Every weight quantizer of a prepared graph with the weight that it reads."""
    parameters = dict(graph.named_parameters())
    for node in graph.graph.nodes:
        if node.op == "call_module":
            quantizer = graph.get_submodule(str(node.target))
            if isinstance(quantizer, WeightQuantizer):
                yield quantizer, parameters[str(node.args[0].target)]


def settled_state(graph: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of this graph as if its ranges had been settled: without the names that only learning has.

    Args:
        graph: prepared; learning or not.
        state: of a graph that was prepared equally, learning or not; it is not changed.
    """
    settled = dict(state)
    for name, quantizer in _by_every_name(graph):
        gain, shift = settled.pop(f"{name}.gain", None), settled.pop(f"{name}.shift", None)
        if gain is None:
            continue
        if isinstance(quantizer, ActivationQuantizer):
            ends = f"{name}.minimum", f"{name}.maximum"
            low, high = moved_ends(settled[ends[0]], settled[ends[1]], gain, shift)
            settled |= {ends[0]: low, ends[1]: high}
        else:
            settled[f"{name}.scale"] = scaled(settled[f"{name}.scale"], gain)
    return settled


def match_scales(graph: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every weight quantizer the learned scales that a settled state has for it, and none where it has none."""
    for name, quantizer in _by_every_name(graph):
        if isinstance(quantizer, WeightQuantizer):
            saved = state.get(f"{name}.scale")
            quantizer.scale = None if saved is None else saved.detach().clone()


def _by_every_name(graph: nn.Module) -> Iterator[tuple[str, ActivationQuantizer | WeightQuantizer]]:
    """The quantizers under all their names: one that serves two tensors has two, and a state dict has both."""
    for name, module in graph.named_modules(remove_duplicate=False):
        if isinstance(module, (ActivationQuantizer, WeightQuantizer)):
            yield name, module
