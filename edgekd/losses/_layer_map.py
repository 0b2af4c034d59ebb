"""Pair the student's layers with the teacher's: two lists of taps, or patterns and a map of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekd import spec

__all__ = ["LayerPairs", "mapped_layers"]

PLACE = "{}"


def mapped_layers(layer_map: str | Sequence[int], *, student: int, teacher: int) -> list[int]:
    """The teacher's layer for each of the student's, both counted from 0 as in the names of their modules.

    Args:
        layer_map: "every" pairs the student's i-th layer, counted from 1, with the teacher's i * teacher / student;
            "last" takes the teacher's last layers; or the teacher's layer for each layer of the student.
        student: number of the student's layers.
        teacher: number of the teacher's layers.

    Raises:
        ValueError: a map that these numbers of layers do not allow; the message names the layer and the numbers.

    Reference: Jiao et al., "TinyBERT", 2019, arXiv:1909.10351, section 3.1, where g(m) is the map; its g(m) = 3m
    for 4 and 12 layers is "every".

    >>> mapped_layers("every", student=3, teacher=6), mapped_layers("last", student=3, teacher=6)
    ([1, 3, 5], [3, 4, 5])
    """
    if layer_map == "every":
        if teacher % student:
            raise ValueError(
                f"layer_map 'every' needs teacher_layers to be a multiple of student_layers, got {teacher} and"
                f" {student}. Use 'last', or list the teacher's layers"
            )
        return [(layer + 1) * (teacher // student) - 1 for layer in range(student)]
    if layer_map == "last":
        if student > teacher:
            raise ValueError(
                f"layer_map 'last' needs as many layers in the teacher as in the student, got {teacher} and {student}."
                " List the teacher's layers, one for each of the student's; a layer may repeat"
            )
        return list(range(teacher - student, teacher))
    layers = [int(layer) for layer in layer_map]
    if len(layers) != student:
        raise ValueError(
            f"layer_map must name one layer of the teacher for each of the student's {student}, got {layers}"
        )
    for layer in layers:
        if not 0 <= layer < teacher:
            raise ValueError(
                f"layer_map names the teacher's layer {layer}, but the teacher has {teacher} layers, 0 to {teacher - 1}"
            )
    return layers


class LayerPairs(spec.Options):
    """Options of a loss that compares layers pair by pair.

    A tap with `{}` in its name stands for all layers of a network: `blocks.{}` with `student_layers = 6` is blocks.0
    to blocks.5, and `layer_map` says which of the teacher's each one learns from. Taps without it pair up as they
    stand, and both kinds may be mixed: `student_taps = ["patch_embed", "blocks.{}"]`.
    """

    student_taps: list[str] = Field(
        min_length=1, description="the student's layers; {} in a name stands for each layer"
    )
    teacher_taps: list[str] = Field(min_length=1, description="the teacher's layers, in the same order")
    student_layers: int | None = Field(None, ge=1, description="how many layers {} stands for in the student")
    teacher_layers: int | None = Field(None, ge=1, description="how many layers {} stands for in the teacher")
    layer_map: Literal["every", "last"] | list[int] = Field(
        "every",
        description="which of the teacher's layers {} pairs with: every so many, the last ones, or the teacher's layer"
        " (0 is the first) for each of the student's",
    )

    @field_validator("layer_map", mode="before")
    @classmethod
    def _known_map(cls, value: Any) -> Any:
        # one sentence in place of pydantic's two, one for each kind of value
        if value not in ("every", "last") and not (isinstance(value, list) and all(type(one) is int for one in value)):
            raise ValueError("must be 'every', 'last' or a list of the teacher's layers")
        return value

    @model_validator(mode="after")
    def _pairs_up(self) -> Self:
        if len(self.student_taps) != len(self.teacher_taps):
            raise ValueError(
                f"student_taps and teacher_taps must pair up, got {len(self.student_taps)} and {len(self.teacher_taps)}"
            )
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            if (PLACE in ours) != (PLACE in theirs):
                raise ValueError(f"{{}} must stand in both names of a pair or in none, got '{ours}' and '{theirs}'")
        counts = (self.student_layers, self.teacher_layers)
        if any(PLACE in tap for tap in self.student_taps):
            if None in counts:
                raise ValueError("a tap with {} needs student_layers and teacher_layers, the numbers of layers")
        elif counts != (None, None) or self.layer_map != "every":
            raise ValueError("student_layers, teacher_layers and layer_map mean nothing without a tap with {}")
        self.pairs()
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """The student's and the teacher's tap of every pair."""
        found = []
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            if PLACE not in ours:
                found.append((ours, theirs))
                continue
            assert self.student_layers is not None
            assert self.teacher_layers is not None
            layers = mapped_layers(self.layer_map, student=self.student_layers, teacher=self.teacher_layers)
            found += [(ours.replace(PLACE, str(i)), theirs.replace(PLACE, str(j))) for i, j in enumerate(layers)]
        return found
