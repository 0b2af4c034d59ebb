"""`edgekd bench`: latency and its verdict, of a recipe, of any ONNX file or of a bundle, here or on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cli import bench_options, options
from edgekd.cli.device_options import device_options as read_options
from edgekd.cli.render import Outcome
from edgekd.cli.stages import carry_out
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer

    from edgekd.pipeline import RunResult, Watcher
    from edgekd.recipe import BenchSettings
    from edgekd.report import Report

__all__ = ["register"]

_MODELS = (".onnx", ".pte", ".xml", ".engine")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("bench")(bench)


def bench(
    source: bench_options.Measured,
    budget_ms: bench_options.BudgetMs = None,
    percentile: bench_options.Percentile = None,
    confidence: bench_options.Confidence = None,
    budget_is: bench_options.BudgetIs = None,
    threads: bench_options.Threads = None,
    batch: bench_options.Batch = None,
    queries: bench_options.Queries = None,
    profile: bench_options.Profile = None,
    device: bench_options.Device = None,
    device_options: bench_options.DeviceOptions = None,
    provider: bench_options.Provider = None,
    allow_fallback: bench_options.AllowFallback = False,
    cores: bench_options.Cores = None,
    sweep_threads: bench_options.SweepThreads = None,
    sustained: bench_options.SustainedSeconds = None,
    baseline: bench_options.Baseline = None,
    max_regression: bench_options.MaxRegression = None,
    junit: bench_options.JUnitFile = None,
    markdown: bench_options.MarkdownFile = None,
    target: options.Target = None,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Measure latency and hold it against a budget.

    A recipe is carried out up to its measurement; an ONNX file is measured as it is, with made-up inputs; a bundle's
    files are measured after its golden vectors. Exit code 0 is PASS, 1 is FAIL, 5 is INCONCLUSIVE or INVALID.

    \b
    edgekd bench model.onnx --budget-ms 20 --percentile 90
    edgekd bench recipe.toml --profile mobile
    edgekd bench digits.zip --device ssh:pi@raspberrypi --sustained 60
    """
    given: dict[str, Any] = {
        "budget_ms": budget_ms,
        "percentile": percentile,
        "confidence": confidence,
        "budget_is": budget_is,
        "threads": threads,
        "batch": batch,
        "queries": queries,
        "profile": profile,
        "device": device,
        "device_options": read_options(device_options) or None,
        "provider": provider,
        "allow_fallback": allow_fallback or None,
        "cores": _numbers("--cores", cores),
        "sweep_threads": _numbers("--sweep-threads", sweep_threads),
        "sustained_seconds": sustained,
    }
    given = {key: value for key, value in given.items() if value is not None}
    gates = _Gates(baseline, max_regression, junit, markdown)
    if source.suffix.lower() == ".toml":
        _refuse({"--target": target}, "is for ONNX files; a recipe names its targets under [export]")
        overrides = [*(set_values or []), *_overrides(given)]
        return carry_out(
            source,
            overrides,
            "bench",
            out=out,
            overwrite=overwrite,
            as_json=as_json,
            quiet=quiet,
            finish=gates.finished,
        )
    _refuse({"--set": set_values, "--out": out, "--overwrite": overwrite}, "belong to recipes; leave them out")
    is_model = source.suffix.lower() in _MODELS
    if not is_model:
        _refuse({"--target": target}, "is for ONNX files; a bundle's models have theirs")
    settings = _settings(given)

    def measure(watcher: Watcher) -> Report:
        from edgekd import pipeline

        if is_model:
            return pipeline.bench_file(source, settings, target=target or "onnxruntime_x86", watcher=watcher)
        return pipeline.bench_bundle(source, settings, watcher=watcher)

    return _measured(source.name, measure, gates, as_json=as_json, quiet=quiet)


@dataclass(frozen=True)
class _Gates:
    """What is done with a report: an earlier one to compare with, and files for a build server."""

    baseline: Path | None
    max_regression: str | None
    junit: Path | None
    markdown: Path | None

    def __post_init__(self) -> None:
        if self.max_regression is not None and self.baseline is None:
            raise UsageError("--max-regression belongs to --baseline, which was not given.")
        if self.max_regression is not None:
            self._share()  # before anything is measured

    def of(self, report: Report) -> Report:
        """The report with its baseline gate; the files are written."""
        from edgekd import pipeline

        if self.baseline is not None:
            report = pipeline.compare_with(report, self.baseline, max_regression=self._share())
        pipeline.write_summaries(report, junit_file=self.junit, markdown_file=self.markdown)
        return report

    def finished(self, result: RunResult) -> RunResult:
        """The same for a recipe's run, whose report is written again where it has changed."""
        from edgekd import pipeline

        report = self.of(result.report)
        if report is result.report:
            return result
        pipeline.write_report(report, result.out)
        return replace(result, report=report, exit_code=pipeline.exit_code_of(report))

    def _share(self) -> float:
        from edgekd.measure import share_of

        return share_of(self.max_regression or "5%")


def _measured(name: str, measure: Callable[[Watcher], Report], gates: _Gates, *, as_json: bool, quiet: bool) -> Outcome:
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        watcher.stage(name, cached=False)
        report = gates.of(measure(watcher))
    from edgekd.report import render_terminal, to_json

    code = pipeline.exit_code_of(report)
    return Outcome(as_json, lambda: to_json(report), lambda: render_terminal(report), code)


def _overrides(given: dict[str, Any]) -> list[str]:
    """Settings as changes of a recipe."""
    lines = []
    for key, value in given.items():
        if isinstance(value, dict):
            lines += [f"bench.{key}.{name}={one}" for name, one in value.items()]
        else:
            lines.append(f"bench.{key}={str(value).lower() if isinstance(value, bool) else value}")
    return lines


def _numbers(name: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{name} takes whole numbers with commas between, 1,2,4; got '{text}'.") from error


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
