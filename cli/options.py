"""Every argument and option of the command line, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowFallback",
    "AsJson",
    "Baseline",
    "Batch",
    "BiasCorrection",
    "BudgetIs",
    "BudgetMs",
    "BundleOption",
    "BundleOut",
    "BundlePath",
    "BundleTargets",
    "CachePlace",
    "CalibratorName",
    "CatalogName",
    "Check",
    "CheckedSamples",
    "Confidence",
    "Cores",
    "Data",
    "Device",
    "DeviceFolder",
    "DeviceNames",
    "DeviceOptions",
    "DeviceProfileName",
    "Epochs",
    "EstimateBudgetMs",
    "FloatLayers",
    "Folder",
    "Int8Files",
    "JUnitFile",
    "LabelsFile",
    "LicenceFile",
    "Limit",
    "ListProfiles",
    "MarkdownFile",
    "MaxCombinations",
    "MaxRegression",
    "Mean",
    "Measured",
    "MemberName",
    "MinAgreement",
    "ModelFile",
    "ModelFiles",
    "ModelOrRecipe",
    "NewFolder",
    "NoRun",
    "OptionalModel",
    "OptionalOut",
    "Overwrite",
    "OverwriteBundle",
    "OverwriteFile",
    "Part",
    "Percentile",
    "Place",
    "ProbeSeconds",
    "ProbedDevice",
    "Profile",
    "ProfileOut",
    "ProfileThreads",
    "Provider",
    "PublicKey",
    "Queries",
    "Quiet",
    "RecipeFile",
    "ReduceRange",
    "RequireInt8",
    "RequireSignature",
    "RequiredPlace",
    "RootCertificates",
    "RunFolder",
    "RunOrBundle",
    "RunOrModel",
    "Runtimes",
    "Samples",
    "Selection",
    "SetValues",
    "SignCertificate",
    "SignChain",
    "SignKey",
    "Sizes",
    "SshHosts",
    "StatisticsFile",
    "Std",
    "SustainedSeconds",
    "SweepThreads",
    "SweepValues",
    "Target",
    "Threads",
    "Userland",
]

_CATALOGS = ("calibration", "corrections", "datasets", "devices", "losses", "methods", "models", "targets")


def _catalogs(incomplete: str) -> list[str]:
    return [name for name in _CATALOGS if name.startswith(incomplete)]


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")]
ModelOrRecipe = Annotated[
    Path, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or any ONNX file (.onnx).")
]
Measured = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE|MODEL|BUNDLE", help="A recipe (.toml), any ONNX file (.onnx), or a bundle: folder or .zip."
    ),
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

RunOrBundle = Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="The folder of a run, or a bundle.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: its folder, or its .zip.")]
BundleOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR|ZIP", help="A folder, or a file ending with .zip; RUN/NAME.zip unless given."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR|ZIP", help="Pack what was exported into a bundle: a folder, or a .zip."),
]
BundleTargets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="NAME", help="Put in this target of the run only; repeatable."),
]
RunOrModel = Annotated[
    Path, typer.Argument(metavar="RUN|MODEL", help="The folder of a run, or a float ONNX file with --int8 and --data.")
]
Int8Files = Annotated[
    list[str] | None,
    typer.Option("--int8", metavar="TARGET=FILE", help="The int8 file of an ONNX file for a target; repeatable."),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Names of an ONNX file's classes, one a line, in its order."),
]
LicenceFile = Annotated[
    Path | None, typer.Option("--licence", metavar="FILE", help="A text that goes into the bundle as LICENSE.")
]
OverwriteBundle = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")]
SignKey = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign with this private key (EC, PEM); extra 'sign'.")
]
SignCertificate = Annotated[
    Path | None, typer.Option("--sign-certificate", metavar="PEM", help="The certificate of the signing key.")
]
SignChain = Annotated[
    list[Path] | None,
    typer.Option("--sign-chain", metavar="PEM", help="Certificates between it and a root; repeatable."),
]
RequireSignature = Annotated[
    bool, typer.Option("--require-signature", help="Refuse a bundle without a signature that holds.")
]
PublicKey = Annotated[
    Path | None, typer.Option("--key", metavar="PUB", help="Public key that the signature must be of (PEM).")
]
RootCertificates = Annotated[
    list[Path] | None,
    typer.Option("--certificate", metavar="PEM", help="Root that the signer's certificate must lead to; repeatable."),
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Check the files, and run nothing.")]
Place = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Where to run: cpu, ssh:USER@HOST, emulated_arm64; cpu by default."),
]
RequiredPlace = Annotated[str, typer.Option("--device", metavar="NAME", help="Where the files go: ssh:USER@HOST.")]
DeviceFolder = Annotated[
    str | None,
    typer.Option("--folder", metavar="DIR", help="Folder on the device; ~/edgekd/NAME unless given."),
]
