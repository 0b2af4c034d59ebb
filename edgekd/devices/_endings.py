"""Why a connection to a device ended or never began, in one sentence that says what to do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.errors import BackendMissing, EdgeKDError, StorageError

__all__ = ["Ended", "damaged", "generic_reason", "refused"]


@dataclass(frozen=True)
class Ended:
    """How the command ended, for those who can tell why.

    Args:
        code: exit code; negative for a signal.
        said: what it wrote to standard error.
        greeted: whether the program there had started.
        hung: whether it was ended because it said nothing for too long.
    """

    code: int
    said: str
    greeted: bool
    hung: bool


def generic_reason(ended: Ended, silence_seconds: float) -> str:
    """Why a program on a device ended, in a sentence, from what it left behind."""
    last = ended.said.strip().splitlines()[-1].strip().rstrip(".") if ended.said.strip() else ""
    if ended.hung:
        return (
            f"nothing came from it for {silence_seconds:g} s; it hangs, or is slower than silence_seconds allows. Look"
            " at the device, or raise silence_seconds."
        )
    if "edgekd: the program was damaged" in ended.said:
        return "the bytes of the program were damaged on the way. Look at the connection and try again."
    if "edgekd: python" in ended.said:
        return (
            f"{last.partition('edgekd: ')[2]}; 3.8 or newer is needed. Set the device's option python to another one."
        )
    if not ended.greeted and (ended.code == 127 or "not found" in last or "No such file" in last):
        return f"it has no Python ({last or 'not found'}). Install python3 there, or set the device's option python."
    if not ended.greeted and ended.code == 126:
        return f"its Python cannot be run ({last or 'exit code 126'}). Set the device's option python to another one."
    how = _how(ended.code)
    what = f"{how}; it said: {last}" if last else f"{how} and said nothing"
    return f"the program there {what}. Results so far are kept; try again when the device is well."


def _how(code: int) -> str:
    number = -code if code < 0 else code - 128
    if number in (signal.SIGKILL, 9):
        return "was killed (signal 9, as the system does when memory runs out)"
    if 0 < number < 65:
        with contextlib.suppress(ValueError):
            return f"was ended by signal {number} ({signal.strsignal(number)})"
    return f"ended with exit code {code}"


def damaged(name: str, text: str) -> str:
    return (
        f"{name}: bytes were damaged on the way ({text.rstrip('.')}). Nothing that arrived was used; look at the"
        " connection and try again."
    )


def refused(name: str, message: Mapping[str, Any]) -> EdgeKDError:
    text = str(message.get("text", "")).rstrip(".")
    if message["error"] == "imports":
        package = message["package"]
        return BackendMissing(
            f"{name}: Python {message['python']} there cannot import {package}: {text}. Install it there with"
            f" `python3 -m pip install numpy onnxruntime`, or set the device's option python to one that has it."
        )
    if message["error"] == "storage":
        return StorageError(f"{name}: no folder can be made there: {text}. Set the device's option folder to another.")
    return BackendMissing(f"{name}: the program there failed at its start: {text}.")
