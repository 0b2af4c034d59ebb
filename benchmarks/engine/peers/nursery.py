"""Runs of a recipe, each a fork of this process, which has imported everything and computed nothing.

Each line that it reads is an order: the run's folder, a file for what the run prints, and after how many seconds it is
killed, or null. Its answer says by what the run ended, after how many seconds, and the time of that by the clock.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from edgekd import pipeline
from edgekd.recipe import load_recipe

_POLL_SECONDS = 0.001
_LONGEST = 600.0
# a fork that had to import them first would be killed at that as often as at its work
_IMPORTED = (
    "edgekd.export", "edgekd.quantize", "edgekd.report", "onnx.reference", "onnxscript", "onnxscript.optimizer",
    "onnxscript.version_converter", "torch.export", "torch.onnx._internal.exporter._core", "networkx", "onnxruntime",
)  # fmt: skip


def child(order: dict[str, Any], recipe: Path) -> int:
    """The run itself; gives its exit code."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        pipeline.run(load_recipe(recipe), out=Path(order["out"]), recipe_file=recipe, until="export")
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def ended(process: int, kill_after: float | None) -> tuple[int, float, float]:
    """Wait for a run or kill it; its wait status, the seconds that it had, and the time when it ended."""
    began = time.monotonic()
    limit = began + (_LONGEST if kill_after is None else kill_after)
    while time.monotonic() < limit:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status, time.monotonic() - began, time.time()
        time.sleep(min(_POLL_SECONDS, max(0.0, limit - time.monotonic())))
    os.kill(process, signal.SIGKILL)
    now, seconds = time.time(), time.monotonic() - began
    return os.waitpid(process, 0)[1], seconds, now


def main() -> None:
    recipe = Path(sys.argv[1])
    for name in _IMPORTED:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if process == 0:
            os._exit(child(order, recipe))
        status, seconds, at = ended(process, order["kill_after"])
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {"killed": killed, "code": os.waitstatus_to_exitcode(status), "seconds": seconds, "at": at}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
