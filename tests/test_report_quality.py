"""The report's part on the distillation, and the table of a sweep, in every rendering."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from edgekd import _report_quality as quality
from edgekd import report as reports
from edgekd._ladder import Paired
from edgekd._quality_model import Calibration, Distillation, Fidelity, Floor, LayerSimilarity, StudentQuality
from edgekd._repeats import accuracies, repeats
from edgekd._report_sweep import failures, ranking
from edgekd._sweep_model import Sweep, SweepRow
from edgekd._table import Table
from edgekd.report import Report

GAP = Paired(a="student", b="teacher", difference=0.021, ci95=(0.012, 0.03), p_value=0.001, a_only=5, b_only=26, n=1000)


def _student(name: str, agreement: float, low: float, **more: Any) -> StudentQuality:
    return StudentQuality(
        student=name,
        accuracy=0.923,
        parameters=1000,
        calibration=Calibration(
            temperature=1.61,
            n_val=600,
            nll=0.31,
            nll_scaled=0.25,
            ece=0.052,
            ece_scaled=0.011,
            brier=0.12,
            brier_scaled=0.11,
        ),
        teachers=[
            Fidelity(
                teacher="teacher",
                agreement=agreement,
                agreement_ci95=(low, agreement + 0.01),
                kl_train=0.043,
                kl_test=0.085,
                teacher_accuracy=0.944,
                teacher_parameters=8060,
                gap=GAP,
                layers=[
                    LayerSimilarity(student_layer="logits", teacher_layer="logits", cka=0.981),
                    LayerSimilarity(student_layer="layer2", teacher_layer="layer3", cka=None),
                ],
            )
        ],
        **more,
    )


def _found() -> Distillation:
    return Distillation(
        n_train=10_000,
        n_test=1000,
        floor=Floor(a="student_alone", b="student_alone-seed1", agreement=0.9, ci95=(0.88, 0.92)),
        students=[_student("student", 0.953, 0.941), _student("student_alone", 0.931, 0.911)],
    )


def _cells(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_fidelity_stands_beside_the_floor_which_is_named() -> None:
    table = quality.fidelity(_found())
    assert _cells(table)[0] == ["student", "teacher", "95.30 %", "94.10 to 96.30 %", "90.00 %", "0.0430", "0.0850"]
    assert "agreement of student_alone and student_alone-seed1" in table.note
    # only a distilled student can do well or badly at this
    assert [row[2].tone for row in table.rows] == ["good", ""]


def test_agreement_within_reach_of_the_floor_is_no_good_news() -> None:
    found = _found().model_copy(update={"students": [_student("student", 0.905, 0.885)]})
    assert quality.fidelity(found).rows[0][2].tone == ""
    assert quality.fidelity(found.model_copy(update={"floor": None})).note.count("Floor: not known") == 1


def test_capacity_gap_has_accuracy_and_parameters() -> None:
    [row, _] = _cells(quality.capacity(_found()))
    assert row[4:] == ["+2.10", "+1.20 to +3.00", "1,000", "8,060", "8.06 ×"]  # noqa: RUF001


def test_temperature_has_both_sides_of_every_measure() -> None:
    table = quality.temperature(_found())
    assert _cells(table)[0] == ["student", "1.61", "0.310", "0.250", "5.20 %", "1.10 %", "0.120", "0.110"]
    assert "600 validation samples" in table.note


def test_similarity_has_a_column_for_each_student() -> None:
    table = quality.similarity(_found())
    assert [column.label for column in table.columns][3:] == ["student", "student_alone"]
    assert _cells(table) == [
        ["teacher", "logits", "logits", "0.981", "0.981"],
        ["teacher", "layer3", "layer2", "–", "–"],  # noqa: RUF001
    ]


def test_page_has_a_section_with_a_chart_and_a_link_to_it() -> None:
    report = Report(name="r", distillation=_found())
    page = reports.render_html(report)
    assert '<h2 id="distillation">Distillation</h2>' in page
    assert '<a href="#distillation">Distillation</a>' in page
    assert "Line: 90.00 %, two students trained apart" in page
    for part in ("Fidelity to the teacher", "Capacity gap", "after temperature scaling", "Similarity of layers"):
        assert part in page
        assert part in reports.render_markdown(report)


def test_section_is_hidden_when_there_is_nothing() -> None:
    for report in (Report(), Report(distillation=Distillation(n_train=1, n_test=1))):
        assert 'id="distillation"' not in reports.render_html(report)
        assert "Fidelity" not in reports.render_markdown(report)


def test_teacher_without_answers_to_the_test_split_leaves_dashes() -> None:
    student = _student("student", 0.95, 0.94)
    unknown = student.model_copy(
        update={"teachers": [Fidelity(teacher="teacher", kl_train=0.1)], "calibration": _no_temperature()}
    )
    report = Report(distillation=Distillation(n_train=5, n_test=5, students=[unknown]))
    page = reports.render_html(report)
    assert "Capacity gap" not in page
    assert "nan" not in page
    assert _cells(quality.fidelity(report.distillation))[0][2] == "–"  # noqa: RUF001
    assert _cells(quality.temperature(report.distillation))[0][1] == "–"  # noqa: RUF001
    assert reports.from_json(reports.to_json(report)) == report


def _no_temperature() -> Calibration:
    return Calibration(temperature=None, n_val=5, nll=0.1, ece=0.1, brier=0.1)


def test_report_survives_json_and_an_older_one_without_the_section_reads() -> None:
    report = Report(name="r", distillation=_found())
    text = reports.to_json(report)
    assert reports.from_json(text) == report
    values = json.loads(text)
    del values["distillation"]
    assert reports.from_json(json.dumps(values)) == Report(name="r")


def _sweep(seeds: int = 3, rows: int = 2) -> Sweep:
    values = [0.90, 0.92, 0.94][:seeds]
    base = SweepRow(students=["student_alone-0"], val=accuracies(values), test=accuracies(values), agreement=0.9)
    better = SweepRow(
        rank=1,
        changes={"distill.losses": [{"name": "kd", "tau": 2.0}]},
        students=["student-1"],
        baseline=0,
        val=accuracies([one + 0.02 for one in values]),
        test=accuracies(values),
        difference=repeats([0.02, 0.021, 0.019][:seeds]),
        test_paired=GAP.model_copy(update={"a": "student_alone", "b": "student"}),
        agreement=0.95,
    )
    worse = SweepRow(changes={"distill.losses": []}, failed="Training diverged at step 3.")
    return Sweep(
        name="small",
        created_utc="2026-03-01T12:30:00+00:00",
        edgekd_version="0.1.0",
        recipe={},
        grid={"distill.losses": [[], []]},
        seeds=seeds,
        n_val=100,
        n_test=200,
        baselines=[base],
        rows=[better, *[better.model_copy(update={"rank": rank}) for rank in range(2, rows)], worse],
    )


def test_student_alone_is_on_top_of_the_ranking() -> None:
    table = ranking(_sweep())
    assert [row[:2] for row in _cells(table)] == [
        ["alone", "no teacher"],
        ["1", 'distill.losses = [{name = "kd", tau = 2.0}]'],
    ]
    best = table.rows[1]
    assert [cell.text for cell in best[2:7]] == [
        "94.00 %",
        "2.00",
        "89.03 to 98.97 %",
        "+2.00",
        "+1.75 to +2.25",
    ]
    assert best[5].tone == "good"
    assert "3 seeds" in table.note
    assert _cells(failures(_sweep())) == [["distill.losses = []", "Training diverged at step 3."]]


def test_ranking_of_one_seed_says_what_it_cannot_say() -> None:
    table = ranking(_sweep(seeds=1))
    assert _cells(table)[1][3:7] == ["–", "–", "+2.00", "–"]  # noqa: RUF001
    assert "1 seed, so without an interval" in table.note
    assert "nobody can tell" in table.note


def test_large_sweep_warns_of_chance() -> None:
    assert "by chance alone" not in ranking(_sweep()).note
    assert "about 2 would look better or worse" in ranking(_sweep(rows=40)).note


def test_several_students_alone_are_numbered() -> None:
    sweep = _sweep()
    [base] = sweep.baselines
    several = sweep.model_copy(update={"baselines": [base, base.model_copy(update={"changes": {"student.width": 4}})]})
    shown = _cells(ranking(several))
    assert [row[:2] for row in shown[:2]] == [["alone 1", "no teacher"], ["alone 2", "student.width = 4"]]
    assert shown[2][1].endswith("(against alone 1)")


def test_sweep_has_a_page_and_a_terminal_form() -> None:
    sweep = _sweep()
    page = reports.render_sweep_markdown(sweep)
    assert page.startswith("# small\n")
    assert "## Diverged" in page
    assert Sweep.model_validate_json(reports.sweep_to_json(sweep)) == sweep
    console = Console(file=io.StringIO(), width=80)
    for part in reports.render_sweep_terminal(sweep):
        console.print(part)
    out = console.file
    assert isinstance(out, io.StringIO)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "94.00 %" in out.getvalue()


@pytest.mark.parametrize("seeds", [1, 3])
def test_sweep_of_nothing_but_failures_is_still_shown(seeds: int) -> None:
    sweep = _sweep(seeds)
    failed = sweep.model_copy(update={"baselines": [], "rows": [sweep.rows[-1]]})
    assert "Training diverged" in reports.render_sweep_markdown(failed)
    assert len(reports.render_sweep_terminal(failed)) == 2
