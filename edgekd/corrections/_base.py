"""The contract of a correction: tensors are changed, at one of three stages, so that int8 loses less accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import spec
from edgekd.targets._base import Numerics

__all__ = ["Context", "Correction", "Stage"]

Stage = Literal["network", "folded", "calibrated"]


@dataclass(frozen=True)
class Context:
    """What a correction may look at beside the model.

    Args:
        batches: gives the calibration data anew at every call: normalised inputs, shape (B, C, H, W).
        numerics: the target's grids.
        reduce_range: neighbouring weights share their 8 bits.
        seed: of everything random.
        reference: at the stage `calibrated`, the same graph with the weights of the float network and its
            quantizers off; None before.
    """

    batches: Callable[[], Iterable[Tensor]]
    numerics: Numerics
    reduce_range: bool
    seed: int = 0
    reference: GraphModule | None = None


class Correction:
    """Changes a model's tensors, never its structure: a state dict is all that is kept of a quantized student.

    Subclasses say at which `stage` they work:

        network      the float module in eval mode, before export
        folded       the exported graph in normal form, batch normalisation folded, without quantizers
        calibrated   the prepared graph, its quantizers calibrated and in the phase `frozen`, and left in it
    """

    Options: ClassVar[type[spec.Options]] = spec.Options
    stage: ClassVar[Stage]

    def __init__(self, options: spec.Options) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The member's name: its file's name."""
        return type(self).__module__.rpartition(".")[2]

    def apply(self, model: nn.Module, context: Context) -> None:
        """Correct a model in place.

        Args:
            model: as the stage says.
            context: data and grids.

        Raises:
            DataError: the correction needs data, and there is none.
        """
        raise NotImplementedError
