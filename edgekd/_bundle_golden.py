"""Golden vectors: inputs of a model and the answers that it must give, in an .npz that is read with care."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from edgekd._bundle_manifest import Golden, ModelEntry, Tolerance
from edgekd.errors import ArtifactError
from edgekd.spec import Frozen

__all__ = ["Difference", "compared", "read_golden", "tolerance_of", "write_golden"]

_INPUT, _OUTPUT = "input.", "output."
_MOST_BYTES = 1 << 30
_MOST_ARRAYS = 64
_KINDS = "fiub"
# share of the largest golden value
_SHARE = {"float32": 1e-4, "float16": 1e-2, "int8": 1e-2}
_MARGIN = 2.0


class Difference(Frozen):
    """One output of a model on a device against its golden values.

    Args:
        output: its name.
        max_abs_error: largest difference, in units of the output; None where the answer is not finite.
        index: where it is, sample first.
        expected, got: the two values there; None where one is not finite.
        allowed: what the tolerance allows there.
        within: every value is within the tolerance.
        same_top1: samples whose largest value is at the same place.
        n: samples.
    """

    output: str
    max_abs_error: float | None
    index: list[int] = Field(default_factory=list)
    expected: float | None = None
    got: float | None = None
    allowed: float
    within: bool
    same_top1: int
    n: int


def write_golden(
    path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Store inputs and the outputs that they must give; the same values give the same bytes.

    Returns:
        What was stored, by its name in the file.
    """
    arrays = {f"{_INPUT}{name}": value for name, value in inputs.items()}
    arrays |= {f"{_OUTPUT}{name}": value for name, value in outputs.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own keywords
    return arrays


def read_golden(path: Path, entry: ModelEntry) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inputs and outputs of a model's golden vectors, by name.

    Raises:
        ArtifactError: no .npz of plain numbers, too large, or not of this model.
    """
    golden = entry.golden
    if golden is None:
        raise ArtifactError(f"{entry.file} has no golden vectors. Pack the bundle where its runtime is installed.")
    arrays = _arrays(path, golden.file)
    inputs = {port.name: _taken(arrays, _INPUT + port.name, golden, port.shape, port.dtype) for port in entry.inputs}
    outputs = {port.name: _taken(arrays, _OUTPUT + port.name, golden, port.shape) for port in entry.outputs}
    if arrays:
        raise ArtifactError(f"{golden.file} has arrays that {entry.file} does not: {', '.join(sorted(arrays))}.")
    return inputs, outputs


def tolerance_of(precision: str, expected: np.ndarray, others: Sequence[np.ndarray]) -> Tolerance:
    """How far an output may be from its golden values on another machine.

    Args:
        precision: of the model.
        expected: the golden values.
        others: the same computed here by other kernels of the runtime; none where there are none.
    """
    share = _SHARE.get(precision, _SHARE["int8"])
    largest = float(np.abs(expected).max()) if expected.size else 0.0
    seen = max((float(np.abs(expected - other).max()) for other in others if expected.size), default=0.0)
    absolute = float(f"{max(share * largest, _MARGIN * seen):.6g}")
    why = f"{share:g} of the largest golden value {largest:.4g}"
    if _MARGIN * seen > share * largest:
        why = f"{_MARGIN:g} times {seen:.4g}, what the runtime's own kernels differ by where it was made"
    cause = "kernels of other processors round to other codes" if precision == "int8" else "sums in another order"
    return Tolerance(absolute=absolute, relative=share, why=f"{why}; {cause}")


def compared(name: str, expected: np.ndarray, got: np.ndarray, tolerance: Tolerance) -> Difference:
    """Hold one output against its golden values.

    Raises:
        ArtifactError: the answer has another shape.
    """
    if expected.shape != got.shape:
        raise ArtifactError(f"Output '{name}' has shape {list(got.shape)}, its golden values {list(expected.shape)}.")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    allowed = tolerance.absolute + tolerance.relative * np.abs(a)
    error = np.abs(a - b)
    error = np.where(np.isfinite(error), error, np.inf)
    # the place that says most: the worst of those that miss the tolerance, by how far they miss it
    worst = np.unravel_index(int(np.argmax(error - allowed)), a.shape) if a.size else ()
    rows = (a.reshape(len(a), -1), b.reshape(len(b), -1)) if a.ndim > 1 and a.size else (a[None], b[None])
    same = int((rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).sum()) if a.size else 0
    return Difference(
        output=name,
        max_abs_error=_number(float(error.max())) if a.size else 0.0,
        index=[int(place) for place in worst],
        expected=_number(float(a[worst])) if a.size else None,
        got=_number(float(b[worst])) if a.size else None,
        allowed=float(allowed[worst]) if a.size else 0.0,
        within=bool((error <= allowed).all()),
        same_top1=same,
        n=len(rows[0]),
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _taken(
    arrays: dict[str, np.ndarray], name: str, golden: Golden, shape: Sequence[int | str], dtype: str | None = None
) -> np.ndarray:
    value = arrays.pop(name, None)
    if value is None:
        raise ArtifactError(f"{golden.file} has no array '{name}'. Pack the bundle again.")
    fits = len(value.shape) == len(shape) and all(
        # a model with a fixed batch takes the samples in several pieces
        isinstance(wanted, str) or (size % wanted == 0 if axis == 0 and wanted else size == wanted)
        for axis, (size, wanted) in enumerate(zip(value.shape, shape, strict=True))
    )
    if not fits or (value.shape and value.shape[0] != golden.samples) or (dtype and str(value.dtype) != dtype):
        raise ArtifactError(
            f"{golden.file}: '{name}' is {value.dtype} {list(value.shape)}, the model takes or gives {dtype or ''}"
            f" {list(shape)} for {golden.samples} samples. Pack the bundle again."
        )
    return value


def _arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    """Every array of an .npz; its sizes are known before memory is asked for."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            if len(listed) > _MOST_ARRAYS or sum(one.file_size for one in listed) > _MOST_BYTES:
                raise ArtifactError(f"{where} holds more than {_MOST_BYTES} bytes or {_MOST_ARRAYS} arrays.")
            return {one.filename.removesuffix(".npy"): _array(archive, one, where) for one in listed}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"{where} is no .npz of arrays: {_told(error)}. Pack it again.") from error
    except Exception as error:
        # zlib and the parser of the header have errors of their own, each with another base
        if type(error).__module__ in ("zlib", "lzma", "tokenize", "builtins") and not isinstance(error, MemoryError):
            raise ArtifactError(f"{where} is no .npz of arrays: {_told(error)}. Pack it again.") from error
        raise


def _told(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> np.ndarray:
    with archive.open(member) as stream:
        data = stream.read(member.file_size + 1)
    if len(data) != member.file_size:
        raise ArtifactError(f"{where}: '{member.filename}' is larger or smaller than it says. Do not use it.")
    source = io.BytesIO(data)
    version = np.lib.format.read_magic(source)
    if version != (1, 0):
        raise ValueError(f"'{member.filename}' has array format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(source)
    if dtype.kind not in _KINDS or dtype.names or len(data) - source.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"'{member.filename}' is no array of plain numbers")
    return np.load(io.BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]
