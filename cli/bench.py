"""`edgekd bench`: latency and its verdict, of a recipe or of any ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cli import options
from edgekd.cli.render import Outcome
from edgekd.cli.stages import carry_out
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer

    from edgekd.recipe import BenchSettings

__all__ = ["register"]

_MODELS = (".onnx", ".pte", ".xml", ".engine")
_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("bench")(bench)


def bench(
    source: options.ModelOrRecipe,
    budget_ms: options.BudgetMs = None,
    percentile: options.Percentile = None,
    confidence: options.Confidence = None,
    threads: options.Threads = None,
    batch: options.Batch = None,
    queries: options.Queries = None,
    profile: options.Profile = None,
    device: options.Device = None,
    target: options.Target = None,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Measure latency and hold it against a budget.

    A recipe is carried out up to its measurement; an ONNX file is measured as it is, with made-up inputs.
    Exit code 0 is PASS, 1 is FAIL, 5 is INCONCLUSIVE.

    \b
    edgekd bench model.onnx --budget-ms 20 --percentile 90
    edgekd bench recipe.toml --profile mobile
    """
    given: dict[str, Any] = {
        "budget_ms": budget_ms,
        "percentile": percentile,
        "confidence": confidence,
        "threads": threads,
        "batch": batch,
        "queries": queries,
        "profile": profile,
        "device": device,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if source.suffix.lower() in _MODELS:
        _refuse({"--set": set_values, "--out": out, "--overwrite": overwrite}, "belong to recipes; leave them out")
        return _bench_file(source, _settings(given), target, as_json=as_json, quiet=quiet)
    _refuse({"--target": target}, "is for ONNX files; a recipe names its targets under [export]")
    overrides = [*(set_values or []), *(f"bench.{key}={value}" for key, value in given.items())]
    return carry_out(source, overrides, "bench", out=out, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _bench_file(path: Path, settings: BenchSettings, target: str | None, *, as_json: bool, quiet: bool) -> Outcome:
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        watcher.stage(path.name, cached=False)
        report = pipeline.bench_file(path, settings, target=target or "onnxruntime_x86", watcher=watcher)
    from edgekd.report import render_terminal, to_json

    code = _CODES[report.verdict.overall] if report.verdict else 0
    return Outcome(as_json, lambda: to_json(report), lambda: render_terminal(report), code)


def _settings(given: dict[str, Any]) -> BenchSettings:
    from pydantic import ValidationError

    from edgekd.recipe import BenchSettings

    try:
        return BenchSettings(**given)
    except ValidationError as error:
        lines = [
            f"--{str(one['loc'][0]).replace('_', '-')}: {one['msg'][0].lower()}{one['msg'][1:]}, got {one['input']!r}"
            for one in error.errors()
        ]
        raise UsageError("\n".join(lines)) from error


def _refuse(given: dict[str, Any], reason: str) -> None:
    names = [name for name, value in given.items() if value]
    if names:
        raise UsageError(f"{', '.join(names)} {reason}.")
