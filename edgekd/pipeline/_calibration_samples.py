"""Which training samples calibrate: the first, a random choice, or a spread over the teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.artifact import Artifact
from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.calibration._selection import k_center
from edgekd.methods._observe import tell_ids
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import network_of
from edgekd.taps import logits_of

__all__ = ["chosen_ids"]

_POOL = 16  # candidates for each sample wanted: features of a whole large data set would take longer than training


def chosen_ids(run: Run, teacher: Artifact | None) -> Tensor:
    """Sample numbers of the training split, int64, shape (count,); the test split never calibrates.

    Args:
        run: the run.
        teacher: its logits are the features of `k_center`; without it the choice is random.
    """
    chosen, train = run.recipe.quantize, run.data.train
    count = min(chosen.calibration_samples, len(train))
    if chosen.selection == "first":
        return torch.arange(count)
    pool = calibration_ids(train, count * _POOL, seed=run.recipe.seed)
    if chosen.selection == "random" or teacher is None:
        return pool[:count]
    network = network_of(run, run.recipe.teacher, teacher).to(run.device)
    rows = []
    with torch.no_grad():
        for batch in evaluation_batches(train, run.data.preprocessing, ids=pool, device=run.device):
            tell_ids(network, batch.ids)
            rows.append(logits_of(network(batch.inputs)).float().cpu())
            run.watcher.progress(len(rows) * len(rows[0]), len(pool), "choosing samples")
    return pool[k_center(torch.cat(rows), count, seed=run.recipe.seed)]
