"""Every argument and option of the command line, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Batch",
    "BudgetMs",
    "CatalogName",
    "Check",
    "Confidence",
    "Device",
    "Folder",
    "MemberName",
    "ModelOrRecipe",
    "NewFolder",
    "OptionalOut",
    "Overwrite",
    "Percentile",
    "Profile",
    "Queries",
    "Quiet",
    "RecipeFile",
    "RunFolder",
    "SetValues",
    "Target",
    "Threads",
]

_CATALOGS = ("calibration", "datasets", "devices", "losses", "methods", "models", "targets")


def _catalogs(incomplete: str) -> list[str]:
    return [name for name in _CATALOGS if name.startswith(incomplete)]


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")]
ModelOrRecipe = Annotated[
    Path, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or any ONNX file (.onnx).")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, runs/NAME.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run, or of one artifact in it.")]
NewFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; made if it is not there.")]
CatalogName = Annotated[
    str | None,
    typer.Argument(metavar="CATALOG", help=f"One of: {', '.join(_CATALOGS)}.", autocompletion=_catalogs),
]

MemberName = Annotated[str | None, typer.Argument(metavar="NAME", help="One member, to see its options.")]

SetValues = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, distill.train.epochs=3; repeatable."),
]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run; runs/NAME unless given.")
]
Check = Annotated[bool, typer.Option("--check", help="Check everything and show the plan, without doing the work.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Use the folder although it holds something else.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON; an error is one JSON line, the last on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings and errors only.")]

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
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="What an ONNX file is for (`edgekd list targets`), onnxruntime_x86 by default; a recipe names its own.",
    ),
]
