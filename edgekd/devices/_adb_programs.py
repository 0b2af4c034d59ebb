"""The user's programs for a phone: checked, pushed when first needed, and what their failures mean."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.devices._adb_link import AdbLink, Answer, safe
from edgekd.devices._place import SessionSettings
from edgekd.errors import BackendMissing, EdgeKDError, GateFailed, MismatchError, ModelFileError

__all__ = ["Programs"]

# e_machine of an ELF file, by the ABI that it is for
_MACHINES = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a"}
_VERSION = re.compile(rb"VERS_(\d+\.\d+\.\d+)")
_RESULT = "edgekd-result:"
_SHOWN = 360
_REFUSED = (
    "load model",
    "opset",
    "ir version",
    "ir_version",
    "invalid_protobuf",
    "not_implemented",
    "invalid_graph",
    "no such operator",
    "could not find an implementation",
    "fallback to cpu ep has been explicitly disabled",
)
_MISFIT = ("invalid dimensions", "invalid rank", "unexpected input data type", "no test input data", "missing input")
_SIGNALS = {
    4: "an illegal instruction",
    6: "abort",
    7: "a bus error",
    8: "a floating point error",
    9: "kill",
    11: "a bad address",
}


class Programs:
    """The runner and the verifier of one phone.

    Args:
        link: the phone.
        root: the private folder there.
        abi: what programs for it are built for.
        runner, verifier: the user's files.
        libraries: folder with the shared libraries that they need.
    """

    def __init__(
        self, link: AdbLink, root: str, abi: str, runner: Path | None, verifier: Path | None, libraries: Path | None
    ) -> None:
        self.folder = f"{root}/bin"
        self._root = root
        self._pid = f"{root}/pid"
        self._link = link
        self._abi = abi
        self._local = {"runner": runner, "verifier": verifier}
        self._libraries = sorted(libraries.glob("*.so*")) if libraries is not None else []
        self._there: set[str] = set()

    def runner(self) -> str:
        """Path of the runner on the phone; pushed by the first call."""
        return self._ready("runner", "onnxruntime_perf_test built for Android; it times models")

    def verifier(self) -> str:
        """Path of the verifier on the phone; pushed by the first call."""
        what = (
            "an onnxruntime_perf_test built for Android with onnxruntime_DEBUG_NODE_INPUTS_OUTPUTS=1; it writes the"
            " model's answers to files"
        )
        return self._ready("verifier", what)

    def version(self) -> str:
        """Of ONNX Runtime, as the symbols of its shared library have it."""
        for library in self._libraries:
            if "onnxruntime" in library.name and (found := _VERSION.search(library.read_bytes())):
                return found[1].decode()
        return "not told"

    def start(
        self,
        line: str,
        model: str,
        session: SessionSettings,
        cores: Sequence[int],
        *,
        told: Mapping[str, str] | None = None,
        result: str = "",
        more_seconds: float = 0.0,
    ) -> tuple[str, str]:
        """Run a program there, pinned, with its number noted so that `kill` can end it.

        Args:
            line: its command line, ready for the phone's shell.
            model, session: what the messages of a failure speak of.
            cores: to pin it to; empty for none.
            told: its environment.
            result: remote file that it writes; what an earlier one left is removed, because it appends.
            more_seconds: how long it may say nothing beyond the usual.

        Returns:
            What it printed, and what it wrote into the file.
        """
        mask = f"taskset {sum(1 << core for core in cores):x} " if cores else ""
        words = {"LD_LIBRARY_PATH": self.folder, **(told or {})}
        start = " ".join(f"{key}={safe(value)}" for key, value in words.items())
        before, after = "", ""
        if result:
            before, after = f"rm -f {safe(result)}; ", f"echo {_RESULT}; cat {result} 2>/dev/null; echo; "
        answer = self._link.script(
            f"cd {self._root}; {before}echo edgekd-ns:$(date +%s%N)\n"
            f"{start} {mask}{line} & echo $! > {self._pid}; wait $!; code=$?\n"
            f"echo edgekd-ns:$(date +%s%N); rm -f {self._pid}; {after}(exit $code)",
            check=False,
            seconds=self._link.timeout_seconds + more_seconds,
        )
        if answer.code != 0:
            raise self.refusal(answer, model, session)
        text, _, rows = answer.text.partition(_RESULT)
        return text, rows.lstrip("\r\n")

    def kill(self) -> None:
        """End what still runs there."""
        self._link.script(f"if [ -f {self._pid} ]; then kill -9 $(cat {self._pid}); fi", check=False, seconds=20)

    def refusal(self, answer: Answer, model: str, session: SessionSettings) -> EdgeKDError:
        """What a failed run means."""
        low, said = answer.text.lower(), _said(answer)
        where = f"{self._link.name}: {model}"
        if "cannot link executable" in low or "error while loading shared libraries" in low:
            return BackendMissing(f"{self._link.name}: {said}. Give the option libraries the folder with that library.")
        if "not supported in this build" in low:
            return BackendMissing(f"{self._link.name}: the runner was built without {session.provider}. {said}.")
        if any(sign in low for sign in _REFUSED):
            version = self.version()
            if "fallback to cpu ep" in low:
                return GateFailed(f"{where}: some nodes would run on the processor: {said}.")
            return ModelFileError(f"{where}: ONNX Runtime there (version {version}) refuses the model: {said}.")
        if any(sign in low for sign in _MISFIT):
            return MismatchError(f"{where}: the input does not fit: {said}.")
        if answer.code > 128 and answer.code - 128 in _SIGNALS:
            return BackendMissing(
                f"{where}: the runner crashed ({_SIGNALS[answer.code - 128]}, exit code {answer.code}). Was it built"
                " for this phone's processor, and is there memory enough?"
            )
        if answer.code in (126, 127):
            return BackendMissing(f"{self._link.name}: the runner cannot be started there: {said}.")
        return BackendMissing(f"{where}: the runner ended with {answer.code}: {said}.")

    def _ready(self, option: str, what: str) -> str:
        local = self._local[option]
        if local is None:
            raise BackendMissing(f"{self._link.name}: the option {option} is needed here: {what}. See docs/android.md.")
        if not self._there:
            self._link.shell("mkdir", "-p", self.folder)
            for library in self._libraries:
                self._check(library)
                self._link.push(library, f"{self.folder}/{safe(library.name)}")
        remote = f"{self.folder}/{option}"
        if option not in self._there:
            self._check(local)
            self._link.push(local, remote)
            self._link.shell("chmod", "755", remote)
            self._there.add(option)
        return remote

    def _check(self, file: Path) -> None:
        """Refuse what was built for another processor before it is pushed; only ELF files tell."""
        with file.open("rb") as stream:
            head = stream.read(20)
        if head[:4] != b"\x7fELF" or len(head) < 20:
            return
        machine = struct.unpack("<H", head[18:20])[0]
        built = _MACHINES.get(machine, f"machine {machine}")
        if built != self._abi:
            raise BackendMissing(
                f"{self._link.name}: {file.name} was built for {built} and the phone is {self._abi}. Build it with"
                f" --android_abi {self._abi}, see docs/android.md."
            )


def _said(answer: Answer) -> str:
    """The line that tells most: the one with an error in it, else the last."""
    lines = [" ".join(line.split()) for line in answer.text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("edgekd-")]
    telling = [line for line in lines if re.search(r"error|fail|exception|cannot", line, re.IGNORECASE)]
    chosen = (telling or lines or ["it said nothing"])[-1]
    # the runtime writes where in its source first, the cause last
    return (chosen if len(chosen) <= _SHOWN else f"{chosen[: _SHOWN // 3]} ... {chosen[-2 * _SHOWN // 3 :]}").rstrip(
        "."
    )
