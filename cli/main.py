"""The `edgekd` command: its verbs, and the one place where an error becomes a message and an exit code.

Exit codes: 0 done; 1 a valid negative (budget missed, parity or gate failed); 2 wrong usage or recipe; 3 an artifact
is missing, damaged or of the wrong kind, or the disk refused; 4 a backend or device is not available; 5 an
inconclusive measurement; 70 a fault of edgekd; 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import edgekd
from edgekd.cli import (
    agree,
    audit,
    bench,
    cache,
    deploy,
    devices,
    doctor,
    estimate,
    init,
    listing,
    pack,
    probe,
    quantize,
    report,
    show,
    stages,
    verify,
)
from edgekd.cli.processes import shown, told
from edgekd.cli.render import Failure, Outcome, write
from edgekd.errors import EdgeKDError

__all__ = ["app", "main"]

_SECTIONS = {
    "Start": ("init", "list", "doctor"),
    "Work": ("run", "train", "distill", "quantize", "export", "cache"),
    "Ship": ("pack", "devices", "deploy"),
    "Measure": ("bench", "agree", "estimate", "probe"),
    "Look": ("audit", "report", "show", "verify"),
}
_GOING_ON = (*_SECTIONS["Work"], "bench")
_LATER_SECONDS = 0.02
_STOPPED = "finished stages are kept, and the same command goes on where it stopped."
_BUG = (
    "This is a fault of edgekd, not of yours. Please report it with the traceback and the output of"
    " `edgekd doctor --json`."
)


class Verbs(TyperGroup):
    """The verbs, listed by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of `edgekd --help`."""
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=70)) for name in names])

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of their sections."""
        return [name for names in _SECTIONS.values() for name in names]


# plain help: rich help triples the time of `edgekd --help`
app = typer.Typer(
    cls=Verbs,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        write(sys.stdout, f"edgekd {edgekd.__version__}\n")
        raise typer.Exit


@app.callback()
def edgekd_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """From a float32 teacher to a verified int8 student that is fast on the device.

    \b
    edgekd init my-project && edgekd run my-project/recipe.toml
    """


for _module in (
    stages,
    quantize,
    cache,
    pack,
    devices,
    deploy,
    bench,
    estimate,
    probe,
    agree,
    audit,
    report,
    show,
    verify,
    listing,
    doctor,
    init,
):
    _module.register(app)


class _Terminated(BaseException):
    """SIGTERM arrived; not an Exception, so that only clean-up code sees it on its way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        with _process_manners():
            ended = typer.main.get_command(app)(args=given, prog_name="edgekd", standalone_mode=False)
            if isinstance(ended, Outcome):
                return shown(ended)
        # typer turns Ctrl-C into this code
        return told(_stopped("Interrupted", 130, given), as_json=as_json) if ended == 130 else int(ended or 0)
    except KeyboardInterrupt:
        return told(_stopped("Interrupted", 130, given), as_json=as_json)
    except _Terminated:
        return told(_stopped("Terminated", 143, given), as_json=as_json)
    except Exception as error:
        return told(failure_of(error), as_json=as_json)


def failure_of(error: Exception) -> Failure:
    """What the user is told about an error, and the command's exit code."""
    kind = type(error).__name__
    if isinstance(error, EdgeKDError):
        return Failure(kind, str(error), error.exit_code)
    if callable(formatted := getattr(error, "format_message", None)):  # typer's own errors: wrong usage
        return Failure("UsageError", _usage(error, str(formatted())), 2)
    if isinstance(error, typer.Abort):
        return Failure("Aborted", "Aborted.", 1)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return Failure(
            "OutOfMemory",
            f"Out of memory. Lower batch_size, or the size of the images. {_first_line(error)}".rstrip(),
            3,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return Failure("StorageError", f"{error.filename or 'The disk'}: {error.strerror}; {_STOPPED}", 3)
    return _bug(error)


def _bug(error: Exception) -> Failure:
    import traceback

    return Failure(type(error).__name__, f"{error!r}\n{_BUG}", 70, "".join(traceback.format_exception(error)))


def _usage(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "edgekd"
    return f"{message.rstrip()}\nTry `{command} --help`."


def _stopped(how: str, exit_code: int, given: Sequence[str]) -> Failure:
    if not given or given[0] not in _GOING_ON:
        return Failure(how, "the command was stopped before its end.", exit_code, heading=how)
    command = shlex.join(["edgekd", *given])
    return Failure(how, f"{_STOPPED} Go on with: {command}", exit_code, heading=how)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


@contextmanager
def _process_manners() -> Iterator[None]:
    """SIGTERM lets clean-up code run, and a terminal that cannot draw a sign is no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before, hook = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook
    sys.unraisablehook = _heard_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


def _heard_again(unraisable: Any) -> None:
    """A signal that arrived while an object was cleaned up is lost with the clean-up's errors: send it again."""
    number = {KeyboardInterrupt: signal.SIGINT, _Terminated: signal.SIGTERM}.get(unraisable.exc_type)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    # a little later, when the clean-up is over; to the main thread, which may be waiting by then
    main_thread = threading.main_thread().ident
    send = (
        (signal.pthread_kill, (main_thread, number))
        if hasattr(signal, "pthread_kill")
        else (signal.raise_signal, (number,))
    )
    later = threading.Timer(_LATER_SECONDS, *send)
    later.daemon = True
    later.start()
