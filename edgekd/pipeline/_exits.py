"""Early exits of a student that was its own teacher: each a float file beside it, with what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from edgekd.artifact import Draft
from edgekd.evaluate import Predictions, accuracy
from edgekd.export import metadata
from edgekd.pipeline._run import Run
from edgekd.targets._base import Target

__all__ = ["write_exits"]


def write_exits(
    run: Run,
    draft: Draft,
    exits: Mapping[str, nn.Module],
    predicted: Callable[[nn.Module], Predictions],
    example: Tensor,
) -> None:
    """Write `exit-TAP` for every exit in the form of the recipe's first target, and its test accuracy.

    Args:
        run: the run.
        draft: the student's.
        exits: by tap, each from inputs to logits.
        predicted: a network's answers on the test split.
        example: inputs, shape (B, C, H, W).
    """
    target: Target = run.target(run.recipe.export.targets[0])
    scores = {}
    for tap, network in exits.items():
        network.eval()
        scores[tap] = accuracy(predicted(network)).value
        path = draft.folder / f"exit-{tap.replace('.', '_')}{target.suffix}"
        facts = metadata(run.spec, {"exit": tap})
        target.write(network.cpu(), example, path, int8=False, metadata=facts, opset=run.recipe.export.opset)
    draft.metrics |= {"exits": scores}
