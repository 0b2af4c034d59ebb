"""A phone as a Place: files are pushed into a folder of their own there, and a program of the user's runs them."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Self

import onnx
from google.protobuf.message import DecodeError

from edgekd.devices import _adb_perftest as perftest
from edgekd.devices._adb_link import AdbLink, safe
from edgekd.devices._adb_programs import Programs
from edgekd.devices._adb_state import phone_of, reading_of
from edgekd.devices._adb_turns import Turns
from edgekd.devices._place import (
    CPU_PROVIDER,
    About,
    Cold,
    Measured,
    NodePlacement,
    Progress,
    Reading,
    SessionSettings,
    Timing,
)
from edgekd.errors import BackendMissing, EdgeKDError, MismatchError, ModelFileError, UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AdbPlace"]

_NANOSECONDS = re.compile(r"^edgekd-ns:(\d{16,})\s*$", re.MULTILINE)


class AdbPlace:
    """An open connection to a phone; see `edgekd.devices._place.Place`.

    Args:
        link: the phone.
        runner, verifier, libraries: see `Adb.Options`.
        base: folder on the phone in which a private one is made.
        taskset: hexadecimal mask of cores; empty to pin to the fastest.
    """

    def __init__(
        self,
        link: AdbLink,
        *,
        runner: Path | None,
        verifier: Path | None,
        libraries: Path | None,
        base: str,
        taskset: str,
    ) -> None:
        self.name, self.provider = link.name, CPU_PROVIDER
        self._link = link
        self._taskset = taskset
        self._files: dict[str, Path] = {}
        self._remote: dict[str, str] = {}
        self._mean_ms: dict[str, float] = {}
        self._closed = False
        link.state()
        self._phone = phone_of(link)
        # what a session that was killed left behind more than a day ago
        link.script(
            f"find {safe(base)} -maxdepth 1 -type d -name 'edgekd-*' -mtime +1 -exec rm -rf {{}} +", check=False
        )
        self._root = f"{base}/edgekd-{secrets.token_hex(6)}"
        link.shell("mkdir", self._root)
        self._programs = Programs(link, self._root, self._phone.abi, runner, verifier, libraries)

    def about(self) -> About:
        """What the phone says about itself now."""
        lines = self._link.shell("df", "-k", self._root, check=False).text.split()
        numbers = [int(word) for word in lines if word.isdigit()]
        return About(
            machine=self._phone.machine,
            system=f"{self._phone.system}, {self._phone.abi}",
            runtime_version=self._programs.version(),
            providers=[CPU_PROVIDER],
            cores=self._phone.cores,
            memory_bytes=self._phone.memory_bytes,
            free_bytes=numbers[2] * 1024 if len(numbers) >= 3 else None,
            details=dict(self._phone.details),
        )

    def put(self, files: Mapping[str, Path]) -> None:
        """Push files; each is checked by its hash after its arrival."""
        for name, local in files.items():
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or not pure.name:
                raise MismatchError(f"'{name}' is no relative name of a file.")
            for part in pure.parts:
                safe(part)
            # the runner takes every folder beside a model for test data, so each folder of names gets one of its own
            remote = f"{self._root}/{_folder_name(str(pure.parent))}"
            self._link.shell("mkdir", "-p", remote)
            self._link.push(local, f"{remote}/{pure.name}")
            self._remote[name], self._files[name] = f"{remote}/{pure.name}", local

    def install(self, files: Mapping[str, Path], folder: str) -> str:
        """A phone's applications carry their own files; nothing is left there.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self.name}: nothing is installed on a phone: an application carries its model itself. Use `edgekd bench`"
            " or `edgekd verify` there."
        )

    def run(
        self, model: str, feeds: Sequence[Mapping[str, np.ndarray]], session: SessionSettings
    ) -> list[dict[str, np.ndarray]]:
        """The answers of a model to each of the feeds, from the verifier's tensor files."""
        program = self._programs.verifier()
        names = self._outputs_of(model)
        answers = []
        for feed in feeds:
            self._inputs(model, feed)
            out = f"{self._root}/out"
            self._fresh(out)
            told = {**perftest.DUMPS, "ORT_DEBUG_NODE_IO_OUTPUT_DIR": out}
            line = perftest.command(program, self._where(model), session, repeats=1)
            self._programs.start(line, model, session, self._cores(session), told=told)
            answers.append({name: self._tensor(out, name) for name in names})
        return answers

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: Progress | None = None,
    ) -> Measured:
        """Time models in turns of a few queries each; every turn is a new program, warmed up again."""
        if timing.end_to_end is not None:
            raise UsageError(
                f"{self.name}: image to labels cannot be timed on a phone, whose runner times the inference alone."
                " Leave end-to-end out, or ship the preprocessing inside the model."
            )
        for model in models.values():
            self._inputs(model, feeds)
        turns = Turns(
            {name: partial(self._timed, model, session) for name, model in models.items()},
            self._reading,
            timing,
            provider=session.provider,
        )
        return turns.measured(cores=self._cores(session), progress=progress)

    def cold(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, repeats: int
    ) -> list[Cold]:
        """Start new programs one after another; what is neither loading nor inference is the process."""
        self._inputs(model, feeds)
        found = []
        for _ in range(repeats):
            seconds, text = self._perf(model, session, 1)
            marks = [int(mark) for mark in _NANOSECONDS.findall(text)]
            if len(marks) != 2:
                raise BackendMissing(f"{self.name}: the phone's 'date' tells no nanoseconds, so no cold start either.")
            load, first = perftest.load_ms(text), perftest.first_ms(text)
            rest = (marks[1] - marks[0]) / 1e6 - load - first - 1000.0 * sum(seconds)
            found.append(
                Cold(
                    process_ms=max(rest, 0.0),
                    load_ms=load,
                    first_ms=first,
                    peak_bytes=perftest.peak_bytes(text),
                    baseline_bytes=0,  # the program does not tell it
                    provider_used=session.provider,
                )
            )
        return found

    def placement(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, runs: int
    ) -> list[NodePlacement]:
        """Which provider ran each node, from the runner's profile."""
        self._inputs(model, feeds)
        prefix = f"{self._root}/profile"
        program = self._programs.runner()
        line = perftest.command(program, self._where(model), session, repeats=max(runs, 1), profile=prefix)
        self._programs.start(line, model, session, self._cores(session))
        # the program adds the date to the name
        found = self._link.script(f"ls {prefix}*", check=False).text.split()
        if len(found) != 1:
            raise BackendMissing(f"{self.name}: the runner wrote no profile. Build it without a minimal build.")
        try:
            with tempfile.TemporaryDirectory(prefix="edgekd-adb-") as folder:
                local = Path(folder) / "profile.json"
                self._link.pull(found[0], local)
                return perftest.placements(local.read_text(encoding="utf-8", errors="replace"))
        finally:
            self._link.script(f"rm -f {prefix}*", check=False)

    def close(self) -> None:
        """End what still runs there and remove the folder; a second call does nothing, nor a phone that went away."""
        if self._closed:
            return
        self._closed = True
        try:
            self._programs.kill()
            self._link.script(f"rm -rf {self._root}", check=False, seconds=60)
        except EdgeKDError:  # it went away: what is there is swept by the next connection
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _where(self, model: str) -> str:
        if model not in self._remote:
            raise MismatchError(f"{self.name}: '{model}' was not put there.")
        return self._remote[model]

    def _outputs_of(self, model: str) -> list[str]:
        self._where(model)
        try:
            graph = onnx.load(str(self._files[model]), load_external_data=False).graph
        except (DecodeError, ValueError) as error:
            raise ModelFileError(f"{model}: not an ONNX model: {error}.") from error
        return [output.name for output in graph.output]

    def _inputs(self, model: str, feeds: Mapping[str, np.ndarray]) -> None:
        """Lay the feeds beside the model, where the runner looks for them."""
        remote = f"{PurePosixPath(self._where(model)).parent}/test_data_set_0"
        self._fresh(remote)
        with tempfile.TemporaryDirectory(prefix="edgekd-adb-") as folder:
            for file in perftest.input_files(feeds, Path(folder)):
                self._link.push(file, f"{remote}/{file.name}")

    def _fresh(self, remote: str) -> None:
        """An empty folder there."""
        self._link.script(f"rm -rf {safe(remote)} && mkdir {remote}")

    def _tensor(self, out: str, name: str) -> np.ndarray:
        file = f"{out}/{re.sub(r'[^A-Za-z0-9]', '_', name)}.tensorproto"
        if self._link.script(f"[ -f {safe(file)} ]", check=False).code != 0:
            raise BackendMissing(
                f"{self.name}: the verifier wrote no tensor '{name}'. Build it with"
                " onnxruntime_DEBUG_NODE_INPUTS_OUTPUTS=1, see docs/android.md."
            )
        with tempfile.TemporaryDirectory(prefix="edgekd-adb-") as folder:
            local = Path(folder) / "tensor"
            self._link.pull(file, local)
            return perftest.output_tensor(local.read_bytes(), name)

    def _reading(self) -> Reading:
        return reading_of(self._link, self._phone, 0.0)

    def _cores(self, session: SessionSettings) -> list[int]:
        if self._taskset:
            mask = int(self._taskset, 16)
            return [core for core in range(mask.bit_length()) if mask >> core & 1]
        if session.cores is None:
            return []
        return list(session.cores) or self._phone.fastest(session.threads)

    def _timed(self, model: str, session: SessionSettings, count: int) -> list[float]:
        return [1000.0 * second for second in self._perf(model, session, count)[0]]

    def _perf(self, model: str, session: SessionSettings, count: int) -> tuple[list[float], str]:
        """Seconds of each of `count` runs, and what the runner printed."""
        result = f"{self._root}/result.csv"
        line = perftest.command(self._programs.runner(), self._where(model), session, repeats=count, result=result)
        # what is expected to take long is no silence
        more_seconds = 3.0 * count * self._mean_ms.get(model, 0.0) / 1000.0
        text, rows = self._programs.start(
            line, model, session, self._cores(session), result=result, more_seconds=more_seconds
        )
        seconds = perftest.seconds_of(rows)
        if len(seconds) != count:
            raise BackendMissing(f"{self.name}: the runner made {len(seconds)} of {count} runs.")
        self._mean_ms[model] = 1000.0 * sum(seconds) / count
        return seconds, text


def _folder_name(parent: str) -> str:
    """One flat folder for each folder of names: "." is "d", "models/a" is "d.models.a"."""
    return "d" if parent == "." else f"d.{parent.replace('/', '.')}"
