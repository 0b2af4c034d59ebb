"""Batch normalisation whose statistics are of the whole batch when several processes share it.

Layers are switched in place: the module stays the same object, with its parameters, buffers, hooks and names, and only
learns another forward. So taps stay where they are, and a state dict knows nothing of it.

Gradients. Each process goes backwards from a loss of its own, and what flows into the inputs here is the gradient of
the sum of all those losses, since each of them depends on every row through the statistics. The gradients of weight
and bias are of this process's rows alone. Averaged over the processes, as the wrapper does it with every parameter's,
every one is that of the mean of the losses: where those are means over equally many rows, of the mean over all rows.

Reference: Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift", 2015, arXiv:1502.03167, algorithm 1 and the gradients of section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd._messages import summed_array
from edgekd.errors import UsageError

__all__ = ["restored", "synced"]

Array = NDArray[np.float64]
_Found = tuple[Array, Array, float]

_BEFORE = "_class_before_sharing"
_PLAIN: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synced(modules: Iterable[nn.Module]) -> None:
    """Let every batch normalisation in these modules use the statistics of all processes' rows.

    Args:
        modules: changed in place. On a GPU the layers compute as torch.nn.SyncBatchNorm does, elsewhere, where that one
            refuses to work, by one sum over the processes forward and one backward.

    Raises:
        UsageError: a layer derives from batch normalisation, and computes in a way that is not known here.
    """
    for root in modules:
        for name, module in root.named_modules():
            if isinstance(module, _PLAIN) and not isinstance(module, _Synced):
                plain = type(module)
                module.__class__ = _synced_class(plain, name)
                module.__dict__[_BEFORE] = plain


def restored(modules: Iterable[nn.Module]) -> None:
    """Give every layer that `synced` switched its own class back."""
    for root in modules:
        for module in root.modules():
            if (plain := module.__dict__.pop(_BEFORE, None)) is not None:
                module.__class__ = plain


class _Synced(nn.Module):
    """A batch normalisation over all processes; stands before the layer's own class in the order of methods."""

    process_group = None  # torch's layer asks for one; None is all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise, and in training follow the statistics of the whole batch."""
        layer = cast("_BatchNorm", self)
        if not layer.training:
            return _BatchNorm.forward(layer, inputs)
        if inputs.is_cuda:
            return nn.SyncBatchNorm.forward(cast("nn.SyncBatchNorm", self), inputs)
        layer._check_input_dim(inputs)  # type: ignore[no-untyped-call]
        found = _statistics(inputs.detach())
        if layer.track_running_stats:
            _follow(layer, *found)
        return cast("Tensor", _Normalise.apply(inputs, layer.weight, layer.bias, layer.eps, found))  # type: ignore[no-untyped-call]


