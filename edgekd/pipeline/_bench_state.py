"""A measurement on a device while it is made: the connection, the models, and how they are opened and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekd.devices._place import CPU_PROVIDER, About, NodePlacement, Place, SessionSettings, Timing
from edgekd.measure import Protocol
from edgekd.pipeline._bench_models import PlacedModel
from edgekd.pipeline._watcher import Watcher
from edgekd.recipe import BenchSettings

__all__ = ["Bench", "protocol_of"]

_READINGS_SECONDS = 1.0


@dataclass
class Bench:
    """One measurement while it is made."""

    place: Place
    about: About
    chosen: BenchSettings
    models: dict[str, PlacedModel]
    feeds: Mapping[str, np.ndarray]
    watcher: Watcher
    threads: int
    nodes: dict[str, list[NodePlacement]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def session(self, threads: int | None = None) -> SessionSettings:
        """How every model is opened; nodes may fall back, and the placement gate judges whether any did."""
        chosen = self.chosen
        provider = self.place.provider if chosen.provider == CPU_PROVIDER else chosen.provider
        return SessionSettings(
            threads=threads or self.threads,
            provider=provider,
            # cores that were chosen for one number of threads say nothing about another
            cores=list(chosen.cores) if threads is None else [],
            allow_cpu_fallback=provider != CPU_PROVIDER,
        )

    def timing(self) -> Timing:
        """The protocol as the device wants it."""
        protocol = protocol_of(self.chosen)
        return Timing(
            queries=protocol.queries,
            max_seconds=protocol.max_seconds,
            warmup_min=protocol.warmup_min,
            warmup_max_seconds=protocol.warmup_max_seconds,
            window=protocol.window,
            steady=protocol.steady,
            readings_seconds=_READINGS_SECONDS,
        )

    @property
    def target(self) -> str:
        """What the files were made for."""
        return next(iter(self.models.values())).target


def protocol_of(chosen: BenchSettings) -> Protocol:
    """The protocol that a recipe's `[bench]` asks for."""
    return Protocol(
        budget_ms=chosen.budget_ms,
        percentile=chosen.percentile,
        confidence=chosen.confidence,
        queries=chosen.queries,
        max_seconds=chosen.max_seconds,
    )
