"""The only training loop: teachers, students, and quantization-aware distillation run on it.

A run is described by values (settings, seed, a batch source that gives the same batches for the same
epoch) and changes only the modules it trains. It writes one file, its checkpoint, at the end of every epoch;
a run that finds its checkpoint goes on from there and ends, on a CPU, with bit-identical weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from edgekd._average import Average
from edgekd._checkpoint import random_state, read_checkpoint, restore_random_state, write_checkpoint
from edgekd._compatible import check_compatible
from edgekd._compute import accelerator, faster_layout, threads
from edgekd._fit_types import BatchSource, EpochRecord, FitResult, Hooks, RawBatch, Tick, set_training
from edgekd._ledger import Ledger, TermMean
from edgekd._schedule import clipped_together, learning_rate, make_optimizer, set_learning_rate
from edgekd.errors import TrainingDiverged, UsageError
from edgekd.methods._base import Batch, Method
from edgekd.recipe import ComputeSettings, TrainSettings

__all__ = [
    "BatchSource",
    "EpochRecord",
    "FitResult",
    "Hooks",
    "RawBatch",
    "TermMean",
    "Tick",
    "check_compatible",
    "fit",
    "set_training",
]


def fit(
    method: Method,
    batches: BatchSource,
    *,
    settings: TrainSettings,
    compute: ComputeSettings | None = None,
    seed: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    tag: str = "",
    hooks: Hooks | None = None,
    progress: Callable[[Tick], None] | None = None,
    companions: Mapping[str, Tensor] | None = None,
) -> FitResult:
    """Train what a method trains.

    Args:
        method: not prepared yet; its student holds the result afterwards, in evaluation mode.
        batches: the training data.
        settings: optimizer, schedule and length.
        compute: device, precision and threads.
        seed: of everything random in training; batches have their own.
        evaluate: validation metric of the exported network, higher is better; called after every epoch.
        checkpoint: file that is written after every epoch, and resumed if it belongs to the same run: same
            tag, settings, seed, precision, loss terms and number of steps. Otherwise it is replaced.
        tag: identifies data and models, which this function cannot compare by value.
        hooks: see `Hooks`.
        progress: called after every step.
        companions: connectors and the like of an earlier training of this student; see `Method.join`.

    Returns:
        The history. The weights are those of the last epoch, not of the best.

    Raises:
        MismatchError: student and teacher do not fit; before the first step.
        TrainingDiverged: a loss term or a weight became NaN or infinite; names step, epoch and term.
        StorageError: the checkpoint could not be written; the previous one is untouched.
        ArtifactError: the checkpoint is damaged.
        BackendMissing: the device is not here.
    """
    compute = compute or ComputeSettings()
    with threads(compute.threads):
        run = _Run(method, batches, settings, compute, seed, hooks or Hooks(), companions or {})
        run.start(checkpoint, tag)
        return run.train(evaluate, progress or (lambda tick: None))


class _Run:
    """One call of `fit`: the loop and what it carries from step to step."""

    def __init__(
        self,
        method: Method,
        batches: BatchSource,
        settings: TrainSettings,
        compute: ComputeSettings,
        seed: int,
        hooks: Hooks,
        companions: Mapping[str, Tensor],
    ) -> None:
        self.method, self.batches, self.settings, self.hooks = method, batches, settings, hooks
        self.precision, self.seed = compute.precision, seed
        self.steps_per_epoch = len(batches)
        self.steps = self.steps_per_epoch * settings.epochs
        if self.steps == 0:
            raise UsageError("There is not one batch to train on: the training split is empty.")
        self.accelerator = accelerator(compute)
        set_seed(seed)
        self._prepare(companions)
        self.optimizer = make_optimizer(method.trained(), settings=settings)
        self.clipped = clipped_together(self.optimizer)
        self.average = Average(method, settings.ema_decay) if settings.ema_decay else None
        self.history: list[EpochRecord] = []
        self.checkpoint: Path | None = None
        self.tag = ""

    def _prepare(self, companions: Mapping[str, Tensor]) -> None:
        device = self.accelerator.device
        self.method.to(device)
        for teacher in self.method.teachers:
            teacher.to(device)
        self.layout = torch.contiguous_format
        example = self._batch(next(iter(self.batches.epoch(0))), step=0).inputs
        self.method.prepare(example)
        self.method.join(companions)
        self.layout = faster_layout([self.method.exported(), *self.method.teachers], example)
        self._lay_out(self.layout)
        # one forward of the method is one forward of the wrapper: gradients of several processes meet in it
        self.wrapped: nn.Module = self.accelerator.prepare(self.method)

    def _lay_out(self, layout: torch.memory_format) -> None:
        for module in (self.method, *self.method.teachers):
            module.to(memory_format=layout)  # type: ignore[call-overload]  # missing from torch's annotations

    def start(self, checkpoint: Path | None, tag: str) -> None:
        """Take over the state of an earlier run, if its checkpoint is here."""
        self.checkpoint = checkpoint
        self.tag = self._full_tag(tag)
        state = read_checkpoint(checkpoint, tag=self.tag) if checkpoint else None
        self.resumed_at = 0 if state is None else len(state["history"])
        if state is None:
            return
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load(state["average"])
        restore_random_state(state["random"])
        self.history = [EpochRecord.model_validate(record) for record in state["history"]]

    def train(self, evaluate: Callable[[nn.Module], float] | None, progress: Callable[[Tick], None]) -> FitResult:
        """Every epoch that is not done yet."""
        kept = self._kept()
        ledger = Ledger(interval=1 if self.accelerator.device.type == "cpu" else 50, kept=kept)
        for epoch in range(self.resumed_at, self.settings.epochs):
            started = time.perf_counter()
            rate = self._epoch(epoch, ledger, progress)
            self._check_weights(epoch, kept)
            terms = ledger.close_epoch()
            record = EpochRecord(
                epoch=epoch,
                terms=terms,
                loss=sum(term.weighted for term in terms.values()),
                lr=rate,
                val=self._evaluate(evaluate),
                seconds=time.perf_counter() - started,
            )
            self.history.append(record)
            self._save()
            kept = ledger.kept = self._kept()
            self.hooks.on_epoch(record)
        if self.average:
            self.average.apply()
        self._set_training(False)
        self._lay_out(torch.contiguous_format)
        return self._result()

    def _kept(self) -> str:
        """Where the last checkpoint is, for a message; nothing before the first one."""
        written = self.checkpoint is not None and bool(self.history)
        return f"The last checkpoint is kept in {self.checkpoint}." if written else ""

    def _epoch(self, epoch: int, ledger: Ledger, progress: Callable[[Tick], None]) -> float:
        self._set_training(True)
        self.method.start_epoch(epoch)
        rate, step = 0.0, epoch * self.steps_per_epoch
        for raw in self.batches.epoch(epoch):
            self.hooks.on_step(step / self.steps)
            rate = learning_rate(step, total=self.steps, steps_per_epoch=self.steps_per_epoch, settings=self.settings)
            set_learning_rate(self.optimizer, rate)
            self._step(self._batch(raw, step=step), ledger, step)
            step += 1
            progress(Tick(step, self.steps, epoch, self.settings.epochs, ledger.last_loss))
        ledger.read(epoch=epoch)
        if step != (epoch + 1) * self.steps_per_epoch:
            given = step - epoch * self.steps_per_epoch
            raise UsageError(f"The batch source promised {self.steps_per_epoch} batches an epoch and gave {given}.")
        return rate

    def _step(self, batch: Batch, ledger: Ledger, step: int) -> None:
        with self._autocast():
            terms = {**self.wrapped(batch), **self.hooks.terms()}
        ledger.add(terms, step=step, epoch=batch.epoch)
        loss = torch.stack([term.value.float() * term.weight for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.settings.clip_grad_norm is not None:
            for parameters in self.clipped:
                nn.utils.clip_grad_norm_(parameters, self.settings.clip_grad_norm)
        self.optimizer.step()
        if self.average:
            self.average.update()

    def _batch(self, raw: RawBatch, *, step: int) -> Batch:
        device = self.accelerator.device
        return Batch(
            inputs=self._share(raw.inputs).to(device, non_blocking=True, memory_format=self.layout),
            labels=self._share(raw.labels).to(device, non_blocking=True),
            ids=self._share(raw.ids).to(device, non_blocking=True),
            epoch=step // self.steps_per_epoch,
            progress=step / self.steps,
        )

    def _share(self, values: Tensor) -> Tensor:
        """This process's part of a batch; all of it when there are too few samples to go round."""
        processes = self.accelerator.num_processes
        if processes == 1 or len(values) < processes:
            return values
        return values[self.accelerator.process_index :: processes]

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16)

    def _set_training(self, training: bool) -> None:
        for module in self.method.trained():
            switch = self.hooks.set_training if module is self.method.student else set_training
            switch(module, training)

    def _evaluate(self, evaluate: Callable[[nn.Module], float] | None) -> float | None:
        if evaluate is None:
            return None
        self._set_training(False)
        with self.average.applied() if self.average else nullcontext(), torch.no_grad():
            return float(evaluate(self.method.exported()))

    def _check_weights(self, epoch: int, kept: str) -> None:
        # the last update of an epoch is not followed by a loss that would show it
        for name, parameter in self.method.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingDiverged(
                    f"Training diverged at step {(epoch + 1) * self.steps_per_epoch} (epoch {epoch + 1}): weight"
                    f" '{name}' is not finite. {kept} Lower the learning rate, or set clip_grad_norm."
                )

    def _full_tag(self, tag: str) -> str:
        described = {
            "tag": tag,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "precision": self.precision,
            "steps": self.steps,
            "groups": [[len(group["params"]), group.get("rate")] for group in self.optimizer.param_groups],
            "terms": [[term.name, term.weight] for term in self.method.losses],
            "options": [term.loss.options.model_dump(mode="json") for term in self.method.losses],
            "method": [type(self.method).__name__, self.method.options.model_dump(mode="json")],
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _save(self) -> None:
        if self.checkpoint is not None and self.accelerator.is_main_process:
            state = {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state() if self.average else None,
                "random": random_state(),
                "history": [record.model_dump(mode="json") for record in self.history],
            }
            write_checkpoint(self.checkpoint, state, tag=self.tag)
        self.accelerator.wait_for_everyone()

    def _result(self) -> FitResult:
        rated = [(record.val, -record.epoch) for record in self.history if record.val is not None]
        return FitResult(
            history=self.history,
            steps=self.steps,
            averaged=self.average is not None,
            resumed_at=self.resumed_at,
            best_epoch=-max(rated)[1] if rated else None,
        )
