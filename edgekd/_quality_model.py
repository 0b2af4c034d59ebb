"""What was measured of a distillation, as records of plain numbers; read and drawn without torch."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from edgekd._ladder import Interval95, Paired
from edgekd.spec import Frozen

__all__ = ["Calibration", "Distillation", "Fidelity", "Floor", "LayerSimilarity", "StudentQuality"]


class _Record(Frozen):
    model_config = ConfigDict(allow_inf_nan=False)


class Calibration(_Record):
    """How honest a student's probabilities are on the test split, as they are and divided by one temperature.

    Args:
        temperature: what the logits are divided by, fitted on the validation split; None where no temperature is best,
            because every sample there is right or the logits say nothing about the labels.
        n_val: samples that it was fitted on.
        nll, nll_scaled: mean negative log-likelihood, nats.
        ece, ece_scaled: expected calibration error over 15 bins, a fraction.
        brier, brier_scaled: mean squared distance of the probabilities from the truth, in [0, 2].
    """

    temperature: float | None
    n_val: int = Field(ge=1)
    nll: float
    nll_scaled: float | None = None
    ece: float
    ece_scaled: float | None = None
    brier: float
    brier_scaled: float | None = None


class LayerSimilarity(_Record):
    """Linear CKA of a layer of the student with one of the teacher; None where one of them does not vary.

    Args:
        student_layer, teacher_layer: names of modules; "logits" are the outputs.
        cka: 1 for features that are equal up to rotation and scale, about 0 for unrelated ones; an unbiased estimate,
            so it may be a little below 0 or above 1.
    """

    student_layer: str
    teacher_layer: str
    cka: float | None


class Fidelity(_Record):
    """How close a student came to one of those it learned from.

    Args:
        teacher: its stage.
        agreement: share of test samples with the same predicted class, a fraction; None for a teacher whose answers
            to the test split are not kept.
        agreement_ci95: its interval.
        kl_train, kl_test: mean KL(teacher || student) at temperature 1, nats, on training samples that are not
            augmented and on the test split. Both high: the student was not fitted. Only the second: it does not carry
            over.
        teacher_accuracy: on the test split.
        teacher_parameters: number of weights.
        gap: the teacher (b) against the student (a) on the test split; its difference is the capacity gap.
        layers: of the logits, and of the layers that the losses pair.
    """

    teacher: str
    agreement: float | None = None
    agreement_ci95: Interval95 | None = None
    kl_train: float | None = None
    kl_test: float | None = None
    teacher_accuracy: float | None = None
    teacher_parameters: int | None = None
    gap: Paired | None = None
    layers: list[LayerSimilarity] = Field(default_factory=list)


class StudentQuality(_Record):
    """One student: its calibration, and its fidelity to each of those it learned from.

    Args:
        student: its stage; "student_alone" learned from nobody and is held against the same teachers.
        accuracy: on the test split, a fraction.
        parameters: number of weights.
    """

    student: str
    accuracy: float
    parameters: int | None = None
    calibration: Calibration
    teachers: list[Fidelity] = Field(default_factory=list)


class Floor(_Record):
    """Agreement of two students that were trained apart: what any two networks of this kind share.

    Args:
        a, b: their stages.
        agreement: share of test samples with the same predicted class, a fraction.
        ci95: its interval.
    """

    a: str
    b: str
    agreement: float
    ci95: Interval95


class Distillation(_Record):
    """The quality of a distillation.

    Args:
        n_train: training samples that `kl_train` and the similarities of layers are measured on.
        n_test: samples of the test split.
        floor: None where there are no two students that were trained apart.
        students: the distilled ones first.
    """

    n_train: int
    n_test: int
    floor: Floor | None = None
    students: list[StudentQuality] = Field(default_factory=list)
