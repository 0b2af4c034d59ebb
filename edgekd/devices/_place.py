"""A device with a connection open to it: what can be asked of any of them, and the values that come back.

Whatever the device is, this machine, a board behind ssh or an emulated processor, the same small program answers
there (`edgekd.agent`), so that one protocol and one report hold for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import Field

from edgekd.spec import Frozen

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CPU_PROVIDER",
    "TENSORRT",
    "About",
    "Cold",
    "EndToEnd",
    "Measured",
    "NodePlacement",
    "Place",
    "Progress",
    "Reading",
    "SessionSettings",
    "Timed",
    "Timing",
]

CPU_PROVIDER = "CPUExecutionProvider"
TENSORRT = "tensorrt"
"""What provides engines where the others are ONNX Runtime's execution providers."""

Progress = Callable[[int, int], None]
"""Told about queries done and queries planned."""


class About(Frozen):
    """What a device says about itself.

    Args:
        machine: what its Python calls its processor: "x86_64", "aarch64".
        system: operating system and its release.
        python: version of the interpreter; None where none is needed.
        runtime: what runs the model, "onnxruntime".
        runtime_version: its version.
        providers: execution providers that it lists.
        cores: that the program may use.
        memory_bytes: of the device.
        free_bytes: of the disk that the files go to.
        emulated: its times say nothing about the processor that it stands for.
        details: the processor's name and features, board, clocks, governor, power mode: whatever is told, None where
            it is not.
    """

    machine: str
    system: str
    python: str | None = None
    runtime: str = "onnxruntime"
    runtime_version: str
    providers: list[str] = Field(default_factory=list)
    cores: int | None = None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    emulated: bool = False
    details: dict[str, Any] = Field(default_factory=dict)


class SessionSettings(Frozen):
    """How a model is opened.

    Args:
        threads: intra-op threads, >= 1.
        provider: execution provider that every node must run on.
        provider_options: the provider's own, text by name.
        cores: pin the program to these; empty to pin it to the `threads` fastest, None for no pinning.
        allow_cpu_fallback: nodes that the provider does not take may run on the processor.
    """

    threads: int = Field(1, ge=1)
    provider: str = CPU_PROVIDER
    provider_options: dict[str, str] = Field(default_factory=dict)
    cores: list[int] | None = Field(default_factory=list)
    allow_cpu_fallback: bool = False


class EndToEnd(Frozen):
    """What is timed around the inference, too: image in, labels out.

    Args:
        image: name of a file that was put there: one uint8 image (H, W, C), .npy.
        preprocessing: `Preprocessing` as plain values; None where the model takes the image itself.
        top: how many classes are sorted out of the result.
    """

    image: str
    preprocessing: dict[str, Any] | None = None
    top: int = 5


class Timing(Frozen):
    """How long, how warm, and what is looked at meanwhile; see `edgekd.measure.Protocol`.

    Args:
        queries: timed queries of each model.
        max_seconds: end of the timing, with at least one query of each.
        warmup_min, warmup_max_seconds, window, steady: when the warm-up ends.
        readings_seconds: a reading of the device's state about every so many seconds; 0 for one before and one after.
        end_to_end: time image to labels as well; None for the inference alone.
    """

    queries: int = Field(256, ge=1)
    max_seconds: float = Field(60.0, gt=0.0)
    warmup_min: int = Field(20, ge=0)
    warmup_max_seconds: float = Field(10.0, ge=0.0)
    window: int = Field(10, ge=1)
    steady: float = Field(0.02, gt=0.0)
    readings_seconds: float = Field(0.0, ge=0.0)
    end_to_end: EndToEnd | None = None


class Reading(Frozen):
    """A device's state at one moment; None for what it does not tell.

    Args:
        at_ms: since the first timed query; negative before it.
        clocks_mhz: of each core.
        temperatures_c: by zone.
        throttled: what holds the device back now, in words: "under-voltage", "frequency capped"; empty for nothing.
        memory_bytes: resident size of the program.
        power_w: of the board or the processor.
        energy_j: a counter that only its differences mean something of.
    """

    at_ms: float
    clocks_mhz: list[float] | None = None
    temperatures_c: dict[str, float] | None = None
    throttled: list[str] | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None


