"""Arguments and options of `edgekd bench` and of the devices that it measures on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowFallback",
    "Baseline",
    "Batch",
    "BudgetIs",
    "BudgetMs",
    "Confidence",
    "Cores",
    "Device",
    "DeviceNames",
    "DeviceOptions",
    "JUnitFile",
    "MarkdownFile",
    "MaxRegression",
    "Measured",
    "Percentile",
    "Profile",
    "Provider",
    "Queries",
    "SshHosts",
    "SustainedSeconds",
    "SweepThreads",
    "Threads",
]

Measured = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE|MODEL|BUNDLE", help="A recipe (.toml), any ONNX file (.onnx), or a bundle: folder or .zip."
    ),
]
# these belong to [bench] of a recipe: without one, BenchSettings has the defaults that the help repeats
BudgetMs = Annotated[
    float | None, typer.Option("--budget-ms", metavar="MS", help="Latency that must not be exceeded, 500 by default.")
]
Percentile = Annotated[
    float | None,
    typer.Option("--percentile", metavar="P", help="Percentile that the budget is about, 90 by default."),
]
Confidence = Annotated[
    float | None, typer.Option("--confidence", metavar="C", help="Confidence of the verdict, 0.99 by default.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads of the runtime, 1 by default.")
]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Samples in one query, 1 by default.")]
Queries = Annotated[int | None, typer.Option("--queries", metavar="N", help="Timed queries, 256 by default.")]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="default, or mobile: one pinned thread and a cold start."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Where to measure (`edgekd list devices`), cpu by default."),
]
BudgetIs = Annotated[
    str | None,
    typer.Option("--budget-is", metavar="WHAT", help="inference (default), or end_to_end: image in to labels out."),
]
Provider = Annotated[
    str | None,
    typer.Option("--provider", metavar="NAME", help="ONNX Runtime's, for every node; CPUExecutionProvider by default."),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Pass although nodes ran elsewhere, or int8 nodes in float.")
]
Cores = Annotated[
    str | None, typer.Option("--cores", metavar="N,N", help="Pin to these cores; to the fastest unless given.")
]
SweepThreads = Annotated[
    str | None, typer.Option("--sweep-threads", metavar="N,N", help="Compare these numbers of threads, 1,2,4.")
]
SustainedSeconds = Annotated[
    float | None,
    typer.Option("--sustained", metavar="SECONDS", help="Then run the model this long: drift, heat, throttling."),
]
DeviceNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Devices, ssh:user@host; all that can be seen from here unless given."),
]
SshHosts = Annotated[bool, typer.Option("--ssh", help="Connect to the hosts that ~/.ssh/config names, too.")]
DeviceOptions = Annotated[
    list[str] | None,
    typer.Option("--device-option", metavar="KEY=VALUE", help="An option of the device; repeatable."),
]
Baseline = Annotated[
    Path | None, typer.Option("--baseline", metavar="JSON", help="Earlier report.json; fail if it is slower now.")
]
MaxRegression = Annotated[
    str | None,
    typer.Option(
        "--max-regression", metavar="SHARE", help="How much slower is allowed, 5% by default; for --baseline."
    ),
]
JUnitFile = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML, for a build server.")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write verdict and gates as Markdown.")
]
