"""The two texts of a bundle: its card for people, and the program that a device runs."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgekd._bundle_manifest import BundleManifest
from edgekd._report_format import percent, points, points_interval, size
from edgekd._report_tables import tables
from edgekd._report_text import markdown_table

if TYPE_CHECKING:
    from edgekd.report import Report

__all__ = ["model_card", "run_model_script"]

_TABLES = ("ladder", "paired", "latency", "int8_vs_float", "parity")


def run_model_script(manifest: BundleManifest) -> str:
    """The text of run_model.py: numpy and ONNX Runtime only, with the same preprocessing as everywhere."""
    source = files("edgekd.agent").joinpath("images.py").read_text(encoding="utf-8")
    # its docstring and imports stand at the head of the template
    body = source[source.index("\ndef prepare(") :].strip()
    return _environment().get_template("run_model.py.jinja").render(images=body, name=json.dumps(manifest.name))


def model_card(manifest: BundleManifest, report: Report) -> str:
    """The text of README.md: front matter of a model hub, results, how to run, limits and licences."""
    built = tables(report)
    text = (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            manifest=manifest,
            report=report,
            yaml=json.dumps,
            teacher=report.recipe.get("teacher", {}).get("model", ""),
            student=report.recipe.get("student", {}).get("model", ""),
            data=report.recipe.get("data", {}).get("name", ""),
            results=_results(report),
            tables=[markdown_table(built[key]) for key in _TABLES if key in built],
            sizes={entry.file: size(manifest_size(manifest, report, entry.rung)) for entry in manifest.models},
        )
    )
    return text.rstrip() + "\n"


def manifest_size(manifest: BundleManifest, report: Report, rung: str) -> int | None:
    """Size of a rung's file in bytes, as the report has it."""
    return next((row.size_bytes for row in report.ladder if row.rung == rung and row.size_bytes), None)


def _results(report: Report) -> list[str]:
    """What the student is worth: the teacher, itself without a teacher, and int8 beside float."""
    values = {row.rung: row for row in reversed(report.ladder)}
    lines = []
    for name, what in (("teacher", "the teacher"), ("student_alone", "the same network trained without a teacher")):
        if name in values:
            lines.append(f"{what}: {percent(values[name].value)} of {values[name].n} test samples")
    for name, what in (("student", "the distilled student, float32"), ("onnx_int8", "the int8 file of this bundle")):
        if name in values:
            lines.append(f"{what}: {percent(values[name].value)}")
    for row in report.paired:
        if {row.a, row.b} == {"student_alone", "student"}:
            sign = 1.0 if row.b == "student" else -1.0
            low, high = sorted((sign * row.ci95[0], sign * row.ci95[1]))
            lines.append(
                f"what the teacher gave: {points(sign * row.difference)} (95 % interval {points_interval((low, high))})"
            )
    return lines


def _environment() -> Environment:
    made: Any = Environment(
        loader=PackageLoader("edgekd", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown and Python, not HTML
    )
    return made  # type: ignore[no-any-return]
