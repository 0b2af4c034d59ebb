"""`export.preprocessing = "inside"`: files that take pixels, and the proof that they compute what Python computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.agent.images import prepare
from edgekd.batches import EvaluationBatch, evaluation_batches
from edgekd.errors import GateFailed
from edgekd.evaluate import parity, predict_runner
from edgekd.pipeline._run import Run
from edgekd.spec import ModelSpec
from edgekd.targets._base import Target
from edgekd.targets._preprocessing_graph import inside_spec, pixels_of, rewrite_inside

__all__ = ["put_inside", "seen", "shipped_spec", "taken"]

_TOLERANCE = 1e-4
"""Of the largest logit: other fusions may sum in another order."""


def is_inside(run: Run) -> bool:
    """Whether the recipe wants files that take pixels."""
    return run.recipe.export.preprocessing == "inside"


def shipped_spec(run: Run) -> ModelSpec:
    """What the exported files take and give."""
    return inside_spec(run.spec) if is_inside(run) else run.spec


def taken(run: Run, inputs: np.ndarray) -> np.ndarray:
    """What the exported files take for these normalised inputs (B, C, H, W): the same, or uint8 images (B, H, W, C)."""
    return pixels_of(inputs, run.data.preprocessing) if is_inside(run) else inputs


def seen(run: Run, batches: Iterable[EvaluationBatch]) -> Iterable[EvaluationBatch]:
    """Batches as the exported files take them."""
    return _as_pixels(run, batches) if is_inside(run) else batches


def put_inside(run: Run, target: Target, path: Path) -> dict[str, Any] | None:
    """Rewrite a file so that it takes pixels, if the recipe wants that, and compare both on the whole test split.

    Returns:
        Parity of the rewritten file with the file behind the Python preprocessing, on the same pixels; None where
        nothing was to be done.

    Raises:
        GateFailed: they differ by more than the order of sums explains.
    """
    if not is_inside(run):
        return None
    with target.reference(path, threads=torch.get_num_threads()) as runner:
        outside = predict_runner(runner, _prepared(run))
    rewrite_inside(path, run.data.preprocessing)
    with target.reference(path, threads=torch.get_num_threads()) as runner:
        inside = predict_runner(runner, _as_pixels(run, _test(run)))
    found = parity(outside.logits, inside.logits)
    largest = float(np.abs(outside.logits).max())
    if found.top1_agreement < 1.0 or found.max_abs_error > _TOLERANCE * largest:
        raise GateFailed(
            f"{path.name}: with the preprocessing inside, logits differ by up to {found.max_abs_error:.4g} of"
            f" {largest:.4g}, and {found.top1_agreement:.3%} of {found.n} samples keep their class. Leave"
            " export.preprocessing 'outside' for this model."
        )
    return {"target": target.name, "file": path.name, **found.model_dump()}


def _test(run: Run) -> Iterable[EvaluationBatch]:
    return evaluation_batches(run.data.test, run.data.preprocessing)


def _as_pixels(run: Run, batches: Iterable[EvaluationBatch]) -> Iterator[EvaluationBatch]:
    for batch in batches:
        pixels = pixels_of(batch.inputs.cpu().numpy(), run.data.preprocessing)
        yield batch._replace(inputs=torch.from_numpy(pixels))


def _prepared(run: Run) -> Iterator[EvaluationBatch]:
    """The test split's pixels after the Python preprocessing that a device runs."""
    given = run.data.preprocessing.model_dump()
    for batch in _as_pixels(run, _test(run)):
        inputs = np.concatenate([prepare(image, given) for image in batch.inputs.numpy()])
        yield batch._replace(inputs=torch.from_numpy(inputs))
