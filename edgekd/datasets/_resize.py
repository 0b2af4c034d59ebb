"""One way of resizing for every data set, so that the recorded preprocessing means one thing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized", "resized_once"]

_CHUNK = 1024  # images; bounds the float copy that a resize of a whole data set would make


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize to (H, W) by bilinear interpolation, antialiased when shrinking; the aspect ratio is not kept.

    uint8 images are rounded back to whole levels, so that resizing once and storing, or resizing at every
    batch, gives the same pixels.

    Args:
        images: uint8 or float32, shape (B, C, H, W).
        size: (H, W) in pixels; None leaves the images alone.

    Returns:
        The same dtype, shape (B, C, *size).
    """
    if size is None or tuple(images.shape[-2:]) == size:
        return images
    values = F.interpolate(images.to(torch.float32), size=size, mode="bilinear", antialias=True, align_corners=False)
    if images.dtype == torch.uint8:
        return values.round_().clamp_(0, 255).to(torch.uint8)
    return values


def resized_once(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`resized` for a whole data set, chunk by chunk."""
    if tuple(images.shape[-2:]) == size:
        return images
    return torch.cat([resized(chunk, size) for chunk in torch.split(images, _CHUNK)])
