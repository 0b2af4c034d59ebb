"""`edgekd agree`: do runtimes give the same answers for the same file?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import bench_options, options
from edgekd.cli.render import Outcome, table
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer
    from rich.console import RenderableType

    from edgekd.agreement import Agreement, PairRow

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("agree")(agree)


def agree(
    models: options.ModelFiles,
    data: options.Data = None,
    runtimes: options.Runtimes = None,
    min_agreement: options.MinAgreement = None,
    limit: options.Limit = None,
    threads: bench_options.Threads = None,
    userland: options.Userland = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Compare several runtimes' answers for the same file and samples.

    The reference is ONNX Runtime without optimizations, which computes what the file means. Exit code 1 if an answer
    agrees with it on fewer samples than --min-agreement asks.

    \b
    edgekd agree model.onnx --data samples.npz --runtimes onnxruntime_x86,openvino
    edgekd agree model.onnx model.pte --data samples.npz --min-agreement 0.99
    """
    if data is None:
        raise UsageError("--data is missing: an .npz file with samples, or a folder of images.")
    names = None if runtimes is None else [name.strip() for name in runtimes.split(",") if name.strip()]
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd.agreement import agree as compare

        watcher.stage("agreement", cached=False)
        found = compare(
            models,
            data=data,
            runtimes=names,
            min_agreement=min_agreement,
            limit=limit,
            threads=threads or 1,
            userland=userland,
            told=watcher.progress,
        )
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found), 0 if found.passed else 1)


def _shown(found: Agreement) -> list[RenderableType]:
    labelled = any(row.accuracy is not None for row in found.answers)
    rows = [
        (_short(row.name, found), row.version, *([_percent(row.accuracy)] if labelled else [])) for row in found.answers
    ]
    against = [pair for pair in found.pairs if pair.a == found.reference]
    others = [pair for pair in found.pairs if pair.a != found.reference]
    return [
        f"{found.samples} samples; the reference is {found.reference}",
        "",
        table("Answers", ("runtime", "version", *(["accuracy"] if labelled else [])), rows),
        _pairs("Against the reference", against, found),
        *([_pairs("Against each other", others, found)] if others else []),
        *(f"Cause: {row.name}: {row.cause}." for row in found.answers if row.cause),
        *(f"Not here: {name}: {reason}" for name, reason in found.missing.items()),
        *(f"Note: {text}" for text in found.notes),
        *_verdict(found),
    ]


def _pairs(title: str, pairs: Sequence[PairRow], found: Agreement) -> RenderableType:
    rows = [
        (
            _short(pair.b, found) if pair.a == found.reference else f"{_short(pair.a, found)}, {_short(pair.b, found)}",
            f"{_percent(pair.top1_agreement)}{'' if pair.passed is None else ' ok' if pair.passed else ' FAIL'}",
            f"{100 * pair.ci95[0]:.2f} to {100 * pair.ci95[1]:.2f} %",
            f"{pair.max_abs_diff:.3g}",
            _percent(pair.max_rel_diff),
        )
        for pair in pairs
    ]
    return table(title, ("runtime", "same top-1", "95 % interval", "largest diff.", "of range"), rows)


def _short(name: str, found: Agreement) -> str:
    """The runtime's name alone where all answers are for one file."""
    one_file = len({row.file for row in found.answers}) == 1
    return next(row.runtime for row in found.answers if row.name == name) if one_file else name


def _percent(share: float | None) -> str:
    from edgekd._report_format import percent

    return percent(share, decimals=2)


def _verdict(found: Agreement) -> list[str]:
    if found.min_agreement is None:
        return []
    wanted = f"agreement of at least {_percent(found.min_agreement)} with the reference"
    return [f"{'PASS' if found.passed else 'FAIL'}: {wanted}."]
