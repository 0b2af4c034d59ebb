"""A connection to the program on a device: one command, messages over its standard input and output.

The program is sent over the same connection that starts it, so that one login is enough and no path of the device is
ever part of a command. Whatever goes wrong on the way becomes one sentence, and nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import IO, Any

from edgekd.agent import frames
from edgekd.devices._endings import Ended, damaged, generic_reason, refused
from edgekd.devices._place import Progress
from edgekd.devices._program import Start, agent_archive
from edgekd.devices._watching import Tail, Watch
from edgekd.errors import BackendMissing, EdgeKDError

__all__ = ["Channel"]

_NOISE_BYTES = 1 << 16
"""What a login shell may print before the program's first line."""
_FAREWELL_SECONDS = 5.0


class Channel:
    """The program on a device, started and greeted.

    Args:
        start: how.

    Raises:
        BackendMissing: it does not start, or lacks something; says what, and what to do.
    """

    def __init__(self, start: Start) -> None:
        self.name = start.name
        self._start = start
        self._greeted = False
        self._broken: EdgeKDError | None = None
        self._closed = False
        try:
            self._process = subprocess.Popen(
                list(start.command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if start.environment is None else dict(start.environment),
                # Ctrl-C is for us: the program there is ended by us, in order
                start_new_session=True,
            )
        except OSError as error:
            raise BackendMissing(f"{start.name}: '{start.command[0]}' does not start: {error.strerror}.") from error
        self._said = Tail(_stream(self._process.stderr))
        self._watch = Watch(self._kill, start.silence_seconds)
        self.hello: Mapping[str, Any] = self._greet()

    def ask(
        self, request: Mapping[str, Any], body: bytes = b"", *, progress: Progress | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer, {"ok": ...} or {"error": kind, "text": ...}, and the bytes with it.

        Raises:
            BackendMissing: the device hangs, ended, lost contact, or bytes were damaged on the way.
        """
        if self._closed or self._broken is not None:
            raise self._broken or RuntimeError(f"the connection to {self.name} is closed")
        try:
            with self._watch:
                # a program that is gone says why on another channel, or has left a last message
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    frames.write(_stream(self._process.stdin), request, body)
                while True:
                    answer = frames.read(_stream(self._process.stdout), self._watch.touch)
                    if answer is None:
                        raise self._lost()
                    self._watch.touch()
                    message, content = answer
                    if "progress" not in message:
                        break
                    if progress is not None:
                        progress(*message["progress"])
        except (frames.FrameError, OSError) as error:
            raise self._damaged(error) from error
        except BaseException:
            if self._broken is None:  # Ctrl-C: what is still to come would be taken for the next answer
                self._broken = BackendMissing(f"{self.name}: the connection was interrupted.")
            raise
        if message.get("error") == "damaged":
            self._broken = BackendMissing(damaged(self.name, str(message["text"])))
            raise self._broken
        return message, content

    def close(self) -> None:
        """End the program, which removes its folder; a second call does nothing."""
        if self._closed:
            return
        if self._broken is None and self._process.poll() is None:
            with contextlib.suppress(EdgeKDError):
                self.ask({"do": "bye"})
        self._closed = True
        # without listeners it ends by itself; it needs a moment to tidy up
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _stream(stream).close()
        if not self._ends_within(_FAREWELL_SECONDS):
            self._signal(signal.SIGTERM)
            if not self._ends_within(_FAREWELL_SECONDS):
                self._kill()
        self._process.wait()
        self._watch.stop()
        self._said.close()

    def _greet(self) -> Mapping[str, Any]:
        archive = agent_archive()
        head = f"{len(archive)} {hashlib.sha256(archive).hexdigest()}\n".encode()
        try:
            with self._watch:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    _stream(self._process.stdin).write(head + archive)
                    _stream(self._process.stdin).flush()
                self._skip_noise()
            message, _ = self.ask({"do": "hello", **self._start.hello})
            if "error" in message:
                raise refused(self.name, message)
        except BaseException:
            self.close()
            raise
        found: Mapping[str, Any] = message["ok"]
        return found

    def _skip_noise(self) -> None:
        taken = 0
        while taken < _NOISE_BYTES:
            line = _stream(self._process.stdout).readline(_NOISE_BYTES)
            self._watch.touch()
            if not line:
                raise self._lost()
            if line.endswith(frames.GREETING):
                self._greeted = True
                return
            taken += len(line)
        raise BackendMissing(
            f"{self.name}: its shell prints without end before any command runs. Make its start-up files quiet for"
            " logins without a terminal."
        )

    def _lost(self) -> EdgeKDError:
        """Why the other side is gone."""
        hung = self._watch.fired
        if not self._ends_within(_FAREWELL_SECONDS):
            self._kill()
        code = self._process.wait()
        ended = Ended(code, self._said.text(), self._greeted, hung)
        said = (self._start.reason(ended) if not hung else None) or generic_reason(ended, self._start.silence_seconds)
        self._broken = BackendMissing(f"{self.name}: {said}")
        return self._broken

    def _damaged(self, error: Exception) -> EdgeKDError:
        # a message that ends in the middle comes from a connection that ended
        if self._watch.fired or self._ends_within(1.0):
            return self._lost()
        self._broken = BackendMissing(damaged(self.name, str(error)))
        return self._broken

    def _ends_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        return self._process.poll() is not None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, number)
            else:
                self._process.terminate()

    def _kill(self) -> None:
        """End the command and what it started; on the device the program finds nobody who listens."""
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise RuntimeError("the command was started with pipes")
    return stream
