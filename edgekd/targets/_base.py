"""The contract of a target: what the model is shipped for, a runtime and its numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgekd.spec import Options, Runner

if TYPE_CHECKING:
    import onnx

    from edgekd.recipe import ExportSettings

__all__ = ["Audit", "Built", "Island", "Numerics", "Target"]


@dataclass(frozen=True)
class Numerics:
    """The integer grid and where Q/DQ pairs stand.

    Args:
        activation: element type of activations.
        symmetric_activations: zero-point fixed at 0.
        bias: int32 with scale s_x * s_w, or left in float.
        quantize_outputs: a Q/DQ pair on every quantized operator's output, or only on the inputs of
            weighted operators and the skip input of an add.
        half_scales: scales are stored in float16, with the rest of the graph.
    """

    activation: Literal["uint8", "int8"]
    symmetric_activations: bool
    bias: Literal["int32", "float"]
    quantize_outputs: bool
    half_scales: bool = False


@dataclass(frozen=True)
class Island:
    """An operator that stayed in float although the target could run it as int8."""

    name: str
    op: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Audit:
    """How much of a model runs as int8.

    Args:
        target: name of the target.
        quantizable: operators that the target can run as int8.
        int8: of those, how many do.
        islands: the others, each with its cause and remedy.
        legitimate: float operators for which the target has no int8 kernel, by type.
        operators: operator types of the graph that really runs, with their counts.
    """

    target: str
    quantizable: int
    int8: int
    islands: tuple[Island, ...]
    legitimate: Mapping[str, int]
    operators: Mapping[str, int]

    @property
    def coverage(self) -> float:
        """int8 / quantizable; 1.0 when there is nothing to quantize."""
        return self.int8 / self.quantizable if self.quantizable else 1.0


@dataclass(frozen=True)
class Built:
    """A file made from the ONNX model for the device: its path and what it is bound to."""

    path: Path
    fingerprint: Mapping[str, Any]


class Target:
    """A runtime and its numerics."""

    Options: ClassVar[type[Options]] = Options
    numerics: ClassVar[Numerics]
    runtime: ClassVar[str] = "onnxruntime"
    """What runs the file on the device."""
    runs_on: ClassVar[str | None] = None
    """The device that the runtime computes on whatever processor drives it; None for that processor."""

    @property
    def name(self) -> str:
        """The member's name: its file's name."""
        return type(self).__module__.rpartition(".")[2]

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        """Rewrite an exported graph into the one that is fast and accepted on this target."""
        raise NotImplementedError

    def audit(self, path: Path) -> Audit:
        """Which operators of an int8 ONNX file run as int8 here, and why the others do not.

        Raises:
            BackendMissing: the audit needs the target's library.
        """
        raise NotImplementedError

    def build(self, path: Path, *, settings: ExportSettings) -> list[Built]:
        """Make what the device loads from a finished ONNX file, beside it; nothing where it loads the file itself.

        Raises:
            BackendMissing: the target's library is not here; see `missing`.
        """
        return []

    def missing(self) -> str | None:
        """Why `build` and `audit` cannot work on this machine, None if they can."""
        return None

    def reference(self, path: Path, *, threads: int = 1) -> Runner:
        """A runner that computes what the file means, on any machine: for parity."""
        return self.runner(path, threads=threads)

    def runner(self, path: Path, *, threads: int = 1) -> Runner:
        """The runner whose latency counts.

        Raises:
            BackendMissing: the runtime or the hardware is not here.
        """
        raise NotImplementedError

    def absent_here(self) -> str | None:
        """Why latency measured on this machine would say nothing about the target, None if it would."""
        return None
