"""TensorBoard, MLflow and Weights & Biases, each through accelerate's class for it and on a thread of its own.

A training never waits for a tracker: what it is told goes into a queue, and a tracker that fails, or falls far behind,
is left out from there on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import BackendMissing
from edgekd.recipe import WatchSettings

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["TENSORBOARD", "Tracker", "usable", "writer"]

TENSORBOARD = "tensorboard"
"""The name of the tracker, of its package, and of the folder with its files."""

_MOST_WAITING = 1000  # at one entry every two seconds, half an hour behind
_LAST_SECONDS = 30.0  # what a service may take at the end for what is still waiting
_FAILED_SECONDS = 5.0  # what one that was left out may take for the call that it is in


class Tracker:
    """A tracker of one training.

    Args:
        name: of it, for messages.
        make: builds accelerate's tracker; called in the thread, as are all its methods.
        facts: what it keeps about the training, by name; empty for nothing.
    """

    def __init__(self, name: str, make: Callable[[], GeneralTracker], facts: Mapping[str, Any]) -> None:
        self.name = name
        self._failure: str | None = None
        self._queue: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(_MOST_WAITING)
        # a daemon: a service that does not answer must not keep the process
        self._thread = threading.Thread(
            target=self._work, args=(make, dict(facts)), name=f"{name} tracker", daemon=True
        )
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why it is of no use any more; None while it works."""
        return self._failure

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand over values of a step; returns at once."""
        self._put((values, step))

    def close(self) -> None:
        """Let it end, for some seconds at most; of one that failed, only the call that it is in."""
        self._put(None)
        self._thread.join(_FAILED_SECONDS if self._failure is not None else _LAST_SECONDS)
        if self._thread.is_alive() and self._failure is None:
            self._failure = f"it did not end within {_LAST_SECONDS:.0f} s"

    def _put(self, item: tuple[Mapping[str, float], int] | None) -> None:
        if self._failure is not None:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._failure = f"it is {_MOST_WAITING} entries behind"

    def _work(self, make: Callable[[], GeneralTracker], facts: dict[str, Any]) -> None:
        try:
            with _without_tracebacks() if self.name == TENSORBOARD else nullcontext():
                tracker = make()
                tracker.start()
                if facts:
                    tracker.store_init_configuration(facts)
                # one that fell behind is left out: what still waits for it is not written, and nobody puts an end
                while self._failure is None and (item := self._queue.get()) is not None:
                    tracker.log(dict(item[0]), step=item[1])
                tracker.finish()
        except Exception as error:  # a service has errors of its own kinds; whatever it is, training goes on
            words = str(error).strip().splitlines() or [""]
            self._failure = f"{type(error).__name__}: {words[0]}".rstrip(": ")
            return


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """TensorBoard's writer has a thread that prints a traceback when the disk is full; the error comes to us too."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not type(ended.thread).__module__.startswith("tensorboard."):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:
            threading.excepthook = before


def usable(settings: WatchSettings) -> tuple[list[str], list[str]]:
    """The trackers whose packages are here, and a sentence for each that is not.

    Raises:
        BackendMissing: one that the recipe names is not here; a default one is only left out.
    """
    asked = "trackers" in settings.model_fields_set
    there: list[str] = []
    notes = []
    for name in dict.fromkeys(settings.trackers):
        if find_spec(name) is not None:
            there.append(name)
            continue
        what = "its package" if name == TENSORBOARD else f"edgekd[{name}]"
        if asked:
            raise BackendMissing(
                f"'{name}' of watch.trackers needs the package '{name}', which is not installed. Install {what}, or"
                " take it off the list."
            )
        notes.append(f"The package '{name}' is not installed, so nothing is written for it. metrics.jsonl has it all.")
    return there, notes


def writer(name: str, *, run: str, out: Path, stage: str, first_step: int) -> Callable[[], GeneralTracker]:
    """What builds accelerate's tracker for a stage.

    Args:
        name: of the tracker.
        run: the run's name: the experiment of MLflow, the project of W&B.
        out: the run's folder.
        stage: the stage's folder in it; tells its curves from those of others.
        first_step: what TensorBoard has from here on, of a training that was broken off, is done again.
    """

    def make() -> GeneralTracker:
        from accelerate import tracking

        if name == TENSORBOARD:
            return tracking.TensorBoardTracker(stage, logging_dir=str(out / TENSORBOARD), purge_step=first_step)
        if name == "mlflow":
            return tracking.MLflowTracker(experiment_name=run, run_name=stage)
        return tracking.WandBTracker(run, name=stage, dir=str(out))

    return make
