"""`edgekd quantize`: the int8 stage of a recipe, or post-training quantization of any ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cli import bench_options, options
from edgekd.cli.render import Outcome, size, table
from edgekd.cli.stages import DETAILS, carry_out, show_plan
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.pipeline import FileQuantization
    from edgekd.recipe import FileSettings

__all__ = ["numbers", "register"]

_HELP = f"""Make a recipe's student int8, or quantize any float ONNX file.

{DETAILS.format(verb="quantize")}
A float ONNX file is quantized after training: with samples (an .npz file whose arrays are named like the inputs, or a
folder of images) and for one target. Exit code 1 when an operator that could run as int8 does not.

\b
edgekd quantize model.onnx --data samples.npz --target onnxruntime_x86
edgekd quantize model.onnx --data photos/ --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2
"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("quantize", help=_HELP)(quantize)


def quantize(
    source: options.ModelOrRecipe,
    data: options.Data = None,
    target: options.Target = None,
    calibrator: options.CalibratorName = None,
    samples: options.Samples = None,
    selection: options.Selection = None,
    statistics: options.StatisticsFile = None,
    bias_correction: options.BiasCorrection = None,
    float_layer: options.FloatLayers = None,
    reduce_range: options.ReduceRange = None,
    mean: options.Mean = None,
    std: options.Std = None,
    threads: bench_options.Threads = None,
    set_values: options.SetValues = None,
    out: options.OptionalOut = None,
    check: options.Check = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    given: dict[str, Any] = {
        "calibrator": calibrator,
        "samples": samples,
        "selection": selection,
        "statistics": None if statistics is None else str(statistics),
        "bias_correction": bias_correction,
        "float_layers": float_layer,
        "reduce_range": reduce_range,
        "mean": numbers("--mean", mean),
        "std": numbers("--std", std),
        "threads": threads,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if source.suffix.lower() == ".onnx":
        if set_values or check:
            raise UsageError("--set and --check belong to recipes; leave them out.")
        if data is None:
            raise UsageError("--data is missing: an .npz file with samples, or a folder of images.")
        return _file(source, data, given, target, out, overwrite=overwrite, as_json=as_json, quiet=quiet)
    for name in ("data", "target", *given):
        if name in given or {"data": data, "target": target}.get(name) is not None:
            flag = f"--{name.removesuffix('s') if name == 'float_layers' else name}".replace("_", "-")
            raise UsageError(f"{flag} is for ONNX files; a recipe says it under [quantize], [data] and [export].")
    if check:
        return show_plan(source, set_values or [], out, as_json=as_json, quiet=quiet)
    return carry_out(source, set_values or [], "quantize", out=out, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _file(
    model: Path,
    data: Path,
    given: dict[str, Any],
    target: str | None,
    out: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> Outcome:
    from edgekd.cli.progress import watching

    settings = _settings(given)
    path = out or model.with_name(f"{model.stem}.int8.onnx")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: is there already. Give --overwrite, or another file with --out.")
    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline

        watcher.stage(model.name, cached=False)
        found = pipeline.quantize_file(
            model, data, settings, target=target or "onnxruntime_x86", out=path, watcher=watcher
        )
    code = 1 if found.islands else 0
    return Outcome(as_json, lambda: found.model_dump_json(indent=2), lambda: _shown(found), code)


def _settings(given: dict[str, Any]) -> FileSettings:
    from pydantic import ValidationError

    from edgekd.recipe import FileSettings

    try:
        return FileSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error


def numbers(flag: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{flag}: numbers with commas between, 0.5,0.5,0.5; got {text!r}") from error


def _shown(found: FileQuantization) -> list[RenderableType]:
    rows = [
        ("target", found.target),
        ("size", f"{size(found.size_bytes)}, {size(found.float_size_bytes)} in float"),
        ("calibration", f"{found.calibration_samples} samples, {found.calibration_s:.1f} s"),
        ("weights", "8 bits, shared by neighbours: sums of 16 bits" if found.reduce_range else "8 bits"),
        ("biases corrected", str(found.corrected_biases)),
        ("compared on", f"{found.n} {found.evaluated_on} samples"),
    ]
    if found.sqnr_db is not None:
        rows.append(("output SQNR", f"{found.sqnr_db:.1f} dB"))
    if found.agreement is not None and found.agreement_ci95 is not None:
        low, high = found.agreement_ci95
        rows.append(("top-1 agreement", f"{found.agreement:.2%} (95 %: {low:.2%} to {high:.2%})"))
    if found.accuracy is not None:
        rows.append(("accuracy", f"{found.accuracy['int8']:.2%}, {found.accuracy['float']:.2%} in float"))
    if found.coverage is not None:
        rows.append(("runs as int8", f"{found.coverage:.1%} of what the target can"))
    if found.legitimate:
        rows.append(("float by design", ", ".join(f"{count} {op}" for op, count in found.legitimate.items())))
    shown: list[RenderableType] = [table("Quantized", ("what", "value"), rows)]
    if found.islands:
        shown.append(table("Stayed float", ("operator, cause, remedy",), [(one,) for one in found.islands]))
    return [*shown, f"Model: {found.file}"]
