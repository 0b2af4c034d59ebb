"""A ready-made teacher from an ONNX file: `onnx:PATH`, run as it is on ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import onnxruntime
import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError, ModelFileError, UsageError
from edgekd.models._onnx_file import external_files, only_input, read_onnx, with_outputs
from edgekd.models._ready_made import ReadyMade, ReadyNetwork, check_classes, check_input, check_shape, file_of
from edgekd.models._ready_made import in_pieces as fed

__all__ = ["Onnx"]


class Onnx(ReadyMade):
    """Runs an ONNX file on the processor; its first output is read as logits.

    The file must have one input of floats, (batch, channels, height, width) as the data gives it, normalised as the
    recipe says: a file that normalises by itself wants `data.mean` 0 and `data.std` 1. A batch of a fixed size is fed
    in pieces of that size.

    Losses on features read the tensors that `taps` names; each is there for them as a module of that name.
    """

    takes_file = True

    class Options(spec.Options):
        """Options of `onnx`."""

        taps: dict[str, str] = Field(
            {}, description="names for tensors of the file that losses look at: { layer3 = 'relu_13' }"
        )

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The file as a module.

        Raises:
            ModelFileError: missing, not ONNX, or refused by ONNX Runtime.
            MismatchError: another input, or another number of classes, than the data has; names both sides.
            UsageError: a tap that the file does not have.
        """
        path = file_of(self, "onnx", ".onnx")
        network = _OnnxNetwork(path, cast(Onnx.Options, self.options).taps, classes, input_shape)
        network(torch.zeros(1, *input_shape))  # finds now what the file does not declare
        return network

    def sources(self) -> tuple[Path, ...]:
        """The file, and those beside it that hold its tensors."""
        path = file_of(self, "onnx", ".onnx")
        return (path, *external_files(path))


class _OnnxNetwork(ReadyNetwork):
    """A session as a module without parameters; its taps are children that pass on what they are given."""

    def __init__(self, path: Path, taps: Mapping[str, str], classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._where, self._classes, self._shape = str(path), classes, input_shape
        model = read_onnx(path)
        self._input, self._dtype, shape = only_input(model, self._where)
        check_shape(shape, input_shape, self._where)
        self._fixed = shape[0] if isinstance(shape[0], int) else None
        self._outputs = [model.graph.output[0].name, *taps.values()]
        self._taps = list(taps)
        for name in taps:
            if not name or "." in name or hasattr(self, name):
                raise UsageError(f"{path}: a tap cannot be called '{name}'. Take another name, without dots.")
            self.add_module(name, nn.Identity())
        self.parameter_count = sum(math.prod(one.dims) for one in model.graph.initializer)
        self._content = with_outputs(model, taps.values(), self._where).SerializeToString()
        self._threads = 0
        self._session: onnxruntime.InferenceSession | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K), float32, on the device of the inputs."""
        check_input(inputs, self._shape, self._where)
        logits, *tensors = fed(self._run, inputs, least=self._fixed or 1, most=self._fixed)
        for name, tensor in zip(self._taps, tensors, strict=True):
            self.get_submodule(name)(tensor)
        check_classes(logits, len(inputs), self._classes, self._where)
        return logits

    def _run(self, piece: Tensor) -> Sequence[Tensor]:
        array = piece.detach().to("cpu", torch.float32).contiguous().numpy().astype(self._dtype)
        try:
            found = self._opened().run(self._outputs, {self._input: array})
        except Exception as error:
            raise MismatchError(f"{self._where}: ONNX Runtime cannot run it: {_first_line(error)}.") from error
        for name, values in zip(self._outputs, found, strict=True):
            if values.ndim == 0 or len(values) != len(array) or values.dtype.kind != "f":
                raise MismatchError(
                    f"{self._where}: output '{name}' is {values.dtype} of shape {values.shape} for {len(array)}"
                    " samples, but it must be floats with the batch first."
                )
        return [torch.from_numpy(values).to(piece.device, torch.float32) for values in found]

    def _opened(self) -> onnxruntime.InferenceSession:
        """The session, with as many threads as torch has at this moment: the recipe's, while it trains."""
        if self._session is None or self._threads != torch.get_num_threads():
            self._threads = torch.get_num_threads()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
            options.log_severity_level = 3
            try:
                self._session = onnxruntime.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise ModelFileError(
                    f"{self._where}: ONNX Runtime refuses the model: {_first_line(error)}. Export it again."
                ) from error
        return self._session


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
