"""The contract of a target: what the model is shipped for, a runtime and its numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgekd.spec import Options, Runner
from edgekd.targets._rules import USUAL

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import Tensor, nn

    from edgekd.recipe import ExportSettings
    from edgekd.targets._profile import OperatorTime

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
        operators: names of the rule table's operators that run as int8.
        fused_adds: the runtime adds inside the kernel of the convolution in front, on its unrounded result; so a
            convolution's result that only an add reads has no Q/DQ pair, and the add's other input has one.
        float_results: a linear layer's int8 kernel can give floats, so that its result has a Q only where somebody
            takes codes; without it every quantized layer has one, the last one too.
    """

    activation: Literal["uint8", "int8"]
    symmetric_activations: bool
    bias: Literal["int32", "float"]
    quantize_outputs: bool
    half_scales: bool = False
    operators: frozenset[str] = USUAL
    fused_adds: bool = False
    float_results: bool = True


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
    suffix: ClassVar[str] = ".onnx"
    """What the files that it ships end with."""
    sums_in_16_bits: ClassVar[bool] = False
    """Whether its kernels add pairs of u8 * s8 products in 16 bits on x86 processors without VNNI: neighbouring weights
    share their 8 bits there."""

    @property
    def name(self) -> str:
        """The member's name: its file's name."""
        return type(self).__module__.rpartition(".")[2]

    def write(
        self,
        program: nn.Module,
        example: Tensor,
        path: Path,
        *,
        int8: bool,
        metadata: Mapping[str, str],
        opset: int = 20,
    ) -> Path:
        """Write the file that ships; as ONNX, unless a target has a way of its own.

        Args:
            program: a float module, or the int8 program that `quantize.convert` made for this target's numerics.
            example: inputs, shape (B, C, H, W).
            path: the file; ends with `suffix`.
            int8: whether the program is an int8 one.
            metadata: text by name, carried inside the file.
            opset: of an ONNX file, 18 to 20.

        Returns:
            The path.

        Raises:
            MismatchError: the program has an operator that the file cannot express.
            GateFailed: it has a value that the target cannot hold.
            BackendMissing: the target writes its files with a library that is not here.
        """
        from edgekd.targets._onnx_export import onnx_from_torch, save_onnx

        model = onnx_from_torch(program, example, target=self, opset=opset, int8=int8, metadata=metadata)
        return save_onnx(model, path)

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        """Rewrite an exported ONNX graph into the one that is fast and accepted on this target.

        A target with a `write` of its own that makes no ONNX leaves the graph as it is.
        """
        raise NotImplementedError

    def is_int8(self, path: Path) -> bool:
        """Whether somebody meant a file to be int8: whether it has any quantized tensor.

        Raises:
            ModelFileError: the file is damaged or unsafe.
        """
        from edgekd.targets._graphview import GraphView
        from edgekd.targets._modelfile import read_model

        return GraphView(read_model(path)).has_quantizers

    def audit(self, path: Path) -> Audit:
        """Which operators of an int8 file run as int8 here, and why the others do not.

        Raises:
            BackendMissing: the audit needs the target's library.
        """
        raise NotImplementedError

    def operator_times(
        self, path: Path, feeds: Mapping[str, np.ndarray], *, runs: int = 20, threads: int = 1
    ) -> list[OperatorTime]:
        """Time of each operator that really runs, the slowest first; none where the runtime does not tell.

        Args:
            path: the file.
            feeds: arrays by input name.
            runs: counted runs, >= 1; a few more before them are not counted.
            threads: as for `runner`.

        Raises:
            BackendMissing: the target's library is not here.
        """
        return []

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
