"""Who speaks when a launcher started several processes: the main one, and another only of its own trouble."""

from __future__ import annotations

import dataclasses
import sys
import time

from edgekd._group import launched
from edgekd.cli.render import Failure, Outcome, show_failure, show_outcome

__all__ = ["shown", "told"]

_PATIENCE_SECONDS = 15.0  # processes start apart on a busy machine
_STOPPED = (130, 143)


def shown(outcome: Outcome) -> int:
    """Print a result, in the main process; its exit code is every process's."""
    _part()
    return show_outcome(outcome) if launched()[0] == 0 else outcome.exit_code


def told(failure: Failure, *, as_json: bool) -> int:
    """Print why the command ended, once; the exit code.

    What stops one process mostly stops all, and the main one says it; the launcher then ends the others while they wait
    here. A process that is still there after that failed by itself, and says so with its number.
    """
    number, count = launched()
    if number == 0:
        return show_failure(failure, as_json=as_json)
    if failure.exit_code in _STOPPED:
        return failure.exit_code
    try:
        time.sleep(_PATIENCE_SECONDS)
    except KeyboardInterrupt:
        return failure.exit_code
    message = f"process {number} of {count}: {failure.message}"
    return show_failure(dataclasses.replace(failure, message=message), as_json=as_json)


def _part() -> None:
    """Leave the other processes in good order; a group that is left by the interpreter's end says so on stderr."""
    module = sys.modules.get("torch.distributed")
    if module is not None and module.is_available() and module.is_initialized():
        module.destroy_process_group()
