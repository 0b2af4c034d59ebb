"""What a bundle says about itself: the models of its manifest.json, and the one way in which that file is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from edgekd._archive import check_names
from edgekd.errors import ArtifactError
from edgekd.spec import Frozen, Preprocessing

__all__ = [
    "MANIFEST",
    "MOST_MANIFEST_BYTES",
    "SIGNATURE",
    "BudgetNote",
    "BundleManifest",
    "FileRecord",
    "Golden",
    "Licences",
    "LineageNote",
    "ModelEntry",
    "Port",
    "Tolerance",
    "manifest_bytes",
    "read_manifest",
    "with_id",
]

MANIFEST, SIGNATURE = "manifest.json", "model.sig"
MOST_MANIFEST_BYTES = 16 << 20


class _Record(Frozen):
    model_config = ConfigDict(allow_inf_nan=False)


class FileRecord(_Record):
    """A file of the bundle: SHA-256 of its content, in hex, and its size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Port(_Record):
    """One input or output.

    Args:
        name: in the model file.
        dtype: element type, "float32", "uint8".
        shape: a dimension is an int, or a text that names a dynamic one.
        value_range: lowest and highest value that it is meant to hold; None where that is not known.
        layout: axis order of an image, "NCHW" or "NHWC"; None for what is no image.
    """

    name: str
    dtype: str
    shape: list[int | str]
    value_range: list[float] | None = Field(None, min_length=2, max_length=2)
    layout: str | None = None


class Tolerance(_Record):
    """How far an output may be from its golden values: |answer - golden| <= absolute + relative * |golden|.

    Args:
        absolute: in units of the output.
        relative: a fraction.
        why: where the two come from.
    """

    absolute: float = Field(ge=0.0)
    relative: float = Field(ge=0.0)
    why: str


class Golden(_Record):
    """Inputs of a model, and the answers that it gave to them where it was made.

    Args:
        file: an .npz of the bundle with the arrays "input.NAME" and "output.NAME".
        samples: B of each array, (B, ...).
        tolerances: by output.
        made_with: runtime, version and machine that gave the answers.
    """

    file: str
    samples: int = Field(ge=1)
    tolerances: dict[str, Tolerance]
    made_with: str


class ModelEntry(_Record):
    """One model file and what it takes to run it.

    Args:
        rung: of the accuracy ladder, onnx_int8 or onnx_float.
        target: what it was made for (`edgekd list targets`).
        file: path in the bundle.
        external_files: files that it needs beside it.
        precision: int8 or float32.
        opset: of the ONNX standard's operators; None for another format.
        runtime: what runs it: onnxruntime, openvino, executorch, tensorrt.
        machines: processors that it is meant for, as Python calls them; empty for any.
        preprocessing_inside: it takes uint8 images (B, H, W, C) and does the preprocessing itself.
        inputs, outputs: of the model.
        golden: None where no runtime that could tell the answers was here when the bundle was made.
        artifact: id of the exported artifact.
        timing_cache: a TensorRT timing cache of the bundle that makes building an engine faster; None without one.
    """

    rung: str
    target: str
    file: str
    external_files: list[str] = Field(default_factory=list)
    precision: str
    opset: int | None = None
    runtime: str
    machines: list[str] = Field(default_factory=list)
    preprocessing_inside: bool = False
    inputs: list[Port] = Field(min_length=1)
    outputs: list[Port] = Field(min_length=1)
    golden: Golden | None = None
    artifact: str
    timing_cache: str | None = None

    @property
    def files(self) -> list[str]:
        """The model's file and those that it cannot be opened without."""
        return [self.file, *self.external_files]

    def meant_for(self, machine: str) -> bool:
        """Whether it is meant for a processor."""
        return not self.machines or machine.lower() in {name.lower() for name in self.machines}


class BudgetNote(_Record):
    """The latency that the model must keep.

    Args:
        budget_ms: of one query.
        percentile: of the queries.
        confidence: of the verdict.
        means: inference alone, or end_to_end: image in, labels out.
    """

    budget_ms: float
    percentile: float
    confidence: float
    means: Literal["inference", "end_to_end"] = "inference"


