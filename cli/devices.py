"""`edgekd devices`: which devices answer, and what each can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import bench_options, options
from edgekd.cli.device_options import device_options as read_options
from edgekd.cli.render import Outcome, size, table

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.reachable import DeviceRow

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("devices")(devices)


def devices(
    names: bench_options.DeviceNames = None,
    ssh: bench_options.SshHosts = False,
    device_options: bench_options.DeviceOptions = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Connect to devices, and say what each of them can run.

    Without a name: this machine's processor and GPU, the emulated arm64 if its userland is set, phones that adb sees.
    Exit code 0, or 4 if a device that was named cannot be used.

    \b
    edgekd devices
    edgekd devices ssh:pi@raspberrypi --device-option python=/opt/venv/bin/python
    """
    from edgekd.cli.progress import watching

    chosen = read_options(device_options)
    with watching(quiet=quiet) as watcher:
        from edgekd.reachable import reachable

        watcher.stage("devices", cached=False)
        rows = reachable(names or [], options=chosen, ssh=ssh)
    failed = any(not row.reachable for row in rows if row.name in (names or []))
    return Outcome(as_json, lambda: _json(rows), lambda: _shown(rows), 4 if failed else 0)


def _json(rows: list[DeviceRow]) -> str:
    import json

    return json.dumps({"devices": [row.model_dump() for row in rows]}, indent=2)


def _shown(rows: list[DeviceRow]) -> list[RenderableType]:
    headings = ("device", "answers", "machine", "runtime", "providers", "cores", "memory")
    return [
        table("Devices", headings, [_cells(row) for row in rows]),
        *(f"{row.name}: times there are the emulator's, not the processor's." for row in rows if row.emulated),
        *(row.problem for row in rows if row.problem),
    ]


def _cells(row: DeviceRow) -> tuple[str, ...]:
    if not row.reachable:
        return (row.name, "no", "", "", "", "", "")
    machine = f"{row.machine}{', emulated' if row.emulated else ''}"
    return (
        row.name,
        "yes",
        f"{machine}, {row.processor}" if row.processor and not row.emulated else machine,
        f"{row.runtime} {row.runtime_version}",
        ", ".join(name.removesuffix("ExecutionProvider") for name in row.providers) or "none",
        "" if row.cores is None else str(row.cores),
        "" if row.memory_bytes is None else size(row.memory_bytes),
    )
