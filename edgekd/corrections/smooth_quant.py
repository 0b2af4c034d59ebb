"""Outliers of a layer normalisation's channels moved into the weights behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekd import spec
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.corrections._layers import Layer, as_graph, layers, watch
from edgekd.errors import DataError

__all__ = ["SmoothQuant", "smoothing"]

_aten = torch.ops.aten


def smoothing(activations: Tensor, weights: Tensor, *, alpha: float) -> Tensor:
    """By what each channel's activations are divided and its weights multiplied.

    Args:
        activations: largest magnitude of each channel's activations, shape (C,).
        weights: largest magnitude of the weights that read it, shape (C,).
        alpha: how much of the difficulty moves to the weights, in [0, 1].

    Returns:
        max|X|^alpha / max|W|^(1 - alpha), shape (C,); 1 where either is 0.

    Reference: Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for
    Large Language Models", 2022, arXiv:2211.10438, equation 4.

    >>> smoothing(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 4.0]), alpha=0.5)  # 4 / 1 and 1 / 2
    tensor([4.0000, 0.5000])
    """
    factor = activations.pow(alpha) / weights.pow(1.0 - alpha)
    return torch.where((activations > 0) & (weights > 0), factor, torch.ones_like(factor))


class SmoothQuant(Correction):
    """Make the channels of a layer normalisation's result alike, for one scale serves them all.

    Transformers have a few channels of activations that are a hundred times larger than the rest. Dividing a channel in
    the normalisation's affine part and multiplying the weights that read it leaves the function as it is. Done
    where fully connected layers alone read the normalisation.

    Reference: see `smoothing`.
    """

    class Options(spec.Options):
        """Options of `smoothing`."""

        alpha: float = Field(0.5, ge=0.0, le=1.0, description="share of the difficulty that moves to the weights")

    stage: ClassVar[Stage] = "folded"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> None:
        """Rescale every layer normalisation that allows it, in place."""
        graph = as_graph(model)
        found = list(_normalisations(graph))
        if not found:
            return
        largest = _largest(graph, [node for node, _, _ in found], context)
        for node, affine, readers in found:
            weights = torch.stack([layer.input_magnitudes() for layer in readers]).amax(0)
            factor = smoothing(largest[node], weights, alpha=cast(SmoothQuant.Options, self.options).alpha)
            for parameter in affine:
                parameter.div_(factor)
            for layer in readers:
                layer.scale_inputs(factor)


def _normalisations(graph: GraphModule) -> Iterator[tuple[Node, list[nn.Parameter], list[Layer]]]:
    """Layer normalisations over the last axis, with their affine parameters and the layers that read them."""
    parameters = dict(graph.named_parameters())
    by_node = {layer.node: layer for layer in layers(graph) if not layer.convolution}
    for node in graph.graph.nodes:
        if node.target is not _aten.layer_norm.default or len(node.args[1]) != 1:
            continue
        affine = [one for one in node.args[2:4] if isinstance(one, Node)]
        alone = all(one.op == "get_attr" and str(one.target) in parameters and len(one.users) == 1 for one in affine)
        read = [by_node[user] for user in node.users if user in by_node and user.args[0] is node]
        if affine and affine[0] is node.args[2] and alone and len(read) == len(node.users):
            yield node, [parameters[str(one.target)] for one in affine], read


def _largest(graph: GraphModule, nodes: list[Node], context: Context) -> dict[Node, Tensor]:
    """Largest magnitude of each channel at some nodes, shape (C,) each, over the calibration data."""
    largest: dict[Node, Tensor] = {}

    def see(node: Node, value: Tensor) -> None:
        found = value.abs().flatten(0, -2).amax(0)
        largest[node] = torch.maximum(largest[node], found) if node in largest else found

    for batch in context.batches():
        watch(graph, batch, see, nodes=nodes)
    if not largest:
        raise DataError("smooth_quant saw no data. Give quantize.calibration_samples at least one sample.")
    return largest
