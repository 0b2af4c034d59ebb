"""Each weight rounded up or down so that its layer's outputs stay, which is not always to the nearest."""

from __future__ import annotations

import math
from operator import mul
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekd import spec
from edgekd.calibration._fake_quantize import WeightQuantizer
from edgekd.calibration._pair_sums import LARGEST_SUM, crowded, largest_pair
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.corrections._layers import Layer, as_graph, layers, limited, watch
from edgekd.corrections._rounding import Bounds, Problem, Schedule, rounded_up

__all__ = ["AdaRound", "round_weights"]

_aten = torch.ops.aten

_LARGEST = 2**23  # numbers of a layer's inputs that are held at a time, of its own channels and groups


class AdaRound(Correction):
    """Learn the rounding of every quantized weight, layer after layer.

    Errors of rounding add up in an output; which of them cancel depends on how the inputs go together. For each layer,
    in the order in which they run, the rounding is fitted so that the layer, fed by the quantized network as it is by
    now, gives what the float layer gives in the float network, behind its ReLU if it has one (the asymmetric
    variant of the paper). The weights become exact codes times their scale, and the scales stay what they were. One
    layer's inputs at `positions` random places are all that is held at a time.

    Reference: see `edgekd.corrections._rounding`.
    """

    class Options(spec.Options):
        """Options of AdaRound."""

        iterations: int = Field(1000, ge=1, description="optimisation steps of each layer")
        samples: int = Field(256, ge=1, description="of the calibration data, at most")
        positions: int = Field(4096, ge=1, description="outputs of each channel that a layer is fitted to")
        batch: int = Field(256, ge=1, description="positions of one step")
        rate: float = Field(0.01, gt=0.0, description="step size")
        weight: float = Field(0.01, ge=0.0, description="of the term that drives every weight to one side")

    stage: ClassVar[Stage] = "calibrated"

    @torch.no_grad()
    def apply(self, model: nn.Module, context: Context) -> None:
        """Replace the weights of every quantized layer by rounded ones, in place.

        Raises:
            DataError: there is no data.
        """
        options = cast(AdaRound.Options, self.options)
        graph, reference = as_graph(model), as_graph(cast(nn.Module, context.reference))
        count = sum(len(batch) for batch in limited(context.batches(), options.samples))
        schedule = Schedule(options.iterations, options.batch, options.rate, options.weight)
        before = {layer.node.name: layer for layer in layers(reference)}
        for index, layer in enumerate(layers(graph)):
            if layer.quantizer is None:
                continue
            twin, seed = before[layer.node.name], context.seed + index
            places = min(options.positions, _LARGEST // layer.weight[0].numel())
            picker = _Picker(math.ceil(places / count), seed)
            problem = _problem(
                layer,
                twin,
                inputs=picker.collect(graph, layer, context, options.samples),
                wanted=picker.collect(reference, twin, context, options.samples),
            )
            up = rounded_up(problem, schedule, seed=seed)
            round_weights(layer.weight, layer.quantizer, up.reshape(layer.weight.shape))


@torch.no_grad()
def round_weights(weight: nn.Parameter, quantizer: WeightQuantizer, up: Tensor) -> None:
    """Put each weight on the code below or above it, in place, without moving its channel's scale.

    The weight of largest magnitude in a channel sets the scale and stays as it is, the last code; no other gets beyond.
    So do neighbours that set the scale by their sum, or could once rounded.

    Args:
        weight: float, output channels first.
        quantizer: gives its scale.
        up: 1.0 for up, 0.0 for down, same shape as the weight.
    """
    scale = _per_output(quantizer.parameters_of(weight)[0], weight)
    codes = (_steps(weight, quantizer).floor() + up).clamp(quantizer.quant_min, quantizer.quant_max)
    rounded = codes * scale
    if quantizer.scale is None:
        largest = _largest(weight)
        # a channel of almost nothing has a scale above its weights, and may grow as far as that scale reaches
        reach = torch.maximum(largest, largest.max().clamp(min=1e-6) * 2.0**-12)
        rounded = rounded.clamp(-reach, reach)
    weight.copy_(torch.where(_fixed(weight, quantizer), weight, rounded))


class _Picker:
    """Draws the same random places of a layer's output in two graphs, and keeps what the layer read there.

    Args:
        each: places in every sample.
        seed: of the draw.
    """

    def __init__(self, each: int, seed: int) -> None:
        self._each, self._seed = each, seed

    def collect(self, graph: GraphModule, layer: Layer, context: Context, samples: int) -> Tensor:
        """What the layer reads at each place: shape (P, I, kernel...), (P, I) for a fully connected one."""
        generator = torch.Generator().manual_seed(self._seed)
        found: list[Tensor] = []

        def see(node: Node, value: Tensor) -> None:
            found.append(_windows(layer, value, self._each, generator))

        for batch in limited(context.batches(), samples):
            watch(graph, batch, see, nodes=[cast(Node, layer.node.args[0])])
        return torch.cat(found)


def _windows(layer: Layer, data: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """What a layer reads at random places, `each` of every sample."""
    if not layer.convolution:
        rows = data.flatten(0, -2)
        return rows[torch.randint(len(rows), (each * len(data),), generator=generator)]
    kernel = layer.weight.shape[2:]
    stride, padding, dilation = (_numbers(layer.node, place, len(kernel)) for place in (3, 4, 5))
    padded = F.pad(data, [amount for one in reversed(padding) for amount in (one, one)]) if any(padding) else data
    near = [rate * (size - 1) for rate, size in zip(dilation, kernel, strict=True)]
    sizes = [(size - reach - 1) // by + 1 for size, reach, by in zip(padded.shape[2:], near, stride, strict=True)]
    # every window of the padded data, as a view: (B, places..., I, kernel...)
    step = padded.stride()
    windows = padded.as_strided(
        (len(data), *sizes, data.shape[1], *kernel),
        (step[0], *map(mul, step[2:], stride), step[1], *map(mul, step[2:], dilation)),
    )
    samples = torch.arange(len(data)).repeat_interleave(each)
    return windows[(samples, *(torch.randint(size, (len(samples),), generator=generator) for size in sizes))]


def _numbers(node: Node, place: int, count: int) -> list[int]:
    """An argument of a convolution, one number for each axis of its kernel: stride (3), padding (4), dilation (5)."""
    default = 0 if place == 4 else 1
    given = node.args[place] if len(node.args) > place else [default]
    values = [int(str(one)) for one in cast(list[int], given)]
    return values if len(values) == count else values * count


def _problem(layer: Layer, before: Layer, *, inputs: Tensor, wanted: Tensor) -> Problem:
    """A layer's rounding as a problem: `inputs` and `wanted` are what it and its float twin read at the same places."""
    quantizer = cast(WeightQuantizer, layer.quantizer)

    def grouped(windows: Tensor) -> Tensor:
        return windows.reshape(len(windows), layer.groups, -1).transpose(0, 1)

    def matrices(weight: Tensor) -> Tensor:
        return weight.detach().reshape(layer.groups, -1, weight[0].numel())

    def offsets(of: Layer) -> Tensor:
        bias = torch.zeros_like(scale) if of.bias is None else of.bias.detach()
        return bias.view(layer.groups, 1, -1)

    scale, bounds = quantizer.parameters_of(layer.weight)[0], _bounds(layer.node)
    outputs = grouped(wanted) @ matrices(before.weight).transpose(1, 2) + offsets(before)
    return Problem(
        inputs=grouped(inputs).contiguous(),
        wanted=outputs.clamp_(bounds.low, bounds.high),
        bias=offsets(layer),
        steps=matrices(_steps(layer.weight, quantizer)),
        scale=scale.view(layer.groups, -1, 1),
        low=quantizer.quant_min,
        high=quantizer.quant_max,
        bounds=bounds,
    )


def _bounds(node: Node) -> Bounds:
    """Of the ReLU or ReLU6 that alone reads a layer."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].target is _aten.relu.default:
        return Bounds(0.0, math.inf)
    if len(readers) == 1 and readers[0].target is _aten.hardtanh.default:
        low, high = [*readers[0].args[1:], -1.0, 1.0][:2]
        return Bounds(float(str(low)), float(str(high)))
    return Bounds(-math.inf, math.inf)


def _steps(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """The weights over their scales; exactly a code for those that stay as they are."""
    steps = weight.detach() * _per_output(quantizer.parameters_of(weight)[0], weight).reciprocal()
    return torch.where(_fixed(weight, quantizer), steps.round(), steps)


def _fixed(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Which weights stay as they are, since they set their channel's scale or could set another: booleans."""
    fixed = torch.zeros_like(weight, dtype=torch.bool)
    if quantizer.scale is None:
        fixed |= weight.detach().abs() == _largest(weight)
    if quantizer.pairs:
        steps = weight.detach() / _per_output(quantizer.parameters_of(weight)[0], weight)
        largest = largest_pair(weight)
        fixed |= crowded(weight.detach(), largest * (1 - 1e-6))
        fixed |= crowded(steps.abs().ceil() * steps.sign(), torch.full_like(largest, LARGEST_SUM))
    return fixed


def _largest(weight: Tensor) -> Tensor:
    """Largest magnitude of each output channel, in the shape that broadcasts over the weight."""
    return weight.detach().abs().amax(list(range(1, weight.ndim)), keepdim=True)


def _per_output(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))
