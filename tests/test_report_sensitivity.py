"""The report's part on sensitivity and mixed precision: what the tables say, and where the chart's points lie."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from edgekd._plots_pareto import Point, front, pareto_chart
from edgekd._report_sensitivity import TOP_GROUPS, mixed_sentences, pareto, path, sensitivity
from edgekd._report_text import markdown_table, rich_table
from edgekd._sensitivity_model import EQUAL_DB, GroupSensitivity, MixedPrecision, Sensitivity, Step

X86 = "onnxruntime_x86"


def row(name: str, kl_gain: float, **changed: object) -> GroupSensitivity:
    values = {
        "name": name,
        "operator": "convolution",
        "weight_sqnr_db": 38.24,
        "output_sqnr_db": 30.0,
        "end_to_end_sqnr_db": 25.0,
        "kl_alone": 0.002,
        "kl_gain": kl_gain,
        "drop_alone": 0.01,
        "gain": 0.004,
    }
    return GroupSensitivity.model_validate(values | changed)


def found(*rows: GroupSensitivity) -> dict[str, Sensitivity]:
    return {X86: Sensitivity(n=300, accuracy_float=0.9, kl_int8=0.03, sqnr_int8_db=20.0, groups=list(rows))}


def step(action: str, floats: list[str], metric: float, ms: float, **changed: object) -> Step:
    values = {
        "action": action,
        "float_layers": floats,
        "metric": metric,
        "drop": 0.9 - metric,
        "holds": metric >= 0.895,
        "accepted": action in ("int8", "restore"),
        "estimated_ms": ms,
    }
    return Step.model_validate(values | changed)


def mixture(*, measured: bool = True, **changed: object) -> MixedPrecision:
    steps = [
        step("int8", [], 0.86, 10.0, measured_ms=11.0 if measured else None),
        step("restore", ["a"], 0.88, 10.5, groups=["a"], measured_ms=11.8 if measured else None),
        step("restore", ["a", "b"], 0.897, 12.0, groups=["b"], measured_ms=13.0 if measured else None),
        step("give_back", ["b"], 0.87, 11.5, groups=["a"]),
        step("float", ["a", "b", "c"], 0.9, 20.0, measured_ms=21.0 if measured else None),
    ]
    values = {"metric": "accuracy", "max_drop": 0.005, "float_layers": ["a", "b"], "drop": 0.003, "all_float": False}
    return MixedPrecision.model_validate(values | {"path": steps} | changed)


def test_sensitivity_lists_the_worst_first() -> None:
    table = sensitivity(found(row("a", 0.001), row("b", 0.02), row("c", 0.0, kl_gain_output=0.5)))
    assert [cells[1].text for cells in table.rows] == ["c", "b", "a"]
    assert "3 of 3 layers, 300 samples" in table.note


def test_sensitivity_says_every_number_with_its_unit() -> None:
    table = sensitivity(found(row("a", 0.0125, kl_gain_output=-0.5)))
    said = {column.label: cell.text for column, cell in zip(table.columns, table.rows[0], strict=True)}
    assert said == {
        "Target": X86,
        "Layer": "a",
        "Type": "convolution",
        "Weights, dB": "38.2",
        "Output, dB": "30.0",
        "Logits, dB": "25.0",
        "KL alone, nats": "0.00200",
        "KL won back, nats": "0.0125",
        "KL of its output, nats": "−0.500",  # noqa: RUF001 typographic minus
        "Accuracy alone, points": "−1.00",  # noqa: RUF001
        "Accuracy won back, points": "+0.40",
    }


def test_flagged_errors_are_bad_news_and_missing_ones_a_dash() -> None:
    bad = row("a", 0.1, weight_sqnr_db=12.0, output_sqnr_db=-3.0, flags=["weights", "output"])
    plain = row("b", 0.0, weight_sqnr_db=None, output_sqnr_db=EQUAL_DB, drop_alone=None, gain=None)
    first, second = sensitivity(found(bad, plain)).rows
    assert [(cell.text, cell.tone) for cell in first[3:5]] == [("12.0", "bad"), ("−3.0", "bad")]  # noqa: RUF001
    assert [(cell.text, cell.tone) for cell in second[3:5]] == [("–", ""), ("equal", "")]  # noqa: RUF001
    assert [second[index].text for index in (8, 9, 10)] == ["0", "–", "–"]  # noqa: RUF001


def test_sensitivity_stops_after_the_worst() -> None:
    table = sensitivity(found(*(row(f"layer{index}", 1.0 - index / 100) for index in range(TOP_GROUPS + 5))))
    assert len(table.rows) == TOP_GROUPS
    assert f"{TOP_GROUPS} of {TOP_GROUPS + 5} layers" in table.note


def test_path_tells_every_step_and_whether_it_holds() -> None:
    table = path({X86: mixture()})
    assert [cells[2].text for cells in table.rows] == [
        "all int8",
        "+ a",
        "+ b",
        "a back to int8, refused",
        "all float",
    ]
    assert [cells[8].text for cells in table.rows] == ["no", "no", "yes", "no", "yes"]
    assert [cell.text for cell in table.rows[2][3:8]] == ["2", "89.70 %", "0.30 points", "13.0", "12.0"]
    assert table.rows[3][6].text == "–"  # noqa: RUF001 not measured


def test_tables_render_everywhere() -> None:
    for table in (sensitivity(found(row("a", 0.1))), path({X86: mixture()})):
        assert table.title in markdown_table(table)
        assert rich_table(table).row_count == len(table.rows)
        assert all(len(cells) == len(table.columns) for cells in table.rows)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, f"{X86}: in float a, b; drop of accuracy 0.30 points, allowed 0.50 points."),
        (
            {"float_layers": [], "drop": -0.001},
            f"{X86}: int8 holds without any layer in float; drop of accuracy −0.10 points, allowed 0.50 points.",  # noqa: RUF001
        ),
        (
            {"all_float": True, "drop": 0.0},
            f"{X86}: only with every layer in float does the drop of accuracy hold (0.00 points, allowed 0.50 points).",
        ),
    ],
)
def test_sentence_says_what_became_float(changed: dict[str, object], wanted: str) -> None:
    assert mixed_sentences({X86: mixture(**changed)}) == [wanted]


def drawn(found: MixedPrecision) -> ElementTree.Element:
    return ElementTree.fromstring(str(pareto(found)))


def test_pareto_chart_labels_each_point_with_what_was_restored() -> None:
    root = drawn(mixture())
    texts = {element.text for element in root.iter("text")}
    assert {"0: all int8", "1: + a", "2: + b", "4: all float", "latency, ms", "accuracy, %"} <= texts
    titles = [element.text for element in root.iter("title")]
    assert titles == [
        "all int8: 86.00 %, 11.0 ms",
        "+ a: 88.00 %, 11.8 ms",
        "+ b: 89.70 %, 13.0 ms",
        "all float: 90.00 %, 21.0 ms",
    ]
    assert "+ b: 89.70 %, 13.0 ms" in root.attrib["aria-label"]


def test_pareto_chart_shows_refused_steps_when_all_latencies_are_estimates() -> None:
    root = drawn(mixture(measured=False))
    assert "a back to int8, refused: 87.00 %, 11.5 ms" in {element.text for element in root.iter("title")}


def test_points_lie_right_and_up_with_latency_and_metric() -> None:
    marks = [element for element in drawn(mixture()).iter("g") if element.find("title") is not None]
    places = []
    for mark in marks:
        drawing = mark.find("path")
        assert drawing is not None
        place = re.match(r"M([\d.]+) ([\d.]+)h0", drawing.attrib["d"])
        assert place is not None
        places.append((float(place[1]), float(place[2])))
    assert places == sorted(places)  # slower is further right
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)  # better is higher up
    chosen = [mark for mark in marks if mark.find("path").attrib["class"] == "dot"]  # type: ignore[union-attr]
    assert [one.find("title").text for one in chosen] == ["+ b: 89.70 %, 13.0 ms"]  # type: ignore[union-attr]


def test_labels_never_lie_on_each_other() -> None:
    crowd = [
        Point(10 + index / 50, 90 + (index % 3) / 10, f"+ features.{index}.conv", index, "way", "x")
        for index in range(40)
    ]
    root = ElementTree.fromstring(str(pareto_chart(crowd, name="x", y_label="y")))
    boxes = []
    for element in root.iter("text"):
        if element.attrib["class"] == "note" and element.text:
            width, x, y = 6.1 * len(element.text), float(element.attrib["x"]), float(element.attrib["y"])
            left = {"start": x, "end": x - width, "middle": x - width / 2}[element.attrib["text-anchor"]]
            boxes.append((left, y - 10, left + width, y + 3))
    assert len(boxes) >= 5
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_front_holds_what_no_other_point_beats() -> None:
    points = [
        Point(ms, value, "", number, "way", "")
        for number, (ms, value) in enumerate([(3.0, 5.0), (1.0, 1.0), (2.0, 4.0), (2.5, 3.0), (1.0, 2.0), (4.0, 5.0)])
    ]
    assert [(one.ms, one.value) for one in front(points)] == [(1.0, 2.0), (2.0, 4.0), (3.0, 5.0)]


def test_single_point_is_drawn() -> None:
    chart = pareto_chart([Point(1.0, 0.0, "all int8", 0, "chosen", "all int8")], name="x", y_label="y", limit=0.0)
    assert "0: all int8" in {element.text for element in ElementTree.fromstring(str(chart)).iter("text")}
