"""Gates, the verdict made of them, JUnit XML that a build server takes, and the Markdown summary."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from edgekd._gates import gates, overall
from edgekd._junit import ci_markdown, junit
from edgekd._report_device_model import BaselineRow, GoldenRow, Outcome, PlacementRow, Sustained
from edgekd.pipeline._verdict import verdict_of
from edgekd.recipe import BenchSettings
from edgekd.report import Latency, Report

TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")
# what the JUnit schema of Apache Ant asks of each element: attributes, and children in their order
REQUIRED = {
    "testsuite": {"id", "package", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"},
    "testcase": {"classname", "name", "time"},
    "failure": {"type"},
    "error": {"type"},
    "property": {"name", "value"},
}


def latency(verdict: Outcome | None = "PASS", **changes: object) -> Latency:
    values = {
        "rung": "onnx_int8",
        "target": "onnxruntime_arm",
        "device": "ssh:pi",
        "runtime": "onnxruntime",
        "provider_requested": "CPUExecutionProvider",
        "provider_used": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "n": 64,
        "mean_ms": 5.0,
        "verdict": verdict,
        "reason": "64 runs, 0 over 20 ms.",
        "samples": "onnx_int8",
    }
    return Latency(**{**values, **changes})  # type: ignore[arg-type]


def placement(*, passed: bool) -> PlacementRow:
    return PlacementRow(
        rung="onnx_int8",
        device="ssh:pi",
        provider_requested="CPUExecutionProvider",
        nodes={},
        shares={},
        partitions=1,
        passed=passed,
        reason="told",
    )


def baseline(verdict: Outcome) -> BaselineRow:
    return BaselineRow(
        rung="onnx_int8", device="ssh:pi", percentile=90.0, max_regression=0.05, verdict=verdict, reason="12% slower"
    )


def full(*rows: Latency, **changes: object) -> Report:
    values = {"name": "digits", "created_utc": "2026-01-02T03:04:05+02:00", "latency": list(rows)}
    made = Report(**{**values, "latency_samples": {"onnx_int8": [5.0] * 64}, **changes})  # type: ignore[arg-type]
    return made.model_copy(update={"verdict": verdict_of(BenchSettings(), made)})


def checked(xml: str) -> ElementTree.Element:
    """The suite of a document that holds to the schema."""
    root = ElementTree.fromstring(xml)
    assert (root.tag, [one.tag for one in root]) == ("testsuites", ["testsuite"])
    suite = root[0]
    order = [one.tag for one in suite]
    assert order == ["properties", *["testcase"] * (len(order) - 3), "system-out", "system-err"]
    assert TIMESTAMP.fullmatch(suite.attrib["timestamp"])
    for element in root.iter():
        assert REQUIRED.get(element.tag, set()) <= set(element.attrib), element.tag
    cases = suite.findall("testcase")
    assert all([one.tag for one in case] in ([], ["failure"], ["error"]) for case in cases)
    counted = [len(cases), len(suite.findall("testcase/failure")), len(suite.findall("testcase/error"))]
    assert [int(suite.attrib[name]) for name in ("tests", "failures", "errors")] == counted
    return suite


def test_every_gate_is_one_test_case() -> None:
    golden = GoldenRow(file="int8.onnx", device="ssh:pi", samples=4, passed=True, reason="equal")
    report = full(latency(), golden=[golden], placement=[placement(passed=True)], baseline=[baseline("PASS")])
    suite = checked(junit(report))
    found = [(case.attrib["classname"], case.attrib["name"]) for case in suite.findall("testcase")]
    assert found == [
        ("edgekd.golden", "int8.onnx on ssh:pi"),
        ("edgekd.placement", "onnx_int8 on ssh:pi"),
        ("edgekd.budget", "onnx_int8 onnxruntime_arm on ssh:pi"),
        ("edgekd.baseline", "onnx_int8 on ssh:pi p90"),
    ]
    assert suite.attrib["timestamp"] == "2026-01-02T01:04:05"  # in UTC


def test_failures_and_measurements_that_decide_nothing_are_told_apart() -> None:
    report = full(latency("INVALID", reason="Held back."), baseline=[baseline("FAIL")])
    suite = checked(junit(report))
    told = {case.attrib["classname"]: [(one.tag, one.attrib) for one in case] for case in suite.findall("testcase")}
    assert told == {
        "edgekd.budget": [("error", {"type": "INVALID", "message": "onnxruntime_arm on ssh:pi: Held back."})],
        "edgekd.baseline": [("failure", {"type": "FAIL", "message": "12% slower"})],
    }


def test_names_that_xml_cannot_hold_are_replaced() -> None:
    report = full(latency(device="ssh:<pi>\x00&\"'"), notes=["a\x1bb"])
    suite = checked(junit(report))
    assert suite.findall("testcase")[0].attrib["name"] == "onnx_int8 onnxruntime_arm on ssh:<pi>\ufffd&\"'"
    assert suite.findtext("system-out") == "a\ufffdb"


def test_report_without_gates_is_an_empty_suite() -> None:
    assert checked(junit(Report())).attrib["tests"] == "0"


@pytest.mark.parametrize(
    ("report", "ends"),
    [
        (full(latency("PASS")), "PASS"),
        (full(latency("INCONCLUSIVE")), "INCONCLUSIVE"),
        (full(latency("INVALID")), "INVALID"),
        (full(latency("INVALID"), placement=[placement(passed=False)]), "FAIL"),
        (full(latency("PASS"), baseline=[baseline("INCONCLUSIVE")]), "INCONCLUSIVE"),
        (full(latency("FAIL", rung="onnx_float"), latency("PASS")), "PASS"),  # the float file ships nothing
        (full(latency("FAIL", rung="onnx_float")), "INCONCLUSIVE"),  # and int8 was not measured
    ],
)
def test_one_gate_decides(report: Report, ends: Outcome) -> None:
    assert report.verdict is not None
    assert report.verdict.overall == ends


def test_held_back_sustained_run_makes_the_verdict_invalid() -> None:
    row = Sustained(
        rung="onnx_int8", target="t", device="ssh:pi", seconds=60.0, n=100, invalid="the device was held back."
    )
    report = full(latency("PASS"), sustained=[row])
    assert report.verdict is not None
    assert report.verdict.overall == "INVALID"
    assert report.verdict.reasons[0] == "t on ssh:pi, sustained: the device was held back."


def test_emulated_device_gives_no_verdict_but_its_answers_count() -> None:
    emulated = latency(None, is_latency=False)
    assert full(emulated).verdict is None
    wrong = GoldenRow(file="int8.onnx", device="ssh:pi", samples=4, passed=False, reason="differs by 3")
    report = full(emulated, golden=[wrong])
    assert report.verdict is not None
    assert (report.verdict.overall, report.verdict.reasons, report.verdict.measured_ms) == (
        "FAIL",
        ["differs by 3"],
        None,
    )


def test_gates_are_empty_for_an_empty_report() -> None:
    assert gates(Report()) == []
    assert overall([]) == "PASS"
    assert verdict_of(BenchSettings(), Report()) is None


def test_markdown_names_verdict_and_every_gate() -> None:
    report = full(latency("FAIL", device="a|b"), notes=["mind <this>"])
    text = ci_markdown(report)
    lines = text.splitlines()
    assert lines[0] == "## digits"
    assert "❌ **FAIL**  " in lines
    gate = next(line for line in lines if line.startswith("| ❌ FAIL | budget"))
    # a sign of a name is no column and no tag
    assert len(re.findall(r"(?<!\\)\|", gate)) == 5
    assert "> mind \\<this>" in lines
