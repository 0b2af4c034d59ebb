"""The shared vocabulary: tensors, preprocessing, model interfaces, options and Runners.

Single capital letters name tensor dimensions everywhere in edgekd:
B batch, K classes, C channels, H height, W width. `tau` is the distillation temperature.
Accuracies are fractions in [0, 1]; every other number carries its unit in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Frozen", "ModelSpec", "Options", "Preprocessing", "Runner", "TensorSpec"]


class Frozen(BaseModel):
    """A value object: immutable, unknown fields refused, types not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Options(Frozen):
    """Base of a catalog member's typed options: the keys a recipe may give it."""


class TensorSpec(Frozen):
    """Name, element type and shape of one named array at a model's boundary.

    A dimension is an int, or a string naming a dynamic one ("B" for batch).
    """

    name: str
    dtype: str = "float32"
    shape: list[int | str]


class Preprocessing(Frozen):
    """How raw pixels become the model's input; recorded in every artifact and shipped with the model.

    Pixels are resized to `size`, scaled to `value_range`, laid out as `layout`, then normalised per
    channel as (x - mean) / std.

    Args:
        size: (H, W) in pixels.
        channels: 1 for grey, 3 for RGB.
        mean: per channel, in units of `value_range`.
        std: per channel, > 0, in units of `value_range`.
        layout: axis order of the model input.
        value_range: pixel values before normalisation.
        resize: interpolation used when the raw image has another size.
    """

    size: list[int] = Field(min_length=2, max_length=2)
    channels: int = Field(ge=1)
    mean: list[float]
    std: list[float]
    layout: Literal["NCHW"] = "NCHW"
    value_range: list[float] = [0.0, 1.0]
    resize: Literal["bilinear", "nearest"] = "bilinear"

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"{name} must have one value per channel ({self.channels}), got {len(getattr(self, name))}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be > 0, got {self.std}")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return (self.channels, self.size[0], self.size[1])

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images already in `value_range`; shape (B, C, H, W) in, same shape out."""
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return (images - mean) / std


class ModelSpec(Frozen):
    """What a model takes and gives: its inputs, outputs, class labels and preprocessing."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    labels: list[str]
    preprocessing: Preprocessing


@runtime_checkable
class Runner(Protocol):
    """A model ready to run: named arrays in, named arrays out. Used as a context manager."""

    provider_requested: str
    provider_used: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
