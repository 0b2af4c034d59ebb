"""What a build server reads: the gates of a report as JUnit XML and as a short Markdown summary."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from xml.etree import ElementTree

from edgekd import _report_format as text
from edgekd._gates import INT8_RUNG, Gate, gates
from edgekd._report_measured import latency
from edgekd._report_model import Report
from edgekd._report_text import budget_sentence, escaped, markdown_table

__all__ = ["ci_markdown", "junit"]

# what XML 1.0 cannot hold; a name in a model may
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SIGNS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "⚠️", "INVALID": "⚠️"}


def junit(report: Report) -> str:
    """The gates as JUnit XML: one test case each, in the form that the schema of Ant's JUnit task describes.

    A gate that failed is a failure; a measurement that decides nothing is an error, of type INCONCLUSIVE or INVALID.
    """
    found = _gates(report)
    failures = sum(gate.outcome == "FAIL" for gate in found)
    errors = sum(gate.outcome in ("INCONCLUSIVE", "INVALID") for gate in found)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "id": "0",
            "package": "edgekd",
            "name": _clean(report.name) or "report",
            "timestamp": _timestamp(report),
            "hostname": "localhost",  # the schema asks for one; which machine it was is in the device
            "tests": str(len(found)),
            "failures": str(failures),
            "errors": str(errors),
            "time": "0",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(report):
        ElementTree.SubElement(properties, "property", {"name": key, "value": _clean(value)})
    for gate in found:
        _case(suite, gate)
    ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(report.notes))
    ElementTree.SubElement(suite, "system-err").text = ""
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def ci_markdown(report: Report) -> str:
    """The verdict, every gate and the latencies as Markdown, short enough for a pull request."""
    found = _gates(report)
    parts = [f"## {escaped(report.name)}"]
    if report.verdict:
        lines = [f"{_SIGNS[report.verdict.overall]} **{report.verdict.overall}**"]
        lines += [escaped(line) for line in filter(None, [budget_sentence(report.verdict)])]
        parts.append("  \n".join(lines))
    if found:
        rows = [f"| {_SIGNS[one.outcome]} {one.outcome} | {_row(one)} |" for one in found]
        parts.append("\n".join(["| | Gate | What | Why |", "| --- | --- | --- | --- |", *rows]))
    table = latency(report)
    if table.rows:
        parts.append(f"<details><summary>{table.title}</summary>\n\n{markdown_table(table)}\n\n</details>")
    parts += [f"- {escaped(worth.sentence)}" for worth in report.worth]
    if report.notes:
        parts.append("\n".join(f"> {escaped(note)}" for note in report.notes))
    facts = [report.created_utc or "", f"edgekd {report.edgekd_version}" if report.edgekd_version else ""]
    parts.append(escaped(" · ".join(fact for fact in facts if fact)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(gate: Gate) -> str:
    return " | ".join(escaped(cell) for cell in (gate.name, gate.subject, gate.reason))


def _gates(report: Report) -> list[Gate]:
    rung = report.verdict.rung if report.verdict and report.verdict.rung else INT8_RUNG
    return gates(report, rung=rung)


def _case(suite: ElementTree.Element, gate: Gate) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": f"edgekd.{gate.name}", "name": _clean(gate.subject), "time": "0"}
    )
    if gate.outcome == "PASS":
        return
    kind = "failure" if gate.outcome == "FAIL" else "error"
    told = ElementTree.SubElement(case, kind, {"message": _clean(gate.reason), "type": gate.outcome})
    told.text = _clean(gate.reason)


def _properties(report: Report) -> list[tuple[str, str]]:
    found = [("edgekd", report.edgekd_version or text.MISSING)]
    if report.verdict:
        found.append(("verdict", report.verdict.overall))
    return found + [
        (f"device.{row.device}", f"{row.machine}, {row.runtime} {row.runtime_version}") for row in report.devices
    ]


def _timestamp(report: Report) -> str:
    """In UTC, to the second and without a zone, as the schema wants it."""
    try:
        moment = datetime.fromisoformat(report.created_utc or "")
    except ValueError:
        moment = datetime.fromtimestamp(0, UTC)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _clean(value: str) -> str:
    return _NOT_XML.sub("\ufffd", value)
