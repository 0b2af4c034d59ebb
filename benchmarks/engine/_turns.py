"""Processes that take turns: one round of each, never two at once. Plain Python, for any tool's environment.

A worker says that it is ready, then waits for a line; with each line it makes one round and answers with one line of
JSON. What else it prints goes to standard error. Wall time is what a round says itself; processor time is added here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Stopped", "Together", "Turns", "Worker", "interleaved"]

_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_LAST_LINES = 5


class Stopped(Exception):
    """Nobody asks for another round."""


class Turns:
    """A worker's side."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what a library prints is no answer
        self._cpu = 0.0

    def say(self, **values: Any) -> None:
        """One line to whoever asks."""
        print(json.dumps(values), file=self._answers, flush=True)

    def wait(self) -> None:
        """Until it is this worker's turn.

        Raises:
            Stopped: there is no other round.
        """
        if not sys.stdin.readline():
            raise Stopped
        self._cpu = time.process_time()

    def answer(self, **values: Any) -> None:
        """End the turn; `cpu_seconds` of all threads since it began are added."""
        self.say(**values, cpu_seconds=time.process_time() - self._cpu)


class Worker:
    """A process that makes rounds.

    Args:
        command: starts it.
        log: what it prints on standard error.
        environment: beside this process's own.
    """

    def __init__(self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **_THREADS, **(environment or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def ready(self) -> dict[str, Any]:
        """Wait until it can begin; gives what it says of itself.

        Raises:
            RuntimeError: it ended; with the last lines of its log.
        """
        return self._read()

    def round(self) -> dict[str, Any]:
        """What the worker says of one more round.

        Raises:
            RuntimeError: it ended; with the last lines of its log.
        """
        self.begin()
        return self._read()

    def begin(self) -> None:
        """Let it make a round; `ready` waits for its end.

        Raises:
            RuntimeError: it ended; with the last lines of its log.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise RuntimeError(self._ended())
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._process.wait()
            raise RuntimeError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> str:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
        return f"A worker ended with {self._process.returncode}: {' | '.join(said)}"


class Together:
    """Workers that make their rounds at the same time.

    Args:
        members: started.
    """

    def __init__(self, members: Sequence[Worker]) -> None:
        self._members = members

    def ready(self) -> dict[str, Any]:
        """Wait until all can begin; gives what they say of themselves, as `members`."""
        return {"members": [one.ready() for one in self._members]}

    def round(self) -> dict[str, Any]:
        """What all of them say of one more round, as `members`."""
        for one in self._members:
            one.begin()
        return self.ready()


def interleaved(
    workers: Mapping[str, Worker] | Mapping[str, Together], *, rounds: int, warmup: int
) -> dict[str, list[dict[str, Any]]]:
    """Rounds of every worker that is ready, by name; who begins moves on by one each time, warm-up is left out."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    names = list(workers)
    for count in range(warmup + rounds):
        for name in names[count % len(names) :] + names[: count % len(names)]:
            answer = workers[name].round()
            if count >= warmup:
                found[name].append(answer)
    return found
