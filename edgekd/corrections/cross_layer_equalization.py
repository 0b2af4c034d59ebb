"""Weights of neighbouring layers rescaled so that their channels have like ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekd import spec
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.corrections._chains import Link, chains
from edgekd.corrections._layers import as_graph, watch
from edgekd.errors import DataError

__all__ = ["CrossLayerEqualization", "equalizing"]

_DONE = 1e-3  # a sweep that changes no factor by more than this has converged


def equalizing(magnitudes: Sequence[Tensor]) -> list[Tensor]:
    """By what the channels between the layers of a chain are divided, so that all layers get the same ranges.

    Args:
        magnitudes: of each layer the largest magnitude of every channel's weights, shape (C,): by output channel of the
            first, of each depthwise one between, by input channel of the last.

    Returns:
        One factor of shape (C,) between each two layers. For two layers s = sqrt(r1 r2) / r2, after which both ranges
        are sqrt(r1 r2); for more, all become the geometric mean. 1 where a range is 0.

    Reference: Nagel, van Baalen, Blankevoort, Welling, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", 2019, arXiv:1906.04721, equation 11.

    >>> equalizing([torch.tensor([8.0]), torch.tensor([2.0])])  # sqrt(16) / 2: both become 4
    [tensor([2.])]
    """
    ranges = torch.stack(list(magnitudes)).double()
    alive = (ranges > 0).all(0)
    logs = torch.where(alive, ranges, torch.ones_like(ranges)).log()
    # the product of the first j ranges over the j-th power of their mean
    factors = (logs - logs.mean(0)).cumsum(0)[:-1].exp()
    return [factor.to(magnitudes[0].dtype) for factor in factors]


class CrossLayerEqualization(Correction):
    """Give the channels of neighbouring layers like ranges; the float function stays what it is.

    A channel that is divided by s in one layer is multiplied by s in the next; ReLU and pooling between them let a
    positive factor through. ReLU6 does so only for channels that stay below 6, before and after: a channel that
    the calibration data brings near it keeps its scale. A channel that leaves the chain (an addition, a tap,
    a second reader) is left alone. Of most use where one scale serves a whole tensor: activations always, weights on
    some targets.

    Reference: see `equalizing`.
    """

    class Options(spec.Options):
        """Options of cross-layer equalization."""

        sweeps: int = Field(20, ge=1, description="over the whole network, at most; it stops when nothing changes")
        headroom: float = Field(1.25, ge=1.0, description="how far below a ReLU6's bound a channel must have stayed")

    stage: ClassVar[Stage] = "folded"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> None:
        """Rescale every chain, in place.

        Raises:
            DataError: there is a ReLU6, and no data to see what reaches it.
        """
        options, graph = cast(CrossLayerEqualization.Options, self.options), as_graph(model)
        found = chains(graph)
        reached = _reached(graph, found, context)
        for _ in range(options.sweeps):
            moved = [_equalize(chain, reached, options.headroom) for chain in found]
            if max(moved, default=0.0) < _DONE:
                break


def _equalize(chain: list[Link], reached: dict[Node, Tensor], headroom: float) -> float:
    """Rescale one chain; gives the largest change of a channel, as the logarithm of its factor."""
    magnitudes = [chain[0].first.output_magnitudes(), *(link.second.input_magnitudes() for link in chain)]
    largest = 0.0
    for link, factor in zip(chain, equalizing(magnitudes), strict=True):
        for bound in link.bounds:
            room = bound.high / headroom
            seen = reached[bound.source]
            # never so small a factor that the channel would be cut off, and none for one that is near it now
            factor = torch.where(seen < room, torch.maximum(factor, seen / room), torch.ones_like(factor))
        for bound in link.bounds:
            reached[bound.source] /= factor
        link.first.scale_outputs(factor.reciprocal())
        link.second.scale_inputs(factor)
        largest = max(largest, float(factor.log().abs().max()))
    return largest


def _reached(graph: GraphModule, found: list[list[Link]], context: Context) -> dict[Node, Tensor]:
    """Largest value of each channel in front of every ReLU6, shape (C,) each, over the calibration data."""
    axes = {
        bound.source: 1 if link.first.convolution else -1 for chain in found for link in chain for bound in link.bounds
    }
    reached: dict[Node, Tensor] = {}

    def see(node: Node, value: Tensor) -> None:
        largest = value.movedim(axes[node], 0).flatten(1).amax(1).clamp(min=0.0)
        reached[node] = torch.maximum(reached[node], largest) if node in reached else largest

    if axes:
        for batch in context.batches():
            watch(graph, batch, see, nodes=list(axes))
        if not reached:
            raise DataError(
                "cross_layer_equalization saw no data, and needs some because of ReLU6. Give"
                " quantize.calibration_samples at least one sample."
            )
    return reached
