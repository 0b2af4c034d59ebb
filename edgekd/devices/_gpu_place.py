"""A process of this machine whose sessions run on its GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgekd.devices._gpu_smi import gpu_state, throttle_words
from edgekd.devices._place import (
    CPU_PROVIDER,
    TENSORRT,
    About,
    Cold,
    Measured,
    NodePlacement,
    Place,
    Progress,
    Reading,
    SessionSettings,
    Timing,
)
from edgekd.errors import BackendMissing, GateFailed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GpuPlace"]


class GpuPlace:
    """Another place's program, with the GPU's provider in place of the default one and the GPU's sensors beside it.

    Args:
        inner: runs the models.
        provider: that every node must run on.
        provider_options: of that provider.
        device: number of the GPU.
        facts: of the GPU, see `agent.cuda.Driver.facts`.
    """

    def __init__(
        self,
        inner: Place,
        *,
        provider: str,
        provider_options: Mapping[str, str],
        device: int,
        facts: Mapping[str, Any],
    ) -> None:
        self._inner = inner
        self.provider = provider
        self._options = dict(provider_options)
        self._device = device
        self._facts = dict(facts)
        self.name = inner.name
        about = inner.about()
        if provider != TENSORRT and provider not in about.providers:
            inner.close()
            raise BackendMissing(
                f"{self.name}: ONNX Runtime {about.runtime_version} here has no {provider}, only"
                f" {', '.join(about.providers)}. Install onnxruntime-gpu in place of onnxruntime."
            )

    def about(self) -> About:
        """What the machine and its GPU say about themselves now; of the providers only those that ran something."""
        about = self._inner.about()
        state = gpu_state(self._device) or {}
        return about.model_copy(
            update={"providers": self._opened(), "details": {**about.details, "gpu": {**self._facts, **state}}}
        )

    def put(self, files: Mapping[str, Path]) -> None:
        """Bring files there; see `Place`."""
        self._inner.put(files)

    def install(self, files: Mapping[str, Path], folder: str) -> str:
        """Bring files into a folder that stays; see `Place.install`."""
        return self._inner.install(files, folder)

    def run(
        self, model: str, feeds: Sequence[Mapping[str, np.ndarray]], session: SessionSettings
    ) -> list[dict[str, np.ndarray]]:
        """The answers of a model; see `Place`."""
        return self._inner.run(model, feeds, self._on_gpu(session))

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: Progress | None = None,
    ) -> Measured:
        """Time models; see `Place`. The GPU's clock, temperature, power and throttling are read meanwhile.

        Raises:
            GateFailed: something else than the asked provider ran a model.
        """
        with _Watch(self._device, timing.readings_seconds) as watch:
            found = self._inner.measure(models, feeds, session=self._on_gpu(session), timing=timing, progress=progress)
        for name, timed in found.models.items():
            if timed.provider_used != timed.provider_requested:
                raise GateFailed(
                    f"{self.name}: '{name}' was to run on {timed.provider_requested} and ran on {timed.provider_used}."
                )
        source = found.energy_source
        if any(state.get("power_w") is not None for _, state in watch.states):
            source = "the GPU's own power sensor (nvidia-smi)"
        return found.model_copy(
            update={"readings": _joined(found.readings, watch.states, watch.ended), "energy_source": source}
        )

    def cold(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, repeats: int
    ) -> list[Cold]:
        """Start new processes; see `Place`."""
        return self._inner.cold(model, feeds, session=self._on_gpu(session), repeats=repeats)

    def placement(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, runs: int
    ) -> list[NodePlacement]:
        """Which provider ran each node; see `Place`."""
        return self._inner.placement(model, feeds, session=self._on_gpu(session), runs=runs)

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_gpu(self, session: SessionSettings) -> SessionSettings:
        """The GPU's provider where the default one stands; what a caller named stays."""
        if session.provider not in (CPU_PROVIDER, self.provider):
            return session
        options = {**self._options, **session.provider_options}
        return session.model_copy(update={"provider": self.provider, "provider_options": options})

    def _opened(self) -> list[str]:
        """Providers that opened a session on a small model: listing alone says nothing."""
        from edgekd.devices._gpu_probe import opens

        tried = [self.provider] if self.provider == TENSORRT else self._inner.about().providers
        return [one for one in tried if one == CPU_PROVIDER or opens(self._inner, one, self._options)]


class _Watch:
    """Reads the GPU's state in a thread while models are timed in another process."""

    def __init__(self, device: int, every_seconds: float) -> None:
        self._device = device
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.states: list[tuple[float, dict[str, Any]]] = []
        self.ended = 0.0

    def __enter__(self) -> Self:
        self._read()
        if self._every_seconds > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended = time.monotonic()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._read()

    def _look(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self._read()

    def _read(self) -> None:
        at = time.monotonic()
        self.states.append((at, gpu_state(self._device) or {}))


def _joined(
    readings: Sequence[Reading], states: Sequence[tuple[float, Mapping[str, Any]]], ended: float
) -> list[Reading]:
    """Each reading with the GPU's state that was taken nearest to it.

    The process's last reading was made when the timing ended, which aligns the two clocks.
    """
    last_ms = readings[-1].at_ms
    joined = []
    for reading in readings:
        at = ended + (reading.at_ms - last_ms) / 1000.0
        state = min(states, key=lambda pair: abs(pair[0] - at))[1]
        joined.append(_with_gpu(reading, state))
    return joined


def _with_gpu(reading: Reading, state: Mapping[str, Any]) -> Reading:
    words = throttle_words(state)
    temperature, clock, power = (state.get(key) for key in ("temperature_c", "clock_mhz", "power_w"))
    return reading.model_copy(
        update={
            # the GPU is what runs the models: its clock alone, not among those of the cores
            "clocks_mhz": [clock] if clock is not None else reading.clocks_mhz,
            "temperatures_c": {
                **(reading.temperatures_c or {}),
                **({} if temperature is None else {"gpu": temperature}),
            }
            or None,
            "throttled": reading.throttled if words is None else [*(reading.throttled or []), *words],
            "power_w": power if power is not None else reading.power_w,
        }
    )
