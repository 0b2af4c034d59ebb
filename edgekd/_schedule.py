"""Optimizers and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from edgekd._optimizers import SGD, AdamW
from edgekd.recipe import TrainSettings

__all__ = [
    "clipped_together",
    "learning_rate",
    "make_optimizer",
    "own_rates",
    "set_learning_rate",
    "trained_parameters",
]


def learning_rate(step: int, *, total: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    """The learning rate of one step.

    It rises linearly over `warmup_epochs` (at most half of the training, so that a short run still comes
    down again), then follows the schedule: half a cosine to zero, drops by `gamma` at `milestones`
    (fractions of the whole training), or constant.

    Args:
        step: 0-based, < total.
        total: steps of the whole training.
        steps_per_epoch: steps of one epoch.
        settings: peak rate and schedule.

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677, section 2.2 (warm-up);
    Loshchilov, Hutter, "SGDR", 2016, arXiv:1608.03983, equation 5 (cosine).
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    if settings.schedule == "steps":
        return settings.lr * settings.gamma ** sum(step >= fraction * total for fraction in settings.milestones)
    return settings.lr


def make_optimizer(modules: Iterable[nn.Module], *, settings: TrainSettings) -> optim.Optimizer:
    """SGD or AdamW over the trainable parameters; biases, normalisation and ranges of quantizers do not decay.

    AdamW takes `momentum` as its beta1. Shrinking the scale of a normalisation or an offset regularises
    nothing: He et al., "Bag of Tricks for Image Classification", 2018, arXiv:1812.01187, section 3.1.
    Parameters with a rate of their own (see `own_rates`) have a group for each such rate, without decay.
    """
    modules = list(modules)
    rates = own_rates(modules)
    parameters = trained_parameters(modules)
    weights = [one for one in parameters if id(one) not in rates]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in weights if one.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [one for one in weights if one.dim() <= 1], "weight_decay": 0.0},
    ]
    for rate in sorted(set(rates.values())):
        scales = [one for one in parameters if rates.get(id(one)) == rate]
        groups.append({"params": scales, "weight_decay": 0.0, "lr": settings.lr * rate, "rate": rate})
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
    nesterov = settings.nesterov and settings.momentum > 0  # nesterov's step is defined by the momentum
    return SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def trained_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Every trainable parameter once, in a stable order."""
    found = {id(one): one for module in modules for one in module.parameters() if one.requires_grad}
    return list(found.values())


def own_rates(modules: Iterable[nn.Module]) -> dict[int, float]:
    """Of parameters that do not learn at the weights' rate, by their id: their rate over that one.

    A module says so for its own parameters by a number `own_rate`; the quantizers of a prepared graph do.
    """
    parts = [part for module in modules for part in module.modules() if hasattr(part, "own_rate")]
    return {id(one): float(part.own_rate) for part in parts for one in part.parameters(recurse=False)}  # type: ignore[arg-type]


def clipped_together(optimizer: optim.Optimizer) -> list[list[nn.Parameter]]:
    """The parameters whose gradients share a norm: weights, and those with a rate of their own.

    A gradient by a relative scale is much larger than one by a weight; in one norm it would shorten all other steps.
    """
    sets: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for group in optimizer.param_groups:
        sets["rate" in group].extend(group["params"])
    return [one for one in sets.values() if one]


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Use `rate` for the next step of every group, times the group's own `rate` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * float(group.get("rate", 1.0))