class Licences(_Record):
    """Under which licence what the model was made from may be used; None where nobody stated it."""

    teacher: str | None = None
    data: str | None = None
    model: str | None = None


class LineageNote(_Record):
    """One artifact that the models come from, down to the teacher."""

    stage: str
    kind: str
    id: str
    parents: list[str] = Field(default_factory=list)


class BundleManifest(_Record):
    """Everything that a bundle says about itself.

    Args:
        schema_version: 1.
        id: SHA-256 of the rest of the manifest, and so of every file that it names.
        name: of the recipe.
        created_utc: when the run's report was written, ISO 8601.
        edgekd_version: of the program that made the run.
        models: int8 first.
        preprocessing: from pixels to what a model takes.
        labels: of the classes, in the order of the logits.
        files: every file of the bundle but the manifest and a signature.
        lineage: of the models, down to the teacher.
        budgets: that the recipe asks for.
        licences: of teacher, data and model.
        metrics: "ladder", "latency", "int8_vs_float" and "parity": rows as in report.json.
    """

    schema_version: Literal[1] = 1
    id: str = ""
    name: str
    created_utc: str
    edgekd_version: str
    models: list[ModelEntry] = Field(min_length=1)
    preprocessing: Preprocessing
    labels: list[str]
    files: dict[str, FileRecord]
    lineage: list[LineageNote] = Field(default_factory=list)
    budgets: list[BudgetNote] = Field(default_factory=list)
    licences: Licences = Licences()
    metrics: dict[str, Any] = Field(default_factory=dict)


def with_id(manifest: BundleManifest) -> BundleManifest:
    """The manifest with the id of its content."""
    return manifest.model_copy(update={"id": _id(manifest.model_dump(mode="json"))})


def manifest_bytes(values: Any) -> bytes:
    """The one way of writing plain values as a manifest, so that a changed byte anywhere shows."""
    return json.dumps(values, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def read_manifest(data: bytes) -> BundleManifest:
    """Read and check the content of a manifest.json.

    Raises:
        ArtifactError: too large, not JSON, not as it was written, of a newer version, or naming files that a bundle
            cannot have.
    """
    values = _parsed(data)
    version = values.get("schema_version")
    if isinstance(version, int) and version > 1:
        raise ArtifactError(f"{MANIFEST} has schema version {version}, this edgekd reads 1. Install a newer edgekd.")
    if values.get("id") != _id(values):
        raise _damaged("its id is not that of its content")
    try:
        manifest = BundleManifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    _check_references(manifest)
    return manifest


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > MOST_MANIFEST_BYTES:
        raise _damaged(f"it has {len(data)} bytes, at most {MOST_MANIFEST_BYTES} are read")
    try:
        values = json.loads(data)
        same = isinstance(values, dict) and manifest_bytes(values) == data
    except (ValueError, RecursionError) as error:
        raise _damaged("it is no JSON") from error
    if not same:
        raise _damaged("it is not as it was written")
    return dict(values)


def _id(values: dict[str, Any]) -> str:
    return hashlib.sha256(manifest_bytes({key: value for key, value in values.items() if key != "id"})).hexdigest()


def _check_references(manifest: BundleManifest) -> None:
    check_names(manifest.files, MANIFEST)
    if {MANIFEST, SIGNATURE} & manifest.files.keys():
        raise _damaged("it lists itself or the signature among the files")
    for entry in manifest.models:
        named = [*entry.files, *([entry.golden.file] if entry.golden else [])]
        named += [entry.timing_cache] if entry.timing_cache else []
        for name in named:
            if name not in manifest.files:
                raise _damaged(f"model {entry.file!r} names {name!r}, which is no file of the bundle")
        for name in entry.external_files:
            if Path(name).parent != Path(entry.file).parent:
                raise _damaged(f"{name!r} does not lie beside the model {entry.file!r}")
        if entry.golden and set(entry.golden.tolerances) != {port.name for port in entry.outputs}:
            raise _damaged(f"the tolerances of {entry.file!r} are not those of its outputs")


def _damaged(reason: str) -> ArtifactError:
    return ArtifactError(f"{MANIFEST} is damaged: {reason}. Copy the bundle again, or pack it again.")
