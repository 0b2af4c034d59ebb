"""Random changes of training batches: crop, flip, cutout, mixup.

Every random draw is a pure function of (seed, epoch, sample id, name of the draw). The same sample in the same
epoch is changed in the same way whatever the batch order, the batch size, the device or the number of processes,
so an epoch can be replayed exactly, for instance to store a teacher's outputs. The one exception is mixup's partner,
which must be among the samples that are changed together: it depends on which those are, but not on their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from edgekd.errors import UsageError
from edgekd.recipe import AugmentSettings

__all__ = ["AUGMENT_VERSION", "Augment", "uniforms"]

AUGMENT_VERSION = 1
"""Changes with what the same draws do to an image: answers that were kept for another version are of other images."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def uniforms(ids: Tensor, *, seed: int, epoch: int, stream: str) -> Tensor:
    """One number in [0, 1) for each sample, a pure function of its arguments.

    The counter-based generator SplitMix64: its finaliser is applied to a key made of seed, epoch and stream, plus
    the sample's id times the golden ratio. It needs integer arithmetic only, so every device gives the same bits.

    Args:
        ids: sample indices, int64, shape (B,).
        seed: any integer.
        epoch: 0-based.
        stream: name of the draw; two names give independent numbers.

    Returns:
        float64 with 53 random bits, shape (B,), on the CPU.

    Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figures 13 and 16.
    """
    text = f"{seed} {epoch} {stream}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    hashed = _finalised(ids.cpu() * _signed(_GOLDEN) + _signed(key))
    return (_shifted(hashed, 11)).to(torch.float64) * 2.0**-53


