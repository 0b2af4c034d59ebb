"""A report against an earlier one, and what a build server reads of it."""

from __future__ import annotations

from pathlib import Path

from edgekd._baseline import against, notes
from edgekd._gates import INT8_RUNG
from edgekd._junit import ci_markdown, junit
from edgekd.errors import ArtifactError
from edgekd.pipeline._claim import write_whole_text
from edgekd.pipeline._verdict import verdict_of
from edgekd.recipe import BenchSettings
from edgekd.report import Report, from_json

__all__ = ["compare_with", "exit_code_of", "write_summaries"]

_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5, "INVALID": 5}


def compare_with(report: Report, baseline: Path, *, max_regression: float) -> Report:
    """The report with its latencies held against those of an earlier one, and its verdict with that gate.

    Args:
        report: what was measured now.
        baseline: a report.json.
        max_regression: largest allowed ratio minus 1, >= 0.

    Raises:
        ArtifactError: there is no report, or it is damaged.
    """
    try:
        earlier = from_json(baseline.read_bytes(), source=str(baseline))
    except OSError as error:
        raise ArtifactError(
            f"The baseline {baseline} cannot be read: {error.strerror}. Give the report.json of an earlier run, or what"
            " `edgekd bench --json` printed."
        ) from error
    compared = report.model_copy(
        update={
            "baseline": against(report, earlier, max_regression=max_regression),
            "notes": [*report.notes, *notes(report, earlier)],
        }
    )
    chosen = BenchSettings(**report.recipe.get("bench", {}))
    rung = report.verdict.rung if report.verdict and report.verdict.rung else INT8_RUNG
    return compared.model_copy(update={"verdict": verdict_of(chosen, compared, rung=rung)})


def write_summaries(report: Report, *, junit_file: Path | None, markdown_file: Path | None) -> None:
    """Write the gates as JUnit XML and as Markdown, each whole or not at all; None for not.

    Raises:
        StorageError: the disk refused.
    """
    for file, render in ((junit_file, junit), (markdown_file, ci_markdown)):
        if file is not None:
            write_whole_text(file, render(report))


def exit_code_of(report: Report) -> int:
    """0 for PASS and for no verdict, 1 for FAIL, 5 where the measurement decides nothing."""
    return _CODES[report.verdict.overall] if report.verdict else 0