class Timed(Frozen):
    """The queries of one model, in the order in which they were made; none is dropped.

    Args:
        provider_requested, provider_used: execution providers.
        warmup: queries before the timed ones.
        steady: whether the warm-up ended because the latency had settled.
        started_ms: when each query began, since the first.
        samples_ms: of the inference.
        preprocess_ms, postprocess_ms: around it, one for each query; empty where only the inference was timed.
    """

    provider_requested: str
    provider_used: str
    warmup: int
    steady: bool
    started_ms: list[float]
    samples_ms: list[float]
    preprocess_ms: list[float] = Field(default_factory=list)
    postprocess_ms: list[float] = Field(default_factory=list)


class Measured(Frozen):
    """What one measurement gave.

    Args:
        models: by the name under which each was asked for.
        readings: in the order of time, at least one before the first query and one after the last.
        cores: the program was pinned to; empty where it was not.
        energy_source: where `Reading.energy_j` or `power_w` comes from, in words; None where nothing tells.
    """

    models: dict[str, Timed]
    readings: list[Reading]
    cores: list[int] = Field(default_factory=list)
    energy_source: str | None = None


class Cold(Frozen):
    """One new process that loads a model and runs it once.

    The process is new and the runtime's caches are empty; the operating system may still hold the file in memory.

    Args:
        process_ms: from the start of the process until the runtime is imported.
        load_ms: reading, optimizing and preparing the model.
        first_ms: the first inference.
        peak_bytes: largest resident size.
        baseline_bytes: the same before the model was loaded.
        provider_used: where it ran.
    """

    process_ms: float
    load_ms: float
    first_ms: float
    peak_bytes: int
    baseline_bytes: int
    provider_used: str


class NodePlacement(Frozen):
    """One node of the graph that really ran, as the runtime's own profile has it.

    Args:
        node: its name.
        op: its operator type.
        provider: what ran it.
        mean_us: mean time of one run, without the first.
        input_types, output_types: element types, "uint8".
    """

    node: str
    op: str
    provider: str
    mean_us: float
    input_types: list[str] = Field(default_factory=list)
    output_types: list[str] = Field(default_factory=list)


class Place(Protocol):
    """An open connection to a device; used as a context manager. What was put there is gone afterwards.

    Every method raises BackendMissing where the device hangs, ends or loses contact, naming the device; ModelFileError
    where its runtime refuses a model, with the runtime's version; StorageError where it has no room; MismatchError
    where the feeds do not fit.
    """

    name: str
    """As the user wrote it: "ssh:pi@raspberrypi"."""
    provider: str
    """What runs models whose caller asks for no provider of his own."""

    def about(self) -> About:
        """What the device says about itself now."""
        ...

    def put(self, files: Mapping[str, Path]) -> None:
        """Bring files there, by the relative names that they get; each is checked by its hash after its arrival."""
        ...

    def install(self, files: Mapping[str, Path], folder: str) -> str:
        """Bring files into a folder there that stays, each whole and checked before it replaces an older one.

        Args:
            files: by the relative names that they get.
            folder: on the device: absolute, or beginning with ~ for the user's own; made if it is not there.

        Returns:
            The folder's absolute path; `run` and the others take a file in it by its path.

        Raises:
            UsageError: the device keeps no files, or the folder is neither absolute nor the user's own.
        """
        ...

    def run(
        self, model: str, feeds: Sequence[Mapping[str, np.ndarray]], session: SessionSettings
    ) -> list[dict[str, np.ndarray]]:
        """The answers of a model that was put there to each of the feeds; keys are output names."""
        ...

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: Progress | None = None,
    ) -> Measured:
        """Time models that were put there, by name of the caller's choice, interleaved, on the same input."""
        ...

    def cold(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, repeats: int
    ) -> list[Cold]:
        """Start new processes one after another; each loads the model and runs it once."""
        ...

    def placement(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, runs: int
    ) -> list[NodePlacement]:
        """Which provider ran each node, and how long it took."""
        ...

    def close(self) -> None:
        """End the program there, which removes what was put; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
