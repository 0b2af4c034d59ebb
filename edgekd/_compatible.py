"""Check that a teacher's and a student's interfaces fit, before anything is loaded or trained."""

from __future__ import annotations

from edgekd.errors import MismatchError
from edgekd.spec import ModelSpec

__all__ = ["check_compatible"]


def check_compatible(student: ModelSpec, teacher: ModelSpec) -> None:
    """Both must see the same pixels in the same way and name the same classes in the same order.

    Args:
        student: what the student takes and gives.
        teacher: what the teacher takes and gives.

    Raises:
        MismatchError: every difference, each with both values.
    """
    problems: list[str] = []
    if len(student.labels) != len(teacher.labels):
        problems.append(f"classes: {len(student.labels)} and {len(teacher.labels)}")
    else:
        problems += [
            f"label of class {index}: '{ours}' and '{theirs}'"
            for index, (ours, theirs) in enumerate(zip(student.labels, teacher.labels, strict=True))
            if ours != theirs
        ][:3]
    ours, theirs = (spec.preprocessing.model_dump() for spec in (student, teacher))
    problems += [f"preprocessing {key}: {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    shapes = [[one.shape[1:] for one in spec.inputs] for spec in (student, teacher)]
    if shapes[0] != shapes[1]:
        problems.append(f"input shape: {shapes[0]} and {shapes[1]}")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise MismatchError(
            f"Student and teacher do not fit (student first):\n{lines}\n"
            "Train the teacher with this recipe's [data], or give [data] the teacher's size, mean, std and classes."
        )
