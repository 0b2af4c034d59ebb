"""One phone over `adb`: argument lists, safe remote words, exit codes, and what can go wrong in one sentence each."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekd.errors import BackendMissing, MismatchError, ModelFileError, StorageError

__all__ = ["AdbLink", "Answer", "safe"]

# `adb shell` joins its arguments and the phone's shell parses them again: nothing that it could read otherwise
_SAFE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._/:=+-]*|/[A-Za-z0-9._/+-]+|-{1,2}[A-Za-z][A-Za-z0-9._-]*|\./[A-Za-z0-9._/-]+"
)
_EXIT = "edgekd-exit:"
_CHUNK_BYTES = 1 << 20
_GONE = (
    "device offline",
    "device not found",
    "no devices/emulators found",
    "connection reset",
    "closed",
    "protocol fault",
)
_NO_ROOM = ("no space left on device", "not enough space", "disk quota exceeded")
_NOT_FOR_IT = ("not executable: ", "exec format error", "syntax error: unexpected")


class Answer:
    """What a command on the phone gave.

    Args:
        code: its exit code.
        text: standard output and standard error together.
    """

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text

    def last_line(self) -> str:
        """The last line that says something, at most 300 characters."""
        lines = [" ".join(line.split()) for line in self.text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


def safe(word: str) -> str:
    """A word that the phone's shell reads as itself.

    Raises:
        MismatchError: it holds something else than letters, digits and ._/:=+- .
    """
    if not _SAFE.fullmatch(word) or ".." in word.split("/"):
        raise MismatchError(
            f"'{word}' cannot be sent to a phone: its shell reads every word once more, so names there are made of"
            " letters, digits, dots, dashes and underscores. Rename it."
        )
    return word


class AdbLink:
    """Commands and files to one phone.

    Args:
        adb: the adb program.
        serial: as `adb devices` lists it; empty for the only one.
        name: how messages call the phone, "adb:SERIAL".
        timeout_seconds: silence after which a command counts as hanging.

    Every method raises BackendMissing where adb is absent, or the phone is unauthorized, offline, gone or hangs;
    StorageError where the phone has no room.
    """

    def __init__(self, adb: str, serial: str, *, name: str, timeout_seconds: float) -> None:
        self._adb = adb
        self._serial = serial
        self.timeout_seconds = timeout_seconds
        self.name = name

    def shell(self, *words: str, check: bool = True, seconds: float | None = None) -> Answer:
        """Run one command; the words are safe ones.

        Raises:
            MismatchError: a word that the phone's shell could read otherwise.
            BackendMissing: it ended with another exit code than 0 and `check` is set, or a program of another
                processor.
        """
        return self.script(" ".join(safe(word) for word in words), check=check, seconds=seconds)

    def script(self, text: str, *, check: bool = True, seconds: float | None = None) -> Answer:
        """Run a fixed text in the phone's shell; what a user gave goes through `safe` or `shell` instead."""
        # the exit code travels as text: `adb shell` of older phones always ends with 0
        done = self._run(["shell", f"{text}\necho {_EXIT}$?"], seconds)
        found = re.search(rf"{_EXIT}(\d+)\s*$", done.stdout)
        if found is None:
            raise self._lost(done.stderr, middle=True)
        answer = Answer(int(found[1]), done.stdout[: found.start()] + done.stderr)
        self._refuse_known(answer)
        if check and answer.code != 0:
            raise BackendMissing(
                f"{self.name}: '{text.splitlines()[0]}' ended with {answer.code}: {answer.last_line()}."
            )
        return answer

    def push(self, local: Path, remote: str) -> None:
        """Copy a file there and compare its hash.

        Raises:
            StorageError: no room, or it arrived changed.
        """
        done = self._run(["push", str(local.resolve()), safe(remote)], None)
        if done.returncode != 0:
            raise self._failed("copying to", local.name, done.stdout + done.stderr)
        wanted = sha256(local)
        found = self.shell("sha256sum", remote, check=False).text.split()
        if not found or found[0] != wanted:
            raise StorageError(f"{self.name}: {local.name} arrived changed. Check the cable and the phone's storage.")

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there and compare its hash."""
        wanted = self.shell("sha256sum", remote).text.split()[0]
        done = self._run(["pull", safe(remote), str(local.resolve())], None)
        if done.returncode != 0:
            raise self._failed("copying from it", local.name, done.stdout + done.stderr)
        if sha256(local) != wanted:
            raise StorageError(f"{self.name}: {local.name} arrived changed. Check the cable.")

    def state(self) -> None:
        """Make sure that the phone answers."""
        done = self._run(["get-state"], None)
        if done.returncode != 0 or done.stdout.strip() != "device":
            raise self._lost(done.stdout + done.stderr)

    def _run(self, words: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
        limit = self.timeout_seconds if seconds is None else seconds
        chosen = ["-s", self._serial] if self._serial else []
        try:
            return subprocess.run(
                [self._adb, *chosen, *words],
                stdin=subprocess.DEVNULL,  # adb would swallow ours
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        except FileNotFoundError as error:
            raise BackendMissing(
                f"{self.name}: there is no '{self._adb}' here. Install the Android platform tools, or give the option"
                " adb its path."
            ) from error
        except PermissionError as error:
            raise BackendMissing(
                f"{self.name}: '{self._adb}' may not be executed. Give the option adb its path."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BackendMissing(
                f"{self.name}: the phone did not answer for {limit:.0f} s. Unlock it, look at its cable, or raise the"
                " option timeout_seconds."
            ) from error

    def _lost(self, told: str, *, middle: bool = False) -> BackendMissing:
        """Why there was no answer; `middle` says that the phone had answered before, so that what is told may be a
        program's own words."""
        text = " ".join(told.split())
        low = text.lower()
        if "unauthorized" in low or "authorizing" in low:
            return BackendMissing(
                f"{self.name}: the phone does not trust this computer yet. Unlock it and allow USB debugging."
            )
        if "more than one device" in low:
            return BackendMissing(f"{self.name}: several phones are connected. Write adb:SERIAL, see 'adb devices'.")
        if "no permissions" in low or "insufficient permissions" in low:
            return BackendMissing(
                f"{self.name}: this user may not use the phone's USB port. Set the udev rules of adb."
            )
        if "not found" in low or "no devices" in low or "unknown device" in low:
            return BackendMissing(f"{self.name}: no such phone is connected. See 'adb devices'.")
        if middle or any(sign in low for sign in _GONE) or not text:
            return BackendMissing(
                f"{self.name}: the phone is offline or went away. Connect it again; nothing was kept."
            )
        return BackendMissing(f"{self.name}: adb says: {text[:300]}.")

    def _failed(self, doing: str, file: str, told: str) -> Exception:
        low = told.lower()
        if any(sign in low for sign in _NO_ROOM):
            return StorageError(f"{self.name}: {file} does not fit on the phone. Free some of its storage.")
        if "permission denied" in low or "read-only" in low:
            return StorageError(f"{self.name}: {file} may not be written there. Give the option folder another place.")
        if "does not exist" in low or "no such file" in low:
            return ModelFileError(f"{self.name}: {file} is not on the phone any more.")
        return self._lost(told)

    def _refuse_known(self, answer: Answer) -> None:
        low = answer.text.lower()
        if answer.code and any(sign in low for sign in _NO_ROOM):
            raise StorageError(f"{self.name}: the phone has no room left. Free some of its storage.")
        if answer.code in (1, 126) and any(sign in low for sign in _NOT_FOR_IT):
            raise BackendMissing(
                f"{self.name}: the program was built for another processor ({answer.last_line()}). Build it for the"
                " phone's ABI, see docs/android.md."
            )


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
