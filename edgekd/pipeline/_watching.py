"""Who follows a run beside the screen: metrics.jsonl and the trackers; and what a stage costs in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edgekd import _group
from edgekd._compute import return_freed_memory
from edgekd._journal import Journal
from edgekd._report_format import flattened, number
from edgekd._trackers import TENSORBOARD, Tracker, usable, writer
from edgekd.engine import EpochRecord, Tick
from edgekd.recipe import Recipe

__all__ = ["JOURNAL", "PeakMemory", "Watching", "note_of"]

JOURNAL = "metrics.jsonl"

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The highest memory use of this process, without its children, since this was made.

    Only Linux can begin anew with a peak; elsewhere it is not known.
    """

    def __init__(self) -> None:
        return_freed_memory()  # of the stage before
        try:
            _RESET.write_text("5", encoding="ascii")  # the peak of the resident memory starts from its present value
            self._known = True
        except OSError:
            self._known = False
        if _on_gpu():
            torch.cuda.reset_peak_memory_stats()

    def mib(self) -> dict[str, float]:
        """`peak_memory_mib`, resident, and `gpu_memory_mib`, as torch allocated it; without what is not known."""
        found = {}
        if self._known:
            [line] = [line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
            found["peak_memory_mib"] = round(int(line.split()[1]) / 1024, 1)  # it is in KiB
        if _on_gpu():
            found["gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return found


def _on_gpu() -> bool:
    """Whether this process has used a CUDA device; asking for its memory would start one."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class Watching:
    """Writes down what a run does. Of several processes only the main one does; for the others every call is nothing.

    What cannot be written is left out with one message, and the run goes on.

    Args:
        out: the run's folder; nothing is written before the first stage.
        recipe: of the run.
        tell: shows a message.

    Raises:
        BackendMissing: a tracker that the recipe names is not installed.
    """

    def __init__(self, out: Path, recipe: Recipe, tell: Callable[[str], None]) -> None:
        self._out, self._recipe, self._tell = out, recipe, tell
        self._journal: Journal | None = None
        self._names: list[str] = []
        if _group.is_main():
            self._journal = Journal(out / JOURNAL)
            self._names, notes = usable(recipe.watch)
            for note in notes:
                tell(note)
        self._stage: tuple[str, str] | None = None
        self._trackers: list[Tracker] | None = None
        self._left_out: list[Tracker] = []
        self._written = -float("inf")
        self._step = 0

    @contextmanager
    def stage(self, name: str, folder: str) -> Iterator[PeakMemory]:
        """The block makes a stage; how it starts and ends is written down.

        Args:
            name: of the stage.
            folder: of its artifact; a stage of other settings has another.
        """
        started, memory = time.monotonic(), PeakMemory()
        self._stage, self._trackers, self._written = (name, folder), None, -float("inf")
        self._write("stage", state="started", cached=False)
        state = "stopped"
        try:
            yield memory
            state = "done"
        except Exception:
            state = "failed"
            raise
        finally:
            self._close_trackers()
            seconds = round(time.monotonic() - started, 3)
            self._write("stage", state=state, cached=False, seconds=seconds, **memory.mib())
            self._between_stages()

    def already_there(self, name: str, folder: str) -> None:
        """A stage is skipped, because its result is there."""
        self._stage = (name, folder)
        self._write("stage", state="done", cached=True, seconds=0.0)
        self._between_stages()

    def on_step(self, tick: Tick) -> None:
        """A step was made; written down every so often."""
        self._step = tick.step
        now = time.monotonic()
        if self._stage is None or now - self._written < self._recipe.watch.every_seconds:
            return
        self._written = now
        values = {"loss": tick.loss, "lr": tick.lr, "images_per_s": tick.images_per_s}
        self._write("step", step=tick.step, steps=tick.steps, epoch=tick.epoch + 1, **values)
        self._log({f"step/{name}": value for name, value in values.items()})

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch ended."""
        speed = record.profile.images_per_s if record.profile else None
        raw = {name: term.raw for name, term in record.terms.items()}
        weighted = {name: term.weighted for name, term in record.terms.items()}
        self._write(
            "epoch",
            epoch=record.epoch + 1,
            step=self._step,
            loss=record.loss,
            terms={"raw": raw, "weighted": weighted},
            val_accuracy=record.val,
            lr=record.lr,
            seconds=record.seconds,
            images_per_s=speed,
            profile=record.profile.seconds if record.profile else None,
        )
        losses = {f"loss/{name}": value for name, value in weighted.items()} | {"loss/total": record.loss}
        self._log({**losses, "val_accuracy": record.val, "lr": record.lr, "images_per_s": speed})

    def _between_stages(self) -> None:
        self._stage = None
        if self._journal is not None:  # however the run ends, no file of its folder is left open
            self._journal.close()

    def _write(self, event: str, **values: Any) -> None:
        if self._journal is None or self._stage is None:
            return
        try:
            self._journal.write({"event": event, "stage": self._stage[0], "folder": self._stage[1], **values})
        except OSError as error:
            self._journal.close()
            self._journal = None
            self._tell(f"{self._out / JOURNAL} is not written any more: {error.strerror}. The run goes on.")

    def _log(self, values: Mapping[str, float | None]) -> None:
        if self._stage is None or not self._names:
            return
        if self._trackers is None:
            # not before the first step: accelerate's trackers ask its state, which the training sets up
            self._trackers = [self._tracker(name, self._stage[1]) for name in self._names]
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(known, self._step)
        self._leave_out()

    def _tracker(self, name: str, folder: str) -> Tracker:
        # TensorBoard would make a run of its own of them
        facts = {} if name == TENSORBOARD else dict(flattened(self._recipe.resolved()))
        make = writer(name, run=self._recipe.name, out=self._out, stage=folder, first_step=self._step)
        return Tracker(name, make, facts)

    def _close_trackers(self) -> None:
        # those that were left out too: a file of the run's folder may be open in the call that they are in
        for tracker in [*(self._trackers or ()), *self._left_out]:
            tracker.close()
        self._leave_out()
        self._trackers, self._left_out = None, []

    def _leave_out(self) -> None:
        """Go on without the trackers that failed, in this stage and the later ones."""
        for tracker in [one for one in self._trackers or () if one.failure is not None]:
            self._names = [name for name in self._names if name != tracker.name]
            self._left_out.append(tracker)
            self._tell(f"The tracker '{tracker.name}' failed ({tracker.failure}) and is left out. The run goes on.")
        self._trackers = [one for one in self._trackers or () if one.failure is None]


def note_of(tick: Tick) -> str:
    """Where a training is, in one line for the screen."""
    loss = "" if tick.loss is None else f", loss {tick.loss:.3f}"
    speed = "" if tick.images_per_s is None else f", {number(tick.images_per_s)} images/s"
    return f"epoch {tick.epoch + 1}/{tick.epochs}{loss}{speed}"
