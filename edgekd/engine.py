"""The only training loop: teachers, students, and quantization-aware distillation run on it.

A run is described by values (settings, seed, a batch source that gives the same batches for the same
epoch) and changes only the modules it trains. It writes its state at the end of every epoch and every so many seconds;
a run that finds that state goes on with the very next step and ends, on a CPU, with bit-identical weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from edgekd._checkpoint import Best, snapshot
from edgekd._compatible import check_compatible
from edgekd._compiling import compile_in_place, tried
from edgekd._compute import keep_freed_memory, threads
from edgekd._course import Course
from edgekd._diagnosis import diagnose, is_out_of_memory, out_of_memory
from edgekd._fit_types import (
    BatchSource,
    CompileTrial,
    EpochRecord,
    FitResult,
    Hooks,
    RawBatch,
    Tick,
    check_weights,
    set_training,
)
from edgekd._joined import share_buffers
from edgekd._keeping import Keeper
from edgekd._ledger import Diverged, Ledger, TermMean
from edgekd._ready import Ready
from edgekd._schedule import learning_rate, set_learning_rate
from edgekd._step import Stepper
from edgekd._step_clock import StepClock, part, ticking, together
from edgekd._stop import stopping
from edgekd.errors import TrainingDiverged, UsageError
from edgekd.methods._base import Method
from edgekd.recipe import ComputeSettings, TrainSettings

__all__ = [
    "BatchSource",
    "CompileTrial",
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
        checkpoint: file that is written after every epoch and every `compute.checkpoint_seconds`, and resumed if it
            belongs to the same run: same tag, settings, seed, precision, loss terms and number of steps. Otherwise it
            is replaced. The best weights on validation lie beside it.
        tag: identifies data and models, which this function cannot compare by value.
        hooks: see `Hooks`.
        progress: called after every step.
        companions: connectors and the like of an earlier training of this student; see `Method.join`.

    Returns:
        The history. The weights are those of the last epoch, unless the settings say keep = "best".

    Raises:
        MismatchError: student and teacher do not fit; before the first step.
        TrainingDiverged: a loss term or a weight became NaN or infinite; names step, epoch, term, batch and layer.
        OutOfMemory: a step did not fit; says what to set.
        KeyboardInterrupt: Ctrl-C; the step ended and its state was written.
        StorageError: the checkpoint could not be written; the previous one is untouched.
        ArtifactError: the checkpoint is damaged.
        BackendMissing: the device is not here.
    """
    compute = compute or ComputeSettings()
    keep_freed_memory()
    with threads(compute.threads):
        run = _Run(method, batches, settings, compute, seed, hooks or Hooks(), companions or {})
        run.start(checkpoint, tag)
        return run.train(evaluate, progress or (lambda tick: None))


