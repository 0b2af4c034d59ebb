"""The files that a device is brought for a measurement, and the float16 twin that is made of the float32 one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgekd._gates import INT8_RUNG
from edgekd._node_names import FileNodes
from edgekd.devices._place import NodePlacement
from edgekd.errors import ModelFileError
from edgekd.targets._external import is_external, location_of, stored_tensors
from edgekd.targets._float16 import to_float16
from edgekd.targets._modelfile import read_model
from edgekd.targets._onnx_export import save_onnx

__all__ = ["FLOAT16", "FLOAT32", "INT8", "PlacedModel", "computes_in_float16", "float16_twin", "placed_file"]

INT8, FLOAT32, FLOAT16 = INT8_RUNG, "onnx_float", "onnx_float16"


@dataclass(frozen=True)
class PlacedModel:
    """A model that is brought to a device.

    Args:
        rung: of the accuracy ladder.
        target: what the file was made for.
        name: of the file there.
        files: what is put, by the name that it gets; the model's file among them.
    """

    rung: str
    target: str
    name: str
    files: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """The model's file here."""
        return self.files[self.name]

    @property
    def size_bytes(self) -> int:
        """Of the model's file and those beside it."""
        return sum(path.stat().st_size for path in self.files.values())

    def nodes(self) -> FileNodes:
        """The operators of the file."""
        return FileNodes(read_model(self.path, external_data=False))


def placed_file(rung: str, target: str, path: Path) -> PlacedModel:
    """A model from a file on this machine, with the files that it needs beside it.

    Raises:
        ModelFileError: corrupt, or reaching outside its folder.
    """
    model = read_model(path, external_data=False)
    beside = {location_of(one) for one in stored_tensors(model.graph, model.functions) if is_external(one)}
    # two rungs may have files of one name, so each gets a folder there
    files = {f"{rung}/{path.name}": path, **{f"{rung}/{name}": path.parent / name for name in sorted(beside)}}
    return PlacedModel(rung, target, f"{rung}/{path.name}", files)


def float16_twin(float32: PlacedModel, folder: Path) -> PlacedModel | str:
    """The float32 model with its tensors in float16, written into a folder; or why it cannot be made, in a sentence."""
    try:
        twin = to_float16(read_model(float32.path))
    except (ModelFileError, onnx.checker.ValidationError, ValueError) as error:
        return f"float16 was not measured: {str(error).splitlines()[0]}"
    path = save_onnx(twin, folder / "float16.onnx")
    return PlacedModel(FLOAT16, float32.target, f"{FLOAT16}/{path.name}", {f"{FLOAT16}/{path.name}": path})


def computes_in_float16(nodes: Sequence[NodePlacement]) -> bool:
    """Whether the runtime has kernels for it: without them it casts everything to float32 and back."""
    heavy = [one for one in nodes if any(name in one.op for name in ("Conv", "Gemm", "MatMul"))]
    return any("float16" in one.input_types[:1] for one in heavy)
