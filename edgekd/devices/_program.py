"""The program for devices as it is sent: an archive in memory, and the line of Python that starts it there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from edgekd.devices._endings import Ended

__all__ = ["BOOTSTRAP", "Start", "agent_archive"]

BOOTSTRAP = (
    "import sys,hashlib,io,zipfile\n"
    'sys.version_info<(3,8) and sys.exit("edgekd: python %d.%d is too old" % sys.version_info[:2])\n'
    "s=sys.stdin.buffer\n"
    "n,h=s.readline().split()\n"
    "d=s.read(int(n))\n"
    'hashlib.sha256(d).hexdigest().encode()==h or sys.exit("edgekd: the program was damaged on the way")\n'
    'z=zipfile.ZipFile(io.BytesIO(d)).read("__main__.py")\n'
    'exec(compile(z,"__main__.py","exec"),{"__name__":"__main__","ARCHIVE":d})'
).replace("\n", ";")
"""What `python3 -c` gets: read the program from standard input, check it, run it. It has no single quote, so that it
can stand between two in a command for a remote shell."""


def _no_reason(ended: Ended) -> str | None:
    return None


@dataclass(frozen=True)
class Start:
    """How the program is started.

    Args:
        name: the device as the user wrote it.
        command: argument list; starts a Python that runs `BOOTSTRAP`.
        environment: of the command; None for this process's.
        silence_seconds: the device is taken to hang when nothing came from it for so long.
        reason: says in one sentence why the command ended, None if it does not know.
        hello: what the program is told first: "folder", "python".
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    silence_seconds: float = 120.0
    reason: Callable[[Ended], str | None] = _no_reason
    hello: Mapping[str, Any] = field(default_factory=dict)


@cache
def agent_archive() -> bytes:
    """The program as a zip file; the same bytes every time."""
    made = io.BytesIO()
    files = sorted(resources.files("edgekd.agent").iterdir(), key=lambda file: file.name)
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if file.name.endswith(".py"):
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return made.getvalue()