class _Run:
    """One call of `fit`: the loop, and what it carries from step to step."""

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
        self.compute, self.seed = compute, seed
        self.course = Course(len(batches), settings.epochs)
        if self.course.steps == 0:
            raise UsageError("There is not one batch to train on: the training split is empty.")
        set_seed(seed)
        self.ready = Ready(method, batches, compute, companions, self.course.steps)
        self.accelerator, self.share = self.ready.accelerator, self.ready.share
        self.stepper = Stepper(method, self.ready.wrapped, self.accelerator, settings, compute.precision, hooks)
        several = self.share.count > 1
        self.ledger = Ledger(
            interval=50 if self.accelerator.device.type != "cpu" else 10 if several else 1,
            over_processes=(lambda values: self.accelerator.reduce(values, reduction="mean")) if several else None,
        )
        self.carried: Mapping[str, Tensor] | None = None

    def start(self, checkpoint: Path | None, tag: str) -> None:
        """Take over the state of an earlier run, if its checkpoint is here."""
        self.keeper = Keeper(checkpoint, self._full_tag(tag), self.compute.checkpoint_seconds, self.accelerator)
        state = self.keeper.read()
        if state is not None:
            self._take_up(state)
        if self.compute.compile == "auto":
            self._try_compiling()

    def train(self, evaluate: Callable[[nn.Module], float] | None, progress: Callable[[Tick], None]) -> FitResult:
        """Every step that is not done yet."""
        profiles = []
        try:
            with stopping() as self.stop, ticking(StepClock(self.accelerator.device)) as clock:
                asked = False
                while not (asked or self.course.done):
                    asked = self._epoch(clock, progress)
                    if self.course.epoch_done:
                        profiles.append(self._end_epoch(clock, evaluate).profile)
                        asked = self.keeper.agreed(self.stop)[1]
                self.keeper.flush()
            if not self.course.done:  # the signal came to another process
                raise KeyboardInterrupt
        finally:
            self.keeper.close()
        self._finish()
        averaged = self.stepper.average is not None
        return self.course.result(averaged=averaged, kept=self.settings.keep, profile=together(profiles))

    def _epoch(self, clock: StepClock, progress: Callable[[Tick], None]) -> bool:
        """The steps of an epoch that are left; True if somebody asked to stop."""
        course, asked = self.course, False
        self._set_training(True)
        self.method.start_epoch(course.epoch)
        if course.step and self.carried is not None:
            self.method.go_on(self.carried)
        self.carried = None
        began = time.perf_counter() - course.seconds
        source = iter(self.batches.epoch(course.epoch, start=course.step, share=self.share))
        clock.start()
        while not asked and (raw := self._next(source)) is not None:
            rate = self._step(raw)
            course.step += 1
            if course.epoch_done:
                self._read_ledger()  # waits for an accelerator, whose last steps belong to the epoch's time
            clock.end_step(raw.total)
            course.seconds = time.perf_counter() - began
            progress(course.tick(self.ledger.last_loss, rate, raw.total))
            if course.step % self.ledger.interval == 0 and not course.epoch_done:
                due, asked = self.keeper.agreed(self.stop)
                if due or asked:
                    self._save()
        self._read_ledger()
        if not (asked or course.epoch_done):
            raise UsageError(
                f"The batch source promised {course.steps_per_epoch} batches an epoch and gave {course.step}."
            )
        return asked

    def _next(self, source: Iterator[RawBatch]) -> RawBatch | None:
        with part("data"):
            return next(source, None)

    def _step(self, raw: RawBatch) -> float:
        step = self.course.number
        self.hooks.on_step(step / self.course.steps)
        set_learning_rate(self.stepper.optimizer, self._rate(step))
        with part("transfer"):
            batch = self.ready.batch(raw, step=step)
        with self._memory_named():
            terms = self.stepper.gradients(batch, raw.total)
        self.ledger.add(terms, step=step)
        if self.ledger.due:
            self._read_ledger()
        self.stepper.update()
        return self._rate(step)

    def _rate(self, step: int) -> float:
        course = self.course
        return learning_rate(step, total=course.steps, steps_per_epoch=course.steps_per_epoch, settings=self.settings)

    def _end_epoch(self, clock: StepClock, evaluate: Callable[[nn.Module], float] | None) -> EpochRecord:
        course, profile = self.course, clock.lap()
        clock.stop()
        check_weights(self.method, epoch=course.epoch, step=course.number, told=self.keeper.told)
        began = time.perf_counter()
        share_buffers(self.method, self.accelerator)
        terms = self.ledger.close_epoch()
        record = EpochRecord(
            epoch=course.epoch,
            terms=terms,
            loss=sum(term.weighted for term in terms.values()),
            lr=self._rate(course.number - 1),
            val=self._evaluate(evaluate),
            seconds=course.seconds + time.perf_counter() - began,
            profile=profile,
        )
        better = course.close_epoch(record)
        self._save(self._new_best(record) if better else None)
        self.hooks.on_epoch(record)
        return record

    def _take_up(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        if self.stepper.average:
            self.stepper.average.load(state["average"])
        self.course.load(state["course"])
        self.course.best = self.keeper.read_best()
        self.ledger.load(state["ledger"])
        self.carried = self.keeper.take_up(state)
        if self.carried is None:
            # with another number of processes no random state fits; a fresh one must not repeat the first epoch's
            set_seed((self.seed + 1_000_003 * self.course.number) % 2**32)

    def _save(self, best: tuple[Best, Mapping[str, Tensor]] | None = None) -> None:
        if self.course.step:
            self._read_ledger()
        state = {
            "method": self.method.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "average": self.stepper.average.state() if self.stepper.average else None,
            "course": self.course.state(),
            "ledger": self.ledger.state(),
        }
        self.keeper.write(state, self.method.between_steps() if self.course.step else {}, best)

    def _new_best(self, record: EpochRecord) -> tuple[Best, Mapping[str, Tensor]]:
        with self._averaged():
            weights: Mapping[str, Tensor] = snapshot(self.method.state_dict())
        assert record.val is not None
        self.course.best = (Best(record.epoch, record.val), weights)
        return self.course.best

    def _try_compiling(self) -> None:
        """Compile where it pays; a run that goes on does as it did before."""
        networks, course = self.ready.networks(), self.course
        if course.compiled is None:
            batch = self.ready.batch(next(iter(self.batches.epoch(0, share=self.share))), step=0)
            self._set_training(True)
            self.hooks.on_step(0.0)
            step = partial(self.stepper.gradients, batch, len(batch.inputs) * self.share.count)
            course.compiled = tried(self.method, networks, step, course.steps)
        elif course.compiled.kept:
            compile_in_place(networks)

    def _read_ledger(self) -> None:
        try:
            self.ledger.read()
        except Diverged as found:
            raise self._diverged(found) from found

    def _diverged(self, found: Diverged) -> TrainingDiverged:
        """Make the batch of that step again, and say what in it or in the networks was first to be no number."""
        course = self.course
        at = found.step - course.epoch * course.steps_per_epoch
        raw = next(iter(self.batches.epoch(course.epoch, start=at, share=self.share)))
        batch = self.ready.batch(raw, step=found.step)
        told = diagnose(self.method, batch, autocast=self.stepper.autocast, later=max(0, course.step - at))
        return TrainingDiverged(
            f"Training diverged at step {found.step + 1} (epoch {course.epoch + 1}): loss term '{found.term}' is"
            f" {found.value}. {told} {self.keeper.told} Lower the learning rate, warm up for longer, or set"
            " clip_grad_norm."
        )

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            processes, teachers = self.share.count, len(self.method.teachers)
            raise out_of_memory(
                error, self.settings, self.compute, processes=processes, teachers=teachers, kept=self.keeper.told
            ) from error

    def _set_training(self, training: bool) -> None:
        for module in self.method.trained():
            switch = self.hooks.set_training if module is self.method.student else set_training
            switch(module, training)

    def _evaluate(self, evaluate: Callable[[nn.Module], float] | None) -> float | None:
        if evaluate is None:
            return None
        self._set_training(False)
        with self._averaged(), torch.no_grad():
            return float(evaluate(self.method.exported()))

    def _averaged(self) -> AbstractContextManager[None]:
        return self.stepper.average.applied() if self.stepper.average else nullcontext()

    def _finish(self) -> None:
        """The weights that the settings ask for, as a plain network."""
        if self.settings.keep == "best" and self.course.best is not None:
            self.method.load_state_dict(self.course.best[1])
        elif self.stepper.average:
            self.stepper.average.apply()
        self._set_training(False)
        self.ready.release()

    def _full_tag(self, tag: str) -> str:
        described = {
            "tag": tag,
            "settings": self.settings.deciding(),
            "seed": self.seed,
            "precision": self.compute.precision,
            "compile": self.compute.compile,
            "steps": self.course.steps,
            "groups": [[len(group["params"]), group.get("rate")] for group in self.stepper.optimizer.param_groups],
            "terms": [[term.name, term.weight] for term in self.method.losses],
            "options": [term.loss.options.model_dump(mode="json") for term in self.method.losses],
            "method": [type(self.method).__name__, self.method.options.model_dump(mode="json")],
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
