"""Biases corrected by what quantization moved the mean of each channel."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekd import spec
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.corrections._layers import Layer, as_graph, layers, limited, watch

__all__ = ["BiasCorrection"]


class BiasCorrection(Correction):
    """Give every quantized layer's output the mean that it had in float, channel by channel.

    Rounding weights moves the mean of an output by the weights' error times the mean input, a constant that the bias
    can take back. `one_pass` takes exactly this: the weights' error times the quantized graph's mean input,
    all layers in one pass over the data. `sequential` compares the means of the two graphs' outputs, layer after layer
    with those before it corrected, a pass for each; this sees the error of the activations as well. What is held
    is one sample's inputs of each layer, or one number for each channel.

    Reference: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical).
    """

    class Options(spec.Options):
        """Options of bias correction."""

        mode: Literal["one_pass", "sequential"] = Field(
            "one_pass", description="sequential costs a pass for each layer"
        )
        samples: int = Field(256, ge=1, description="of the calibration data, at most")

    stage: ClassVar[Stage] = "calibrated"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> None:
        """Correct every quantized layer that has a bias, in place.

        Raises:
            DataError: there is no data.
        """
        graph = as_graph(model)
        reference = as_graph(cast(nn.Module, context.reference))
        options = cast(BiasCorrection.Options, self.options)
        before = {layer.node.name: layer for layer in layers(reference)}
        pairs = [
            (layer, before[layer.node.name])
            for layer in layers(graph)
            if layer.bias is not None and layer.quantizer is not None
        ]
        if options.mode == "one_pass":
            _by_mean_inputs(graph, pairs, context, options.samples)
        else:
            _by_mean_outputs(graph, reference, pairs, context, options.samples)


def _by_mean_inputs(graph: GraphModule, pairs: list[tuple[Layer, Layer]], context: Context, samples: int) -> None:
    """b -= mean of (q(W) - W) applied to the mean input: both are linear, so this is the mean of the products."""
    means: dict[Node, _Mean] = {}

    def see(node: Node, value: Tensor) -> None:
        means.setdefault(node, _Mean()).add(value)

    data = [cast(Node, layer.node.args[0]) for layer, _ in pairs]
    for batch in limited(context.batches(), samples):
        watch(graph, batch, see, nodes=data)
    for (layer, before), node in zip(pairs, data, strict=True):
        if layer.quantizer is None or layer.bias is None:
            continue
        error = layer.quantizer(layer.weight) - before.weight
        # a mean sample keeps its position, so that padding at the border counts as it does in the layer
        moved = layer.node.target(means[node].value[None], error, None, *layer.node.args[3:])  # type: ignore[operator]
        layer.bias.sub_(layer.channel_means(moved))


def _by_mean_outputs(
    graph: GraphModule, reference: GraphModule, pairs: list[tuple[Layer, Layer]], context: Context, samples: int
) -> None:
    """b += mean float output - mean quantized output, in the order in which the layers run."""
    wanted = _output_means(reference, [before for _, before in pairs], context, samples)
    for layer, before in pairs:
        found = _output_means(graph, [layer], context, samples)
        if layer.bias is not None:
            layer.bias.add_(wanted[before.node] - found[layer.node])


def _output_means(graph: GraphModule, which: list[Layer], context: Context, samples: int) -> dict[Node, Tensor]:
    """Mean of each channel of some layers' outputs, shape (O,) each."""
    by_node = {layer.node: layer for layer in which}
    means: dict[Node, _Mean] = {node: _Mean() for node in by_node}

    def see(node: Node, value: Tensor) -> None:
        means[node].add(by_node[node].channel_means(value)[None].expand(len(value), -1))

    for batch in limited(context.batches(), samples):
        watch(graph, batch, see, nodes=list(by_node))
    return {node: mean.value for node, mean in means.items()}


class _Mean:
    """Mean over samples, one batch after the other, in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0
        self._dtype = torch.float32

    def add(self, values: Tensor) -> None:
        whole = values.sum(0, dtype=torch.float64)
        self._sum = whole if self._sum is None else self._sum + whole
        self._count += len(values)
        self._dtype = values.dtype

    @property
    def value(self) -> Tensor:
        """The mean, in the element type of what was added."""
        if self._sum is None:
            raise ValueError("nothing was added")
        return (self._sum / self._count).to(self._dtype)
