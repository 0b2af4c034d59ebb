"""`edgekd doctor`: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome, size, table

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.doctor import Diagnosis

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor")(doctor)


def doctor(as_json: options.AsJson = False) -> Outcome:
    """Try every backend on this machine, and say what is missing.

    Exit code 0 if the main path works, 4 if something that it needs does not.

    \b
    edgekd doctor
    edgekd doctor --json > doctor.json
    """
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd.doctor import diagnose

        found = diagnose()
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found), found.exit_code)


def _shown(found: Diagnosis) -> list[RenderableType]:
    return [
        table("This machine", ("what", "found"), _machine(found)),
        table(
            "Packages",
            ("package", "installed", "supported", ""),
            [(one.name, one.installed or "missing", one.required, _mark(one.supported)) for one in found.packages],
        ),
        table("Backends", ("backend", "works", "problem"), _backends(found)),
        table(
            "Extras",
            ("extra", "installed", "to install"),
            [
                (one.name, "not for this platform" if one.installed is None else _mark(one.installed), one.command)
                for one in found.extras
            ],
        ),
        *(f"Problem: {text}" for text in found.problems),
        *(f"Warning: {text}" for text in found.warnings),
        "The main path does not work yet." if found.problems else "Everything that edgekd needs works here.",
    ]


def _machine(found: Diagnosis) -> list[tuple[str, str]]:
    cpu = found.cpu
    cores = f"{cpu['cores_allowed'] or cpu['cores_logical']} of {cpu['cores_logical']}"
    features = ", ".join(cpu["features"] or []) or "not told"
    return [
        ("edgekd", found.edgekd),
        ("Python", found.python),
        ("system", found.platform),
        ("processor", str(cpu["model"] or cpu["machine"])),
        ("cores for us", cores),
        ("int8 features", features),
        ("int8 sums", found.int8_sums or "not tried"),
        ("memory", size(cpu["memory_bytes"])),
        ("free disk", f"{size(found.disk.free_bytes)} in {found.disk.path}"),
    ]


def _backends(found: Diagnosis) -> list[tuple[str, str, str]]:
    rows = [
        (f"torch {one.name} {one.description}".rstrip(), _mark(one.works), one.problem) for one in found.torch_devices
    ]
    rows += [(f"onnxruntime {one.name}", _mark(one.works), one.problem) for one in found.providers]
    if found.tensorrt is None:
        return [*rows, ("TensorRT", "no", "not installed; see the extra tensorrt")]
    name = f"{found.tensorrt.library} {found.tensorrt.version}"
    return [*rows, (name, _mark(found.tensorrt.parses), found.tensorrt.problem)]


def _mark(good: bool) -> str:
    return "yes" if good else "no"
