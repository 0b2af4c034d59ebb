"""Arguments and options of `edgekd estimate` and `edgekd probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DeviceProfileName",
    "EstimateBudgetMs",
    "ListProfiles",
    "OptionalModel",
    "OverwriteFile",
    "ProbeSeconds",
    "ProbedDevice",
    "ProfileOut",
    "ProfileThreads",
    "Sizes",
]

OptionalModel = Annotated[Path | None, typer.Argument(metavar="MODEL", help="An ONNX file (.onnx).")]
DeviceProfileName = Annotated[
    str | None,
    typer.Option(
        "--device-profile", metavar="NAME|FILE", help="A device (`edgekd estimate --list`), or a profile of your own."
    ),
]
ProfileThreads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads; those that the profile was fitted at.")
]
EstimateBudgetMs = Annotated[
    float | None, typer.Option("--budget-ms", metavar="MS", help="Say whether this latency is likely to hold.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="NAME=N", help="Size of a dynamic dimension other than the batch; repeatable."),
]
ListProfiles = Annotated[bool, typer.Option("--list", help="Show the device profiles and their errors.")]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Write over the file if it is there.")]
ProfileOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Profile to write; DEVICE-profile.toml unless given.")
]
ProbedDevice = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Device to probe: cpu, ssh:user@host (`edgekd list devices`).")
]
ProbeSeconds = Annotated[
    float | None, typer.Option("--seconds", metavar="S", help="Longest time for each probe, 2 by default.")
]
