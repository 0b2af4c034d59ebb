"""`edgekd estimate`: the latency of an ONNX file on a device that is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import bench_options, estimate_options, options
from edgekd.cli.render import Outcome, table
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.estimate import DeviceProfile, Estimate

__all__ = ["register"]

_ANSWERS = {
    "likely": "the whole interval is within it",
    "unlikely": "the whole interval is over it",
    "cannot tell": "the estimate is not sure enough; measure",
}


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("estimate")(estimate)


def estimate(
    model: estimate_options.OptionalModel = None,
    device_profile: estimate_options.DeviceProfileName = None,
    batch: bench_options.Batch = None,
    threads: estimate_options.ProfileThreads = None,
    budget_ms: estimate_options.EstimateBudgetMs = None,
    size: estimate_options.Sizes = None,
    list_profiles: estimate_options.ListProfiles = False,
    as_json: options.AsJson = False,
) -> Outcome:
    """Estimate the latency of an ONNX file on a device that is not there.

    Never a measurement: every output says ESTIMATE and how far off the profile was on published latencies. Exit code 0
    whatever the budget says.

    \b
    edgekd estimate model.onnx --device-profile pixel4 --budget-ms 20
    edgekd estimate --list
    """
    if list_profiles:
        return _listed(as_json)
    if model is None or device_profile is None:
        raise UsageError("Give a model and --device-profile NAME, or --list to see the profiles.")
    from edgekd.estimate import estimate as estimated
    from edgekd.estimate import find_profile

    found = estimated(
        model,
        profile=find_profile(device_profile),
        batch=batch or 1,
        threads=threads,
        budget_ms=budget_ms,
        sizes=_sizes(size or []),
    )
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found))


def _sizes(given: list[str]) -> dict[str, int]:
    sizes = {}
    for one in given:
        name, _, value = one.partition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise UsageError(f"--size {one}: write NAME=N with N at least 1, for example height=224.")
        sizes[name] = int(value)
    return sizes


def _listed(as_json: bool) -> Outcome:
    from edgekd.estimate import find_profile, profile_names

    found = [find_profile(name) for name in profile_names()]

    def as_text() -> str:
        import json

        return json.dumps([_facts(one) for one in found], indent=2)

    def shown() -> list[RenderableType]:
        rows = [(one.name, one.title, one.runtime, one.basis, _error(one)) for one in found]
        return [table("Device profiles", ("profile", "device", "runtime", "rates from", "error, held out"), rows)]

    return Outcome(as_json, as_text, shown)


def _facts(one: DeviceProfile) -> dict[str, object]:
    return {
        "name": one.name,
        "title": one.title,
        "processor": one.processor,
        "runtime": one.runtime,
        "basis": one.basis,
        "threads": one.threads,
        "held_out": len(one.checked),
        "median_error": one.median_error,
        "worst_error": one.worst_error,
    }


def _error(one: DeviceProfile) -> str:
    if one.median_error is None or one.worst_error is None:
        return "no published point: unchecked"
    return f"median {one.median_error:.0%}, worst {one.worst_error:.0%}, n = {len(one.checked)}"


def _shown(found: Estimate) -> list[RenderableType]:
    number = f"{found.estimate_ms:.3g} ms"
    if found.unchecked is None:
        between = f", between {found.lower_ms:.3g} and {found.upper_ms:.3g} ms"
    else:
        between = f"; {found.unchecked}: unchecked, no interval"
    parts: list[RenderableType] = [
        found.notice,
        f"{found.file} on {found.profile} ({found.device}; {found.runtime}), batch {found.batch},"
        f" {found.threads} thread{'s' if found.threads > 1 else ''}, mostly {found.element_type}",
        f"ESTIMATE: {number}{between}",
        _checked(found),
        f"{found.macs / 1e6:.4g} M multiply-accumulates, {found.weight_bytes / 1e6:.3g} MB of weights,"
        f" {found.activation_bytes / 1e6:.3g} MB of activations, {found.operators} operators",
        "",
        table(
            "Where the time would go (ESTIMATE)",
            ("kind", "type", "operators", "M MACs", "ms", "share"),
            [
                (row.kind, row.element_type, str(row.operators), f"{row.macs / 1e6:.4g}", f"{row.estimate_ms:.3g}",
                 f"{row.share:.0%}")
                for row in found.by_kind
            ],
        ),
    ]  # fmt: skip
    parts += [f"Note: {one}" for one in found.notes]
    if found.fits is not None:
        parts.append(f"ESTIMATE: a budget of {found.budget_ms:g} ms: {found.fits}, {_ANSWERS[found.fits]}.")
    return parts


def _checked(found: Estimate) -> str:
    if found.median_error is None or found.worst_error is None:
        return "Error of the profile: no published point: unchecked."
    kind = "measured" if found.basis == "probed" else "published"
    return (
        f"Error of the profile on {found.held_out} {kind} latencies of networks that it was not fitted to: median"
        f" {found.median_error:.0%}, worst {found.worst_error:.0%}."
    )
