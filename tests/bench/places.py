"""A real connection to this machine's processor whose answers a test changes on their way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekd.devices._base import open_place
from edgekd.devices._place import About, Cold, Measured, NodePlacement, Progress, SessionSettings, Timing

_CPU = "CPUExecutionProvider"


class Altered:
    """The `cpu` place: models really run and are really timed; what it tells of the device is the test's.

    Args:
        about: changes what the device says about itself.
        measured: changes a measurement.
        nodes: changes a placement.
        provider: what the processor is to pass for; it must be asked for by that name, and answers by it.
    """

    def __init__(
        self,
        *,
        name: str = "cpu",
        about: Callable[[About], About] = lambda one: one,
        measured: Callable[[Measured], Measured] = lambda one: one,
        nodes: Callable[[list[NodePlacement]], list[NodePlacement]] = lambda one: one,
        provider: str = _CPU,
    ) -> None:
        self.name, self.provider = name, provider
        self._about, self._measured, self._nodes = about, measured, nodes
        self._place = open_place("cpu")
        self.sessions: list[SessionSettings] = []
        self.timings: list[Timing] = []

    def about(self) -> About:
        return self._about(self._place.about())

    def put(self, files: Mapping[str, Path]) -> None:
        self._place.put(files)

    def run(
        self, model: str, feeds: Sequence[Mapping[str, np.ndarray]], session: SessionSettings
    ) -> list[dict[str, np.ndarray]]:
        return self._place.run(model, feeds, self._by_processor(session))

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: Progress | None = None,
    ) -> Measured:
        self.sessions.append(session)
        self.timings.append(timing)
        found = self._place.measure(
            models, feeds, session=self._by_processor(session), timing=timing, progress=progress
        )
        if self.provider != _CPU:
            names = {"provider_requested": self.provider, "provider_used": self.provider}
            timed = {name: one.model_copy(update=names) for name, one in found.models.items()}
            found = found.model_copy(update={"models": timed})
        return self._measured(found)

    def cold(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, repeats: int
    ) -> list[Cold]:
        return self._place.cold(model, feeds, session=self._by_processor(session), repeats=repeats)

    def placement(
        self, model: str, feeds: Mapping[str, np.ndarray], *, session: SessionSettings, runs: int
    ) -> list[NodePlacement]:
        found = self._place.placement(model, feeds, session=self._by_processor(session), runs=runs)
        if self.provider != _CPU:
            found = [one.model_copy(update={"provider": self.provider}) for one in found]
        return self._nodes(found)

    def install(self, *arguments: Any) -> str:
        return self._place.install(*arguments)

    def _by_processor(self, session: SessionSettings) -> SessionSettings:
        if self.provider == _CPU:
            return session
        assert session.provider == self.provider
        assert session.allow_cpu_fallback  # the placement gate judges it
        return session.model_copy(update={"provider": _CPU, "allow_cpu_fallback": False})

    def close(self) -> None:
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
