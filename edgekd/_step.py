"""One optimizer step: a batch in one part or in several, the gradients of all processes, and the update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edgekd._average import Average
from edgekd._fit_types import Hooks
from edgekd._schedule import clipped_together, make_optimizer
from edgekd._step_clock import part
from edgekd.errors import UsageError
from edgekd.methods._base import Batch, Method, Term
from edgekd.recipe import TrainSettings

__all__ = ["Stepper"]


class Stepper:
    """Computes the terms of a batch and their gradients, and moves the weights.

    Args:
        method: prepared.
        wrapped: the same, as it is called: with several processes, the wrapper in which their gradients meet.
        accelerator: of this process.
        settings: optimizer, clipping, moving average, parts of a batch.
        precision: "float32" or "bfloat16".
        hooks: terms beside the method's.

    Raises:
        UsageError: a batch of two halves that belong together cannot be computed in parts.
    """

    def __init__(
        self,
        method: Method,
        wrapped: nn.Module,
        accelerator: Accelerator,
        settings: TrainSettings,
        precision: str,
        hooks: Hooks,
    ) -> None:
        if settings.accumulate > 1 and type(method).sampling != "plain":
            raise UsageError(
                f"train.accumulate = {settings.accumulate} cuts batches into parts, but this method's batches have two"
                " halves that belong together. Set it to 1, and lower train.batch_size if memory is short."
            )
        self.optimizer = make_optimizer(method.trained(), settings=settings)
        self.average = Average(method, settings.ema_decay) if settings.ema_decay else None
        self._wrapped, self._accelerator, self._settings, self._hooks = wrapped, accelerator, settings, hooks
        self._precision = precision
        self._clipped = clipped_together(self.optimizer)

    def gradients(self, batch: Batch, total: int) -> Mapping[str, Term]:
        """Fill the gradients with those of a batch, and give its terms.

        A process's mean over its rows counts by how many they are, so that the mean over processes (which is what
        the wrapper makes of gradients) is the mean over the whole batch. That holds for a loss that gathers, too: every
        process has its value of the whole batch, the shares add up to the number of processes, and gradients flow back
        to where a row came from. Parts of a batch count in the same way; a loss that compares samples with each other
        sees only those of one part.

        Args:
            batch: this process's rows.
            total: rows of the whole batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(self._pieces(batch, total))
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for index, piece in enumerate(pieces):
            with self._together(last=index == len(pieces) - 1):
                terms = self._terms(piece)
                shares = {name: self._share(name, piece, total, len(pieces)) for name in terms}
                with part("forward"):
                    values = {name: term.value.float() * shares[name] for name, term in terms.items()}
                    loss = torch.stack([values[name] * term.weight for name, term in terms.items()]).sum()
                with part("backward"):
                    self._accelerator.backward(loss)
            for name, term in terms.items():
                value = values[name].detach()
                sums[name], weights[name] = sums[name] + value if name in sums else value, term.weight
        return {name: Term(value, weights[name]) for name, value in sums.items()}

    def update(self) -> None:
        """Move the weights by the gradients."""
        with part("optimizer"):
            if self._settings.clip_grad_norm is not None:
                for parameters in self._clipped:
                    nn.utils.clip_grad_norm_(parameters, self._settings.clip_grad_norm)
            self.optimizer.step()
            if self.average:
                self.average.update()

    def _terms(self, piece: Batch) -> Mapping[str, Term]:
        with part("forward"), self.autocast():
            self._extra = dict(self._hooks.terms())
            return {**self._wrapped(piece), **self._extra}

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of a forward pass."""
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=torch.bfloat16)

    def _pieces(self, batch: Batch, total: int) -> Iterator[Batch]:
        # as many in every process, or those that gather would wait for each other for ever
        count = min(self._settings.accumulate, max(1, total // self._accelerator.num_processes))
        if count == 1:
            yield batch
            return
        columns = [torch.tensor_split(values, count) for values in (batch.inputs, batch.labels, batch.ids)]
        for inputs, labels, ids in zip(*columns, strict=True):
            yield Batch(inputs, labels, ids, batch.epoch, batch.progress)

    def _share(self, name: str, piece: Batch, total: int, pieces: int) -> float:
        if name in self._extra:  # of the weights alone
            return 1 / pieces
        processes: int = self._accelerator.num_processes
        counted = total if total >= processes else total * processes  # too few to go round: everybody has all
        return len(piece.inputs) * processes / counted

    def _together(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients of several processes meet once a step, after its last part."""
        if last or self._accelerator.num_processes == 1:
            return nullcontext()
        return self._accelerator.no_sync(self._wrapped)  # type: ignore[no-any-return]
