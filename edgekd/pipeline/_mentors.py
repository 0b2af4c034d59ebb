"""Who the student learns from: the teacher, more teachers, and a chain of assistants, each an artifact of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.artifact import Artifact
from edgekd.pipeline._run import Run
from edgekd.recipe import ModelSettings

__all__ = ["Mentor", "assistant_name", "parents_of", "teacher_name", "wanted"]


@dataclass(frozen=True)
class Mentor:
    """One network that is learned from.

    Args:
        role: of its stage: teacher, teacher-2, assistant-1, ...
        settings: its table of the recipe.
        artifact: its weights.
    """

    role: str
    settings: ModelSettings
    artifact: Artifact


def wanted(run: Run) -> Mapping[str, ModelSettings]:
    """The table of everyone who is learned from, by role, in the order in which they are made."""
    found: dict[str, ModelSettings] = {}
    for index, settings in enumerate((run.recipe.teacher, *run.recipe.teachers)):
        found[teacher_name(index)] = settings
    for index, one in enumerate(run.recipe.assistants):
        found[assistant_name(index)] = one
    return found


def teacher_name(index: int) -> str:
    """The role of a teacher, counted from 0."""
    return "teacher" if index == 0 else f"teacher-{index + 1}"


def assistant_name(index: int) -> str:
    """The role of an assistant, counted from 0."""
    return f"assistant-{index + 1}"


def parents_of(mentors: Sequence[Mentor]) -> dict[str, Artifact]:
    """Their artifacts by role, as parents of what learns from them."""
    return {one.role: one.artifact for one in mentors}
