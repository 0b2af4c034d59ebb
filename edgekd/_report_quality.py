"""The report's part on the distillation: closeness to the teacher, capacity gap, calibration, similarity of layers."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from edgekd import _plots as plots
from edgekd import _report_format as text
from edgekd._quality_model import Distillation, Fidelity, StudentQuality
from edgekd._table import Cell, Table, Tone, cells, columns_of

__all__ = ["agreement_chart", "capacity", "fidelity", "similarity", "temperature"]


def fidelity(found: Distillation | None) -> Table:
    """Agreement and KL of every student to everyone it could learn from, beside the floor."""
    columns = columns_of(
        "Student",
        "Teacher",
        ">Agreement",
        "~>95 % interval",
        ">Floor",
        ">KL on training data, nats",
        ">KL on test data, nats",
    )
    floor = None if found is None or found.floor is None else found.floor.agreement
    rows = [
        cells(
            student.student,
            one.teacher,
            Cell(text.percent(one.agreement), _tone(student, one, floor)),
            text.percent_interval(one.agreement_ci95),
            text.percent(floor),
            text.number(one.kl_train),
            text.number(one.kl_test),
        )
        for student, one in _pairs(found)
    ]
    return Table("fidelity", "Fidelity to the teacher", columns, tuple(rows), _fidelity_note(found))


def _tone(student: StudentQuality, one: Fidelity, floor: float | None) -> Tone:
    alone = student.student.startswith("student_alone")
    if floor is None or one.agreement_ci95 is None or alone:
        return ""
    return "good" if one.agreement_ci95[0] > floor else ""


def _fidelity_note(found: Distillation | None) -> str:
    if found is None:
        return ""
    floor = "Floor: not known, since no student was trained alone."
    if found.floor is not None:
        floor = (
            f"Floor: agreement of {found.floor.a} and {found.floor.b}, two students trained apart, 95 %:"
            f" {text.percent_interval(found.floor.ci95)}."
        )
    return (
        f"Share of {text.count(found.n_test)} test samples with the teacher's class. {floor} KL(teacher || student) at"
        f" temperature 1, on {text.count(found.n_train)} training samples as they are and on the test split: both high,"
        " the student was not fitted to the teacher; only the second, it does not carry over."
    )


def agreement_chart(found: Distillation) -> Markup:
    """Agreement with the teacher of every student, the floor as a line; empty where nothing is known."""
    rows = [
        plots.Interval(
            student.student,
            f"with {one.teacher}",
            100 * one.agreement,
            100 * one.agreement_ci95[0],
            100 * one.agreement_ci95[1],
            text.percent(one.agreement),
        )
        for student, one in _pairs(found)
        if one.agreement is not None and one.agreement_ci95 is not None
    ]
    if not rows:
        return Markup("")
    floor = None if found.floor is None else 100 * found.floor.agreement
    line = "" if floor is None else f". Line: {floor:.2f} %, two students trained apart"
    name = "Agreement with the teacher: " + "; ".join(f"{row.name} {row.detail} {row.shown}" for row in rows) + line
    x_label = "agreement, % of test samples" + ("" if floor is None else "; line: floor")
    return plots.interval_chart(rows, name=name, x_label=x_label, reference=floor)


def capacity(found: Distillation | None) -> Table:
    """What the teacher has that the student has not: accuracy, and parameters."""
    columns = columns_of(
        "Student",
        "Teacher",
        "~>Student's accuracy",
        "~>Teacher's accuracy",
        ">Gap, points",
        ">95 % interval, points",
        ">Student's parameters",
        ">Teacher's parameters",
        ">Times as many",
    )
    rows = [
        cells(
            student.student,
            one.teacher,
            text.percent(student.accuracy),
            text.percent(one.teacher_accuracy),
            text.points(one.gap.difference, unit=False),
            text.points_interval(one.gap.ci95),
            text.count(student.parameters),
            text.count(one.teacher_parameters),
            _times(student, one),
        )
        for student, one in _pairs(found)
        if one.gap is not None
    ]
    note = "Gap: the teacher's accuracy minus the student's, on the same test samples; Newcombe's paired interval."
    return Table("capacity", "Capacity gap", columns, tuple(rows), note)


def _times(student: StudentQuality, one: Fidelity) -> str:
    if not student.parameters or not one.teacher_parameters:
        return text.MISSING
    return text.ratio(one.teacher_parameters / student.parameters)


def temperature(found: Distillation | None) -> Table:
    """Calibration before and after one fitted temperature."""
    columns = columns_of(
        "Student", ">Temperature", ">NLL, nats", ">scaled", ">ECE, 15 bins", ">scaled", ">Brier score", ">scaled"
    )
    rows = [
        cells(
            student.student,
            text.number(student.calibration.temperature),
            text.number(student.calibration.nll),
            text.number(student.calibration.nll_scaled),
            text.percent(student.calibration.ece),
            text.percent(student.calibration.ece_scaled),
            text.number(student.calibration.brier),
            text.number(student.calibration.brier_scaled),
        )
        for student in (found.students if found else ())
    ]
    fitted = found.students[0].calibration.n_val if rows and found else 0
    note = (
        f"On the test split. Scaled: logits divided by the temperature that fits the {text.count(fitted)} validation"
        " samples best; above 1 the student was too sure. A dash: no temperature is best there, every sample is right."
    )
    return Table("temperature", "Calibration, and after temperature scaling", columns, tuple(rows), note)


def similarity(found: Distillation | None) -> Table:
    """Linear CKA of the logits and of the layers that the losses pair, a column for each student."""
    students = found.students if found else []
    columns = columns_of("Teacher", "Teacher's layer", "Student's layer", *(f">{one.student}" for one in students))
    values = {
        (one.teacher, layer.teacher_layer, layer.student_layer, student.student): text.number(layer.cka)
        for student, one in _pairs(found)
        for layer in one.layers
    }
    layers = dict.fromkeys(key[:3] for key in values)
    rows = [cells(*key, *(values.get((*key, one.student), text.MISSING) for one in students)) for key in layers]
    samples = text.count(found.n_train) if found else ""
    note = (
        f"Linear CKA on {samples} training samples as they are, unbiased over minibatches (a last incomplete one does"
        " not count): 1 is equal up to rotation and scale, about 0 unrelated. A diagnosis, not a goal."
    )
    return Table("similarity", "Similarity of layers", columns, tuple(rows), note)


def _pairs(found: Distillation | None) -> Iterator[tuple[StudentQuality, Fidelity]]:
    for student in found.students if found else ():
        for one in student.teachers:
            yield student, one
