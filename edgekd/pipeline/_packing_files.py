"""From ONNX files without a run to a bundle: golden vectors from samples, and what the files say about themselves."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import edgekd
from edgekd.artifact import Artifact, content_hash, file_hash, open_artifact, seal
from edgekd.bundle import BundleManifest, SignFolder
from edgekd.catalog import CATALOGS
from edgekd.errors import DataError, MismatchError, UsageError
from edgekd.feeds import preprocessing_of, read_feeds
from edgekd.pipeline._packing import answers, bundled
from edgekd.pipeline._run import environment
from edgekd.pipeline._shipping import FLOAT_STEM, INT8_STEM
from edgekd.report import Report
from edgekd.spec import ModelSpec, TensorSpec
from edgekd.targets._base import Target
from edgekd.targets._modelfile import model_inputs, model_outputs, read_model

__all__ = ["pack_files"]

_GOLDEN = 4
_LABELS = "edgekd.labels"


def pack_files(
    model: Path,
    int8: Mapping[str, Path],
    data: Path,
    out: Path,
    *,
    labels: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    licence: Path | None = None,
    overwrite: bool = False,
    sign: SignFolder | None = None,
) -> BundleManifest:
    """Write a bundle of a float ONNX file and its int8 files.

    Args:
        model: the float file.
        int8: the quantized file of each target, by the target's name; from `edgekd quantize` or another tool.
        data: samples for the golden vectors: an npz file or a folder of images, see `edgekd.feeds.read_feeds`.
        out: a folder, or a file that ends with .zip.
        labels: a text file with the name of one class on each line, in the order of the logits; what the file's
            metadata say unless given.
        mean, std: of the preprocessing, per channel, of pixels in [0, 1]; what the metadata say unless given.
        licence, overwrite, sign: see `edgekd.pipeline.pack`.

    Returns:
        The manifest as it was written.

    Raises:
        UsageError: no int8 file, or a target that has no ONNX file.
        MismatchError: files that take or give other arrays than the float one, or labels that do not fit.
        DataError: samples or labels that cannot be used.
        ModelFileError: a file is corrupt or unsafe.
    """
    if not int8:
        raise UsageError("A bundle of files needs at least one int8 file. Give --int8 TARGET=FILE.")
    with tempfile.TemporaryDirectory(prefix="edgekd-pack-") as folder:
        spec = _spec(model, labels, mean, std)
        inputs = _samples(model, data, spec)
        exports = {name: _exported(Path(folder) / name, name, file, model, spec, inputs) for name, file in int8.items()}
        report = Report(
            name=model.stem,
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            edgekd_version=edgekd.__version__,
        )
        return bundled(report, exports, out, licence=licence, overwrite=overwrite, sign=sign)


def _spec(model: Path, labels: Path | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> ModelSpec:
    """What the float file takes and gives."""
    proto = read_model(model, external_data=False)
    inputs, outputs = model_inputs(proto), model_outputs(proto)
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise MismatchError(
            f"{model} takes {_told(inputs)} and gives {_told(outputs)}; a bundle holds classifiers, which take one"
            " array of images and give one of shape (B, K)."
        )
    preprocessing = preprocessing_of(proto, inputs, mean=mean, std=std)
    if preprocessing is None:
        raise DataError(
            f"{model}: the file does not say how its images are normalised. Give --mean and --std as the model was"
            " trained with them, 0.485,0.456,0.406 for example."
        )
    kept = next((one.value for one in proto.metadata_props if one.key == _LABELS), None)
    names = _labels(labels) if labels is not None else json.loads(kept) if kept is not None else None
    classes = outputs[0].shape[1]
    if names is None:
        raise DataError(f"{model}: the file does not name its classes. Give --labels FILE, one name a line.")
    if isinstance(classes, int) and len(names) != classes:
        raise MismatchError(f"{labels or model} names {len(names)} classes, the model gives {classes} logits.")
    return ModelSpec(inputs=inputs, outputs=outputs, labels=names, preprocessing=preprocessing)


def _labels(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text of class names: {error}.") from error


def _samples(model: Path, data: Path, spec: ModelSpec) -> dict[str, np.ndarray]:
    feeds = read_feeds(data, spec.inputs, preprocessing=spec.preprocessing)
    if feeds.count < _GOLDEN:
        raise DataError(f"{data} has {feeds.count} samples, the golden vectors of {model} take {_GOLDEN}.")
    fixed = spec.inputs[0].shape[0]
    count = _GOLDEN if not isinstance(fixed, int) else fixed * max(1, _GOLDEN // fixed)
    parts = list(feeds.batches(range(min(count, feeds.count))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _exported(
    folder: Path, name: str, int8: Path, model: Path, spec: ModelSpec, inputs: Mapping[str, np.ndarray]
) -> Artifact:
    """The two files of one target as the pipeline's export would have left them."""
    target: Target = CATALOGS["targets"].load(name).member()
    if target.suffix != ".onnx":
        raise UsageError(f"--int8 {name}: files of this target are no ONNX files. Pack a run that exported it.")
    proto = read_model(int8, external_data=False)
    if (model_inputs(proto), model_outputs(proto)) != (spec.inputs, spec.outputs):
        raise MismatchError(
            f"{int8} takes {_told(model_inputs(proto))} and gives {_told(model_outputs(proto))}; {model} takes"
            f" {_told(spec.inputs)} and gives {_told(spec.outputs)}. Quantize that file."
        )
    key = content_hash({"int8": file_hash(int8), "float": file_hash(model), "target": name})
    stage = f"export-{name}"
    with seal(folder, kind="exported", stage=stage, key=key, parents=[], recipe={}, environment=environment()) as draft:
        for stem, file in ((INT8_STEM, int8), (FLOAT_STEM, model)):
            (draft.folder / f"{stem}.onnx").write_bytes(read_model(file).SerializeToString())
        with target.reference(draft.folder / f"{INT8_STEM}.onnx") as runner:
            fixed = spec.inputs[0].shape[0]
            outputs = answers(runner, inputs, fixed if isinstance(fixed, int) else None)
        np.savez_compressed(draft.folder / "golden.npz", **inputs, **outputs)  # type: ignore[arg-type]
        draft.spec = spec
    return open_artifact(folder)


def _told(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"'{one.name}' {one.dtype} {one.shape}" for one in specs) or "nothing"
