"""The report's part on the cost of training: the same numbers in every rendering, and bars that are as long as they."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from rich.console import Console

from edgekd import report as reports
from edgekd._report_training import cost, parts_chart, step_parts
from edgekd._table import Table
from edgekd.report import Report, Stage, TrainingCost

# parts of a step in ms; the sums are 20, 40 and 25
ALONE = {"data": 1.0, "forward": 6.0, "backward": 11.0, "optimizer": 1.0, "other": 1.0}
TAUGHT = {"data": 1.0, "teacher": 18.0, "forward": 7.0, "backward": 12.0, "optimizer": 1.0, "other": 1.0}
CACHED = {"data": 1.0, "cache": 1.0, "forward": 9.0, "backward": 12.0, "optimizer": 1.0, "other": 1.0}


def row(stage: str, parts: dict[str, float], **more: Any) -> TrainingCost:
    step_ms = sum(parts.values())
    return TrainingCost(
        stage=stage, epochs=30, steps=12_660, seconds=310.0, timed_steps=12_660, images_per_s=128 / step_ms * 1000,
        step_ms=step_ms, parts_ms=parts, **more,
    )  # fmt: skip


def sample() -> Report:
    return Report(
        training=[
            row("student_alone", ALONE, peak_memory_mib=612.4),
            row("student", TAUGHT, peak_memory_mib=1234.0, resumed_step=4220),
            row("student-seed1", TAUGHT),
            row("student-cached", CACHED),
            TrainingCost(stage="old", epochs=3, steps=30, seconds=1.0),
        ],
        stages=[
            Stage(stage="teacher", seconds=9.0, cached=True, peak_memory_mib=2000.0),
            Stage(stage="student", seconds=310.0, cached=False, peak_memory_mib=1234.0),
            Stage(stage="export", seconds=2.0, cached=False),
        ],
    )


def shown(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for renderable in reports.render_terminal(report):
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def texts(table: Table, row: int) -> list[str]:
    return [cell.text for cell in table.rows[row]]


def labels(table: Table) -> list[str]:
    return [column.label for column in table.columns]


def test_tables_have_throughput_memory_and_parts() -> None:
    table, parts = cost(sample()), step_parts(sample())
    assert labels(table) == [
        "Stage", "Images/s", "Time", "Step, ms", "Most of a step", "Peak memory", "Went on from",
    ]  # fmt: skip
    assert texts(table, 0)[:5] == ["student_alone", "6,400", "5 min 10 s", "20.0", "backward, 55.0 %"]
    assert texts(table, 1) == [
        "student", "3,200", "5 min 10 s", "40.0", "teacher, 45.0 %", "1.21 GiB", "step 4,220 of 12,660",
    ]  # fmt: skip
    assert set(texts(table, 4)[3:]) == {"–"}  # noqa: RUF001
    assert labels(parts) == [
        "Stage", "Step, ms", "Data", "Cache", "Teacher", "Forward", "Backward", "Optimizer", "Other",
    ]  # fmt: skip
    assert texts(parts, 1) == ["student", "40.0", "2.5 %", "–", "45.0 %", "17.5 %", "30.0 %", "2.5 %", "2.5 %"]  # noqa: RUF001
    assert len(parts.rows) == 4
    assert cost(Report()).rows == step_parts(Report()).rows == ()


def test_column_is_there_when_a_stage_has_something_in_it() -> None:
    gpu = row("student", ALONE, gpu_memory_mib=81.5, compiled=False, compile_reason="2 % slower")
    table = cost(Report(training=[gpu]))
    assert labels(table) == ["Stage", "Images/s", "Time", "Step, ms", "Most of a step", "Peak GPU memory", "Compiled"]
    assert texts(table, 0)[-2:] == ["81.5 MiB", "no: 2 % slower"]


def test_terminal_is_short_and_keeps_its_numbers_whole() -> None:
    text = shown(sample(), width=80)
    assert max(map(len, text.splitlines())) <= 80
    [line] = [line for line in text.splitlines() if line.startswith("student  ") and "45.0" in line]
    assert line.split() == ["student", "3,200", "5", "min", "10", "s", "40.0", "teacher,", "45.0", "%", "1.21", "GiB"]
    assert "Time of a step" not in text


def test_stages_have_their_memory() -> None:
    text = shown(sample())
    stages = text[text.index("Stages") :]
    assert re.search(r"teacher +9\.00 s +1\.95 GiB +already there", stages)
    assert re.search(r"this run +5 min 12 s +1\.21 GiB", stages)  # a cached stage is not of this run
    assert "Peak memory" not in shown(Report(stages=[Stage(stage="export", seconds=2.0, cached=False)]))


def drawn(costs: list[TrainingCost]) -> ET.Element:
    return ET.fromstring(str(parts_chart(costs)))


def test_segments_are_as_long_as_their_parts() -> None:
    chart = drawn(sample().training)
    by_hover = {}
    for group in chart.iter("g"):
        hover, rectangle = group.find("title"), group.find("rect")
        assert hover is not None
        assert rectangle is not None
        by_hover[str(hover.text)] = float(rectangle.get("width", 0)) + 1  # less a hairline
    teacher = by_hover["student, teacher: 18.0 ms, 45.0 %"]
    assert by_hover["student, backward: 12.0 ms, 30.0 %"] == pytest.approx(teacher * 12 / 18, abs=0.2)
    assert by_hover["student_alone, backward: 11.0 ms, 55.0 %"] == pytest.approx(teacher * 11 / 18, abs=0.2)
    assert by_hover["student-cached, teacher: 1.00 ms, 4.0 %"] == pytest.approx(teacher / 18, abs=0.2)
    assert not any("seed1" in hover or hover.startswith("old") for hover in by_hover)
    total = sum(width for hover, width in by_hover.items() if hover.startswith("student,"))
    assert total == pytest.approx(teacher * 40 / 18, abs=0.5)


def test_chart_is_told_in_words_and_fits_its_frame() -> None:
    chart = drawn(sample().training)
    label = chart.get("aria-label", "")
    assert "student_alone 20.0 ms, backward, 55.0 %" in label
    _, _, width, height = map(float, chart.get("viewBox", "").split())
    for one in chart.iter():
        if one.tag in ("rect", "text"):
            assert 0 <= float(one.get("x", 0)) <= width
            assert 0 <= float(one.get("y", 0)) <= height
    assert parts_chart([TrainingCost(stage="old", epochs=3, steps=30, seconds=1.0)]) == ""


def test_page_and_markdown_have_the_section() -> None:
    page = reports.render_html(sample())
    assert '<a href="#training">Training</a>' in page
    section = page[page.index('<h2 id="training">') : page.index('<h2 id="origin">')]
    assert section.index("Cost of training") < section.index("Time of a step")
    assert "ms a step" in section
    assert "Cost of training" in reports.render_markdown(sample())
    assert "Cost of training" not in reports.render_html(Report())


def test_report_of_an_older_edgekd_is_read() -> None:
    values = reports.to_json(sample()).replace('"peak_memory_mib": 2000.0,', "")
    assert reports.from_json(values).stages[0].peak_memory_mib is None
    assert reports.from_json(reports.to_json(sample())) == sample()
    assert reports.from_json('{"schema_version": 1, "name": "a"}').training == []
