"""Arguments and options of the command line that are not of one group of verbs, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "BiasCorrection",
    "CachePlace",
    "CalibratorName",
    "CatalogName",
    "Check",
    "CheckedSamples",
    "Data",
    "Epochs",
    "FloatLayers",
    "Folder",
    "Limit",
    "MaxCombinations",
    "Mean",
    "MemberName",
    "MinAgreement",
    "ModelFile",
    "ModelFiles",
    "ModelOrRecipe",
    "NewFolder",
    "OptionalOut",
    "Overwrite",
    "Part",
    "Quiet",
    "RecipeFile",
    "ReduceRange",
    "RequireInt8",
    "RunFolder",
    "Runtimes",
    "Samples",
    "Selection",
    "SetValues",
    "StatisticsFile",
    "Std",
    "SweepValues",
    "Target",
    "Userland",
]

_CATALOGS = ("calibration", "corrections", "datasets", "devices", "losses", "methods", "models", "targets")


def _catalogs(incomplete: str) -> list[str]:
    return [name for name in _CATALOGS if name.startswith(incomplete)]


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")]
ModelOrRecipe = Annotated[
    Path, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or any ONNX file (.onnx).")
]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file (.onnx), or one made for a target.")]
ModelFiles = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="Model files: .onnx, or made for a target (.pte, .xml).")
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
SweepValues = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=V,V|FILE",
        help="Try every combination of these values and rank them, distill.losses.1.tau=1,4; repeatable;"
        " or a TOML file whose keys hold lists.",
    ),
]
MaxCombinations = Annotated[
    int | None,
    typer.Option("--max-combinations", metavar="N", help="Refuse a larger sweep; 200 unless given."),
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
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="What an ONNX file is for (`edgekd list targets`), onnxruntime_x86 by default; a recipe names its own.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="NPZ|DIR", help="Samples for an ONNX file: an .npz file, or a folder of images."),
]
CalibratorName = Annotated[
    str | None,
    typer.Option("--calibrator", metavar="NAME", help="How ranges are chosen (`edgekd list calibration`)."),
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Calibration samples, 512 by default.")]
Selection = Annotated[
    str | None,
    typer.Option("--selection", metavar="NAME", help="Which samples calibrate: first, random (default) or k_center."),
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option("--statistics", metavar="JSON", help="What calibration saw: read if it is there, else written."),
]
BiasCorrection = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction", help="Give biases what rounding the weights takes; on by default."
    ),
]
FloatLayers = Annotated[
    list[str] | None, typer.Option("--float-layer", metavar="NODE", help="A node that stays float; repeatable.")
]
ReduceRange = Annotated[
    bool | None,
    typer.Option("--reduce-range/--full-range", help="Weights that x86 without VNNI sums exactly; by this CPU."),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="M,M,M", help="Per channel, of pixels in [0, 1]; for a folder of images."),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="S,S,S", help="Per channel, of pixels in [0, 1]; for a folder of images.")
]
RequireInt8 = Annotated[
    bool, typer.Option("--require-int8", help="Count a file without Q/DQ as one that should be int8.")
]
Runtimes = Annotated[
    str | None,
    typer.Option(
        "--runtimes",
        metavar="A,B",
        help="Targets, onnxruntime_plain or emulated_arm64; every one that is here unless given.",
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option("--min-agreement", metavar="SHARE", help="Least share of samples with the reference's top-1."),
]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Use the first N samples only.")]
Userland = Annotated[
    Path | None,
    typer.Option(
        "--arm64-userland", metavar="DIR", help="Folder for emulated_arm64; EDGEKD_ARM64_USERLAND unless given."
    ),
]
CachePlace = Annotated[
    str, typer.Argument(metavar="RECIPE|FOLDER|URL", help="A recipe (.toml), or where caches lie: a folder or a URL.")
]
Part = Annotated[
    str | None,
    typer.Option("--part", metavar="I/N", help="Build every N-th epoch, from the I-th on; 1/4 for the first of four."),
]
Epochs = Annotated[
    str | None, typer.Option("--epochs", metavar="A-B", help="Build these epochs, counted from 0; all unless given.")
]
CheckedSamples = Annotated[int, typer.Option("--samples", min=0, metavar="N", help="Views to ask the teacher again.")]
