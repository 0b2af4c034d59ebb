"""The weighted operators of an exported graph: their parameters channel by channel, and running a part of a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from edgekd.calibration._fake_quantize import WeightQuantizer
from edgekd.errors import DataError

__all__ = ["Layer", "as_graph", "layers", "limited", "watch"]

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.conv1d.default, _aten.conv2d.default}


@dataclass(frozen=True)
class Layer:
    """A convolution or fully connected layer whose parameters nobody else reads.

    Args:
        node: the operator.
        weight: shape (O, I / groups, ...).
        bias: shape (O,), or None.
        groups: of a convolution; 1 otherwise.
        quantizer: the weight's; None in a graph without quantizers, or in a layer that stays float.
    """

    node: Node
    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int
    quantizer: WeightQuantizer | None

    @property
    def inputs(self) -> int:
        """I, the channels that it reads."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def outputs(self) -> int:
        """O, the channels that it gives."""
        return int(self.weight.shape[0])

    @property
    def convolution(self) -> bool:
        """Whether channels are the second axis of its data; they are the last one otherwise."""
        return self.node.target in _CONVOLUTIONS

    @property
    def depthwise(self) -> bool:
        """Whether each channel is read by one channel only."""
        return self.groups == self.inputs == self.outputs > 1

    def by_input(self) -> Tensor:
        """The weight as (groups, O / groups, I / groups, kernel): a view."""
        weight = self.weight.detach()
        return weight.view(self.groups, -1, weight.shape[1], weight[0, 0].numel())

    def output_magnitudes(self) -> Tensor:
        """Largest magnitude of each output channel's weights, shape (O,)."""
        return self.weight.detach().abs().flatten(1).amax(1)

    def input_magnitudes(self) -> Tensor:
        """Largest magnitude of the weights that read each input channel, shape (I,)."""
        return self.by_input().abs().amax((1, 3)).flatten()

    @torch.no_grad()
    def scale_outputs(self, factor: Tensor) -> None:
        """Multiply output channels, shape (O,)."""
        self.weight.mul_(factor.view(-1, *[1] * (self.weight.ndim - 1)))
        if self.bias is not None:
            self.bias.mul_(factor)

    @torch.no_grad()
    def scale_inputs(self, factor: Tensor) -> None:
        """Multiply the weights that read each input channel, shape (I,)."""
        whole = factor.view(self.groups, 1, -1, 1).expand_as(self.by_input())
        self.weight.mul_(whole.reshape(self.weight.shape))

    def channel_means(self, values: Tensor) -> Tensor:
        """Mean of an output of this layer over everything but its channels, shape (O,)."""
        axis = 1 if self.convolution else values.ndim - 1
        return values.mean([one for one in range(values.ndim) if one != axis])


def as_graph(model: nn.Module) -> GraphModule:
    """The model as the graph that a correction behind the export is given."""
    if not isinstance(model, GraphModule):
        raise TypeError(f"this correction changes an exported graph, got a {type(model).__name__}")
    return model


def layers(graph: GraphModule) -> list[Layer]:
    """Every layer with parameters of its own, in the order in which they run."""
    parameters = dict(graph.named_parameters())
    reads: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            reads[str(node.target)] = reads.get(str(node.target), 0) + len(node.users)
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _CONVOLUTIONS | {_aten.linear.default}:
            layer = _layer(graph, node, parameters, reads)
            if layer is not None:
                found.append(layer)
    return found


def _layer(graph: GraphModule, node: Node, parameters: dict[str, nn.Parameter], reads: dict[str, int]) -> Layer | None:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    quantizer = None
    if isinstance(weight, Node) and weight.op == "call_module" and len(weight.users) == 1:
        module = graph.get_submodule(str(weight.target))
        quantizer, weight = module if isinstance(module, WeightQuantizer) else None, weight.args[0]
    names = [str(one.target) for one in (weight, bias) if isinstance(one, Node)]
    if not names or any(name not in parameters or reads.get(name) != 1 for name in names):
        return None
    # of convolution(data, weight, bias, stride, padding, dilation, groups)
    groups = int(str(node.args[6])) if node.target in _CONVOLUTIONS and len(node.args) > 6 else 1
    return Layer(node, parameters[names[0]], parameters[names[1]] if len(names) > 1 else None, groups, quantizer)


def watch(graph: GraphModule, inputs: Tensor, see: Callable[[Node, Tensor], None], *, nodes: Collection[Node]) -> None:
    """Run a graph without gradient as far as the last of some nodes, and show each one's value when it is there.

    Args:
        graph: prepared or not.
        inputs: one batch.
        see: called with each node and its value.
        nodes: of this graph.
    """
    try:
        with torch.no_grad():
            _Watcher(graph, see, nodes).run(inputs)
    except _Seen:
        return


class _Seen(Exception):
    """Everything that was asked for has been shown."""


class _Watcher(Interpreter):
    def __init__(self, graph: GraphModule, see: Callable[[Node, Tensor], None], nodes: Collection[Node]) -> None:
        super().__init__(graph)
        self._see, self._waiting = see, set(nodes)

    def run_node(self, node: Node) -> object:
        value = super().run_node(node)
        if node in self._waiting:
            self._see(node, value)
            self._waiting.remove(node)
            if not self._waiting:
                raise _Seen
        return value


def limited(batches: Iterable[Tensor], samples: int) -> Iterator[Tensor]:
    """The first samples of the data, in its batches.

    Raises:
        DataError: there are none.
    """
    left = samples
    for batch in batches:
        if left <= 0:
            break
        if len(batch):
            yield batch[:left]
            left -= len(batch)
    if left == samples:
        raise DataError("A correction saw no data. Give quantize.calibration_samples at least one sample.")
