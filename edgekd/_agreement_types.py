"""What an agreement check found out, as plain values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.spec import Frozen

__all__ = ["Agreement", "AnswerRow", "PairRow"]


class AnswerRow(Frozen):
    """What one runtime made of one file.

    Args:
        name: what pairs call it, "model.onnx on openvino".
        file: the file's name.
        runtime: name of the runtime.
        version: of the runtime, with the processor that it computed for.
        accuracy: share of samples whose first output is largest at the true class; None without labels.
        differs_by: largest difference of a logit from the reference, as a share of the reference's range; None for
            the reference itself.
        cause: why it differs, where that is known.
    """

    name: str
    file: str
    runtime: str
    version: str
    accuracy: float | None = None
    differs_by: float | None = None
    cause: str | None = None


class PairRow(Frozen):
    """Two answers on the same samples.

    Args:
        a: name of one, the reference where it is one of the two.
        b: name of the other.
        n: samples.
        agreeing: of these, with the same largest logit.
        top1_agreement: agreeing / n.
        ci95: Wilson's interval of it.
        max_abs_diff: largest difference of two logits.
        max_rel_diff: that as a share of the range of a's logits, from the smallest to the largest.
        mean_abs_diff: mean difference of two logits.
        disagreeing: numbers of the first samples on which they disagree.
        passed: whether agreement is at least what was asked; None where nothing was.
    """

    a: str
    b: str
    n: int
    agreeing: int
    top1_agreement: float
    ci95: tuple[float, float]
    max_abs_diff: float
    max_rel_diff: float
    mean_abs_diff: float
    disagreeing: list[int]
    passed: bool | None = None


class Agreement(Frozen):
    """Answers of several runtimes for the same samples, and how far they agree.

    Args:
        samples: how many.
        reference: name of the answer that the others are held against.
        answers: one a file and runtime.
        pairs: every two of them, those with the reference first.
        min_agreement: that was asked of the pairs with the reference; None if nothing was.
        missing: runtimes that are not here, with the reason, where none was asked for by name.
        notes: what else to know, one sentence each.
    """

    schema_version: Literal[1] = 1
    samples: int
    reference: str
    answers: list[AnswerRow]
    pairs: list[PairRow]
    min_agreement: float | None = None
    missing: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no pair is below what was asked."""
        return not any(pair.passed is False for pair in self.pairs)
