"""Answer the host's requests, one after another, until it says goodbye, ends or the device stops us.

hello, about, put, run, measure, cold, placement, bye: each is answered by one message {"ok": ...} or {"error": kind,
"text": ...}; before it, at most once a second, come {"progress": [done, planned]}.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from typing import IO, Any, Mapping

from . import frames
from .requests import Answer, Requests, runtime

__all__ = ["main"]

_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


class _Ended(BaseException):
    """The device's system asks us to stop; not an Exception, so that only clean-up code sees it."""


def main() -> int:
    """Answer on stdin and stdout; the exit code."""
    _take_manners()
    # what libraries print must not get between the messages
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    out.write(frames.GREETING)
    out.flush()
    requests = Requests(out)
    try:
        return _answer_all(requests, sys.stdin.buffer, out)
    except (_Ended, KeyboardInterrupt):
        return 143
    except OSError:  # nobody listens any more
        return 1
    finally:
        requests.close()


def _take_manners() -> None:
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)


def _stop(number: int, frame: Any) -> None:
    raise _Ended


def _answer_all(requests: Requests, stream: IO[bytes], out: IO[bytes]) -> int:
    while True:
        try:
            request = frames.read(stream)
        except frames.FrameError as error:
            # where the next message would begin is not known any more
            frames.write(out, {"error": "damaged", "text": str(error)})
            return 1
        if request is None:
            return 0
        message, body = request
        answer, content = _answer(requests, message, body)
        frames.write(out, answer, content)
        if message.get("do") == "bye":
            return 0


def _answer(requests: Requests, message: Mapping[str, Any], body: bytes) -> Answer:
    """The answer to a request, whatever happens."""
    try:
        return requests.done(str(message.get("do")), message, body)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        kind = "storage" if error.errno in _DISK_ERRORS else "fault"
        return {"error": kind, "text": f"{error.strerror or error}", "free_bytes": requests.free_bytes()}, b""
    except MemoryError:
        return {"error": "memory", "text": "out of memory"}, b""
    except Exception as error:
        kind = getattr(error, "kind", "fault")
        text = str(error)
        if kind == "fault":
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}, line {last.lineno})"
        return {"error": kind, "text": text, **runtime()}, b""
