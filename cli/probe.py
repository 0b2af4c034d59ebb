"""`edgekd probe`: a device profile from measurements, for `edgekd estimate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import bench_options, estimate_options, options
from edgekd.cli.render import Outcome, table

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.pipeline import Probed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("probe")(probe)


def probe(
    device: estimate_options.ProbedDevice = "cpu",
    threads: bench_options.Threads = None,
    seconds: estimate_options.ProbeSeconds = None,
    out: estimate_options.ProfileOut = None,
    overwrite: estimate_options.OverwriteFile = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Measure what a device can do, and write a profile for `estimate`.

    Small models go there and are timed; nothing of yours does.

    \b
    edgekd probe --device ssh:pi@raspberrypi --threads 4 --out pi.toml
    edgekd estimate model.onnx --device-profile pi.toml
    """
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        watcher.stage(f"probe {device}", cached=False)
        found = pipeline.probe_device(
            device,
            threads=1 if threads is None else threads,
            seconds=2.0 if seconds is None else seconds,
            out=out,
            overwrite=overwrite,
            watcher=watcher,
        )
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found))


def _shown(found: Probed) -> list[RenderableType]:
    profile = found.profile
    rows = [(name, f"{row.value:.3g}", f"{row.lower:.3g} to {row.upper:.3g}") for name, row in found.rates.items()]
    checks = [
        (one.network, one.element_type, f"{one.latency_ms:.3g}", f"{one.held_out_ms:.3g}", f"{one.error:+.0%}")
        for one in profile.checked
    ]
    return [
        f"{profile.title}: {profile.runtime}, {profile.threads} thread{'s' if profile.threads > 1 else ''}",
        table("Fitted", ("rate", "value", "95 % interval"), rows),
        table("Held out", ("network", "type", "measured, ms", "ESTIMATE, ms", "error"), checks),
        *[f"Note: {one}" for one in profile.notes],
        f"Profile: {found.file}",
        f"edgekd estimate MODEL --device-profile {found.file}",
    ]
