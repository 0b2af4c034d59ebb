"""A small vision transformer whose projections, attention maps and layers are modules that losses can tap."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Transformer"]


class Layer(nn.Module):
    """Pre-normalised self-attention and a two-layer perceptron, each with a residual.

    Args:
        width: of a token.
        heads: of the attention; divides the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.attention = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Softmax(dim=-1)
        self.out, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        size = width // self.heads
        q, k, v = (
            self.qkv(self.norm1(tokens)).reshape(batch, count, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        )
        found = self.attention(q @ k.transpose(-2, -1) * size**-0.5) @ v
        tokens = tokens + self.out(found.transpose(1, 2).reshape(batch, count, width))
        return tokens + cast(Tensor, self.mlp(self.norm2(tokens)))


class Transformer(nn.Module):
    """Patches of 2 x 2 pixels, learned positions, some layers, the mean of the tokens, a classifier.

    Args:
        width: of a token.
        depth: layers.
        size: height and width of the image.
        classes: K.
    """

    def __init__(self, width: int, depth: int, *, size: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, (size // 2) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, 2) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return cast(Tensor, self.head(self.norm(self.layers(tokens)).mean(dim=1)))
