"""Messages between host and device: a line of JSON that says how long, then the message and its bytes, hashed.

    {"bytes": 1234, "message": 34, "sha256": "...", "check": "..."}
    {"do": "put", "name": "model.onnx"}<1200 bytes>

`bytes` counts all that follows the line, `message` the JSON at its beginning; `sha256` is of all of it. `check` is of
the line itself, so that a damaged length is found at once and not by waiting for bytes that never come.
"""

from __future__ import annotations

import hashlib
import json
from typing import IO, TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GREETING", "FrameError", "Message", "arrays_packed", "arrays_unpacked", "read", "write"]

GREETING = b"edgekd-agent 1\n"
"""The first line that the program says; what a login shell printed before it is skipped."""

Message = Dict[str, Any]

_LINE_BYTES = 4096
_PIECE_BYTES = 1 << 16


class FrameError(Exception):
    """What arrived is not what was sent, or ends in the middle."""


def write(stream: IO[bytes], message: Mapping[str, Any], body: bytes = b"") -> None:
    """Send a message of plain values, and bytes with it."""
    head = json.dumps(message, separators=(",", ":")).encode()
    digest = hashlib.sha256(head)
    digest.update(body)
    line = {"bytes": len(head) + len(body), "message": len(head), "sha256": digest.hexdigest()}
    stream.write(json.dumps({**line, "check": _check(line)}).encode() + b"\n" + head)
    if body:
        stream.write(body)
    stream.flush()


def read(stream: IO[bytes], alive: Optional[Callable[[], None]] = None) -> Optional[Tuple[Message, bytes]]:
    """Receive a message and its bytes; None when the other side has ended.

    Args:
        stream: buffered.
        alive: called whenever something arrived.

    Raises:
        FrameError: damaged on the way, or cut off.
    """
    line = stream.readline(_LINE_BYTES)
    if not line:
        return None
    lengths = _lengths(line)
    content = _exactly(stream, int(lengths["bytes"]), alive)
    if hashlib.sha256(content).hexdigest() != lengths["sha256"]:
        raise FrameError("the SHA-256 of a message differs from what was sent")
    cut = int(lengths["message"])
    message = json.loads(bytes(content[:cut]).decode())
    return message, bytes(content[cut:])


def arrays_packed(arrays: Mapping[str, np.ndarray]) -> Tuple[List[Message], bytes]:
    """Named arrays as a table of names, element types and shapes, and their values one after another.

    Raises:
        TypeError: an array of texts or objects.
    """
    import numpy as np

    table, parts = [], []
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise TypeError(f"'{name}' has element type {array.dtype}, which is no number")
        table.append({"name": name, "dtype": array.dtype.str, "shape": list(array.shape)})
        parts.append(np.ascontiguousarray(array).tobytes())
    return table, b"".join(parts)


def arrays_unpacked(table: List[Message], body: bytes, offset: int = 0) -> Tuple[Dict[str, np.ndarray], int]:
    """The arrays of a table, by name, and where in the bytes they end.

    Raises:
        FrameError: the bytes end before the arrays do.
    """
    import numpy as np

    found = {}
    for row in table:
        dtype, shape = np.dtype(row["dtype"]), tuple(int(size) for size in row["shape"])
        count = 1
        for size in shape:
            count *= size
        if dtype.kind not in "biufc" or count < 0 or offset + count * dtype.itemsize > len(body):
            raise FrameError(f"the array '{row['name']}' does not fit what was sent")
        # a copy: what comes straight from bytes cannot be written to, and may lie across a word's boundary
        found[row["name"]] = np.frombuffer(body, dtype, count, offset).reshape(shape).copy()
        offset += count * dtype.itemsize
    return found, offset


def _lengths(line: bytes) -> Message:
    try:
        lengths = json.loads(line.decode())
        good = isinstance(lengths, dict) and lengths.pop("check") == _check(lengths)
        good = good and 0 <= lengths["message"] <= lengths["bytes"]
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise FrameError(f"instead of a message came {line[:60]!r}")
    return lengths  # type: ignore[no-any-return]  # a dict, as was checked


def _check(line: Mapping[str, Any]) -> str:
    text = "{} {} {}".format(line.get("bytes"), line.get("message"), line.get("sha256"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _exactly(stream: IO[bytes], count: int, alive: Optional[Callable[[], None]]) -> bytearray:
    content = bytearray()
    while len(content) < count:
        piece = stream.read(min(_PIECE_BYTES, count - len(content)))
        if not piece:
            raise FrameError(f"a message of {count} bytes ended after {len(content)}")
        content += piece
        if alive is not None:
            alive()
    return content