class Augment:
    """The augmentation of `[data.augment]`.

    In this order: random crop of the image padded by reflection (Zagoruyko, Komodakis, "Wide Residual Networks", 2016,
    arXiv:1605.07146, section 3), mirror image, cutout (DeVries, Taylor, 2017, arXiv:1708.04552: the square's centre is
    anywhere in the image, so part of it may be outside), mixup (Zhang et al., 2017, arXiv:1710.09412, equation 2,
    with a ratio for each sample instead of one for each batch).

    Args:
        settings: which changes, and how strong.
        seed: of every draw.
        view: 0, or the number of another view of the same samples: it is moved and cut by draws of its own, but mixed
            as view 0 is, so that two views of a sample keep one label.
    """

    def __init__(self, settings: AugmentSettings, seed: int, view: int = 0) -> None:
        self.settings = settings
        self.seed = seed
        self.view = view

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        ids: Tensor,
        *,
        epoch: int,
        fill: Sequence[float],
        mixed_as: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Change one batch; the arguments are left as they are.

        Args:
            images: in the value range, before normalisation, shape (B, C, H, W).
            labels: class probabilities, shape (B, K).
            ids: indices of the samples in the training split, int64, shape (B,).
            epoch: 0-based.
            fill: value of cut-out pixels, per channel: the preprocessing's mean, which normalises to 0.
            mixed_as: samples whose ratios and partners mixup takes, shape (B,); None for those of `ids`.

        Returns:
            Images and labels of the same shapes; labels are mixed as the images are.

        Raises:
            UsageError: the crop pads by as much as the image's side or more.
        """
        images = self.changed(images, ids, epoch=epoch, fill=fill)
        if self.settings.mixup > 0:
            drawn = ids if mixed_as is None else mixed_as
            own, other = torch.arange(len(ids)), self.partners(drawn, epoch=epoch)
            images, labels = self.mixed((images, labels), drawn, own=own, other=other, epoch=epoch)
        return images, labels

    def changed(self, images: Tensor, ids: Tensor, *, epoch: int, fill: Sequence[float]) -> Tensor:
        """All but mixup: each image by itself; see `__call__`."""
        if self.settings.crop or self.settings.flip:
            images = self._moved(images, ids, epoch)
        if self.settings.cutout:
            images = self._cut(images, ids, epoch, fill)
        return images

    def partners(self, ids: Tensor, *, epoch: int) -> Tensor:
        """Whom mixup mixes each sample with: positions in `ids`, int64, shape (B,)."""
        # neighbours in a random order of the samples: a partner for each, nobody its own unless it is alone
        order = torch.argsort(uniforms(ids, seed=self.seed, epoch=epoch, stream="partner"), stable=True)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        return partner

    def mixed(
        self, several: tuple[Tensor, Tensor], ids: Tensor, *, own: Tensor, other: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Mix rows of images and labels.

        Args:
            several: images and labels, batch first, same length.
            ids: samples whose ratios are taken, shape (R,).
            own: the row of each, shape (R,).
            other: the row that it is mixed with, shape (R,).
            epoch: 0-based.

        Returns:
            R rows of each.
        """
        from scipy.special import betaincinv  # a third of a second that most recipes do not need

        alpha = self.settings.mixup
        # not `_draw`: every view of a sample is mixed alike
        share = uniforms(ids, seed=self.seed, epoch=epoch, stream="mixup")
        # the inverse of the distribution function turns one uniform number into one Beta(alpha, alpha) number exactly
        ratio = torch.from_numpy(betaincinv(alpha, alpha, share.numpy()))
        everyone = len(own) == len(several[0])  # then they stand in their order
        mixed = []
        for values in several:
            part = ratio.to(values).view(-1, *[1] * (values.ndim - 1))
            first = values if everyone else values[own.to(values.device)]
            mixed.append(part * first + (1 - part) * values[other.to(values.device)])
        return mixed[0], mixed[1]

    def seeds(self, ids: Tensor, *, epoch: int) -> Tensor:
        """A number that stands for all draws of a sample's view, int32, shape (B,).

        The draws follow from (seed, epoch, sample); this is a hash of the three, to tell whether two views are one.
        """
        return (self._draw(ids, epoch, "view") * 2.0**32 - 2.0**31).floor().to(torch.int32)

    def _draw(self, ids: Tensor, epoch: int, stream: str) -> Tensor:
        of_view = f"{stream}, view {self.view}" if self.view else stream
        return uniforms(ids, seed=self.seed, epoch=epoch, stream=of_view)

    def _moved(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Crop and flip in one gather: both only say which source pixel each pixel takes."""
        height, width = images.shape[-2:]
        pad = self.settings.crop
        if pad >= min(height, width):
            raise UsageError(
                f"data.augment.crop must be less than the image's side ({height}x{width} pixels), got {pad}: the image"
                " is padded with its own reflection."
            )
        rows = torch.arange(height).repeat(len(ids), 1)
        columns = torch.arange(width).repeat(len(ids), 1)
        if self.settings.flip:
            mirrored = self._draw(ids, epoch, "flip") < 0.5
            columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        if pad:
            rows = _reflected(rows + self._offset(ids, epoch, "crop down"), height)
            columns = _reflected(columns + self._offset(ids, epoch, "crop right"), width)
        return _gathered(images, rows.to(images.device), columns.to(images.device))

    def _offset(self, ids: Tensor, epoch: int, stream: str) -> Tensor:
        """A whole number of pixels in [-crop, crop] for each sample, shape (B, 1)."""
        pad = self.settings.crop
        return (self._draw(ids, epoch, stream) * (2 * pad + 1)).floor().to(torch.int64)[:, None] - pad

    def _cut(self, images: Tensor, ids: Tensor, epoch: int, fill: Sequence[float]) -> Tensor:
        height, width = images.shape[-2:]
        inside = []
        for length, stream in ((height, "cutout down"), (width, "cutout right")):
            centre = (self._draw(ids, epoch, stream) * length).floor()
            first = (centre.to(torch.int64) - self.settings.cutout // 2)[:, None]
            place = torch.arange(length)
            inside.append((place >= first) & (place < first + self.settings.cutout))
        square = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(images.device)
        return torch.where(square, images.new_tensor(fill).view(1, -1, 1, 1), images)


def _reflected(index: Tensor, length: int) -> Tensor:
    """Mirror indices outside [0, length) back in, the border pixel not repeated: -1 is 1."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[b, c, rows[b, y], columns[b, x]] for every b, c, y, x."""
    batch, channels, height, width = images.shape
    down = rows[:, None, :, None].expand(batch, channels, height, width)
    right = columns[:, None, None, :].expand(batch, channels, height, width)
    return images.gather(2, down).gather(3, right)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer: torch multiplies and adds modulo 2^64."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; `>>` on int64 would copy the sign."""
    return (value >> bits) & (_MASK >> bits)


def _finalised(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shifted(value, 27)) * _signed(_MIX_2)
    return value ^ _shifted(value, 31)
