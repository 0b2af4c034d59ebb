"""A ready-made teacher from a torch.export program: `exported:PATH.pt2`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd._quiet import quiet
from edgekd.errors import MismatchError, ModelFileError
from edgekd.models._ready_made import ReadyMade, ReadyNetwork, check_classes, check_input, check_shape, file_of
from edgekd.models._ready_made import in_pieces as fed

__all__ = ["Exported"]


class Exported(ReadyMade):
    """Runs a program that `torch.export.save` wrote, frozen; its first output is read as logits.

    The program is a graph of torch's own operators: the Python code that it was exported from is not needed and does
    not run. But `torch.export.load` unpickles what the file says is pickled and evaluates expressions of shapes, so
    whoever wrote the file can make the load run code: load only files that you trust, and say so with
    `allow_user_code = true`.

    The modules of the exported network keep their names, so losses on features tap `program.layer3` for what was
    `layer3`.
    """

    takes_file = True
    runs_user_code = True

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The program as a module.

        Raises:
            ModelFileError: missing, or not a program of a version that this torch reads.
            MismatchError: exported in training mode; another input, or another number of classes, than the data has.
        """
        path = file_of(self, "exported", ".pt2")
        network = _Program(path, classes, input_shape)
        network(torch.zeros(1, *input_shape))  # finds now what the file does not declare
        return network


class _Program(ReadyNetwork):
    """A frozen program, fed with batches of the sizes that it was exported for."""

    def __init__(self, path: Path, classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._where, self._classes, self._shape = str(path), classes, input_shape
        with quiet("torch.export"):
            exported = _loaded(path)
            _refuse_training(exported, self._where)
            shape = _input_shape(exported, self._where)
            check_shape(shape, input_shape, self._where)
            self._least, self._most = _batch_sizes(exported, shape[0])
            # with the modules that it was exported from, so that they can be tapped
            self.program = torch.export.unflatten(exported)
        for parameter in self.program.parameters():
            parameter.requires_grad_(False)
        self.parameter_count = sum(parameter.numel() for parameter in self.program.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K), float32."""
        check_input(inputs, self._shape, self._where)
        [logits] = fed(self._run, inputs, least=self._least, most=self._most)
        check_classes(logits, len(inputs), self._classes, self._where)
        return logits

    def _run(self, piece: Tensor) -> tuple[Tensor]:
        result = self.program(piece)
        first = result if isinstance(result, Tensor) else next(iter(result), None) if _several(result) else None
        if not isinstance(first, Tensor) or first.dim() == 0:
            raise MismatchError(f"{self._where} gives a {type(result).__name__}, but its first output must be logits.")
        return (first.float(),)


def _loaded(path: Path) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ModelFileError(
            f"{path}: torch {torch.__version__} cannot read it as a program of torch.export: {reason}. Save it with"
            " torch.export.save, with this version of torch."
        ) from error


def _input_shape(exported: torch.export.ExportedProgram, where: str) -> list[object]:
    """The dimensions of the one input; a dynamic one is a symbol."""
    names = exported.graph_signature.user_inputs
    values = [node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or not isinstance(values[0], Tensor):
        raise MismatchError(f"{where} has {len(names)} inputs; a teacher must have one tensor, the images.")
    if not values[0].is_floating_point():
        raise MismatchError(f"{where} takes {values[0].dtype}, but the data gives normalised floats.")
    return list(values[0].shape)


def _batch_sizes(exported: torch.export.ExportedProgram, batch: Any) -> tuple[int, int | None]:
    """The smallest and the largest batch that the program takes."""
    if isinstance(batch, int):
        return batch, batch
    bounds = exported.range_constraints.get(batch.node.expr)
    if bounds is None:
        return 1, None
    # an export without bounds of its own starts at 2 or 0, and ends at a symbol that is no number
    return max(1, int(bounds.lower)), int(bounds.upper) if bounds.upper.is_Integer else None


def _refuse_training(exported: torch.export.ExportedProgram, where: str) -> None:
    """An exported program has no modes: one that was exported while it trained would go on as if it did."""
    flags = {"aten.batch_norm.default": 5, "aten.dropout.default": 2, "aten.feature_dropout.default": 2}
    for node in exported.graph.nodes:
        position = flags.get(str(node.target))
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise MismatchError(
                f"{where} was exported in training mode ('{node.name}'). Call model.eval() before torch.export.export."
            )


def _several(result: object) -> bool:
    return isinstance(result, (tuple, list)) and len(result) > 0