class _SyncedThenActive(_Synced):
    """The same for a layer that applies a dropout and an activation to what it normalised."""

    drop: nn.Module
    act: nn.Module

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise, drop out, activate."""
        return cast("Tensor", self.act(self.drop(super().forward(inputs))))


def _synced_class(plain: type[nn.Module], name: str) -> type[nn.Module]:
    """A class that is a plain layer's, but for its forward.

    Args:
        plain: the layer's class.
        name: the layer's name, for a message.
    """
    kind: type[nn.Module] = _Synced
    if plain.forward is not _BatchNorm.forward:
        if plain.__name__ != "BatchNormAct2d":  # timm's: a dropout and an activation follow
            raise UsageError(
                f"Layer '{name}' is a {plain.__name__}, which normalises in a way of its own: several processes cannot"
                " share its statistics. Set compute.sync_batch_norm = false, or use an ordinary batch normalisation."
            )
        kind = _SyncedThenActive
    return type(f"Synced{plain.__name__}", (kind, plain), {})


def _follow(layer: _BatchNorm, mean: Array, variance: Array, rows: float) -> None:
    """Move the running statistics towards those of a batch, as torch does."""
    if layer.num_batches_tracked is None or layer.running_mean is None or layer.running_var is None:
        return
    layer.num_batches_tracked.add_(1)
    share = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(_tensor(mean).to(layer.running_mean), share)
    layer.running_var.lerp_(_tensor(variance * (rows / (rows - 1))).to(layer.running_var), share)


class _Normalise(torch.autograd.Function):
    """Inputs normalised by the statistics of every process's rows.

    What is of one number a channel is computed in numpy: a layer has some thirty such operations, and each costs a
    tenth there. Over the maps there are one pass less each way than in torch's own layer.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, found: _Found
    ) -> Tensor:
        """The output; `found` is what `_statistics` says of the inputs."""
        mean, variance, rows = found
        spread = 1.0 / np.sqrt(variance + eps)
        scale = spread if weight is None else spread * _array(weight)
        shift = -mean * scale if bias is None else _array(bias) - mean * scale
        ctx.save_for_backward(inputs, weight)
        ctx.of_channels = mean, spread, scale, rows
        slope, offset = _wide(inputs, scale, shift)
        return torch.addcmul(offset, inputs.float(), slope).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """The gradients; see this file's head for what they are of."""
        inputs, weight = ctx.saved_tensors
        mean, spread, scale, rows = ctx.of_channels
        of_weight, of_bias = _of_weight_and_bias(upstream, inputs, mean, spread)
        sums = np.stack([_array(of_bias), _array(of_weight)])
        summed_array(sums)
        through_mean, through_deviation = sums / rows
        # what the row's own output owes to it, less what the statistics owe to every row
        slope = -scale * spread * through_deviation
        slope, offset, own = _wide(inputs, slope, -scale * through_mean - slope * mean, scale)
        gradient = torch.addcmul(offset, inputs.float(), slope).addcmul_(upstream.float(), own).to(inputs.dtype)
        return (gradient, *([None] * 4 if weight is None else [of_weight, of_bias, None, None]))


def _of_weight_and_bias(upstream: Tensor, inputs: Tensor, mean: Array, spread: Array) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias: sums over this process's rows, (C,) each."""
    if not inputs.numel():  # torch's kernel divides by the number of rows
        return torch.zeros(len(mean)), torch.zeros(len(mean))
    of_rows = torch.ops.aten.native_batch_norm_backward(
        upstream.float(),
        inputs.float(),
        None,
        None,
        None,
        _tensor(mean),
        _tensor(spread),
        True,
        0.0,
        [False, True, True],
    )
    return of_rows[1], of_rows[2]


def _statistics(inputs: Tensor) -> _Found:
    """Mean and variance over all processes' rows, float64, shape (C,), and how many values a channel has in all."""
    channels = inputs.shape[1]
    here = inputs.numel() // channels
    # in float64 the difference of the two means of squares below is as good as float32 can show
    sums = np.zeros(2 * channels + 1)
    sums[-1] = here
    if here:
        mean, variance = map(_array, torch.batch_norm_update_stats(inputs.float(), None, None, 0.0))
        sums[:channels] = mean * here
        sums[channels:-1] = (variance + mean * mean) * here
    summed_array(sums)
    rows = float(sums[-1])
    if rows < 2:
        raise ValueError("Batch normalisation needs more than one value per channel when training. Raise batch_size.")
    first, second = sums[:channels] / rows, sums[channels:-1] / rows
    return first, np.maximum(second - first * first, 0.0), rows


def _wide(inputs: Tensor, *of_channels: Array) -> tuple[Tensor, ...]:
    """Numbers of the channels in float32, in a shape that goes with the inputs'."""
    packed = torch.from_numpy(np.array(of_channels, np.float32))
    return packed.view(len(of_channels), 1, -1, *[1] * (inputs.dim() - 2)).unbind()


def _tensor(of_channels: Array) -> Tensor:
    return torch.from_numpy(of_channels.astype(np.float32))


def _array(of_channels: Tensor) -> Array:
    return of_channels.detach().numpy().astype(np.float64)
