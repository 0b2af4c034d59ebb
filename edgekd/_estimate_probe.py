"""Small models that each ask a device one question, and the profile that their latencies make.

Convolutions, depthwise convolutions, matrix products, windows, moves and sums, in float32 and int8; products with ever
larger weights for bandwidth and cache; a chain of tiny operators for what one costs. Two small networks are timed too
and never fitted: their errors are the profile's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgekd._estimate_fit import Observation, fitted_with_spreads, starting_rates
from edgekd._estimate_graph import count_operators
from edgekd._estimate_models import Codes, ProbeModel, check_networks, probe_models
from edgekd._estimate_profile import Cores, DeviceProfile, Memory, Point
from edgekd._roofline import ElementType, Kind, total_ms, work_of
from edgekd._statistics import nearest_rank
from edgekd.devices._place import About, Place, SessionSettings, Timing
from edgekd.spec import Frozen

__all__ = ["Rate", "probed", "undisturbed_ms"]

_FREE: tuple[Kind, ...] = ("conv", "depthwise", "gemm", "elementwise", "pool", "move")
_HEADROOM = 1.25  # bandwidths are set over what was seen, since shares of them cannot exceed 1
_SLOWER_THAN_CACHE = 0.7
_ROUNDS = 3
_PEAKS: Mapping[str, Mapping[ElementType, float]] = {
    "aarch64": {"float32": 8.0, "int8": 32.0},
    "x86_64": {"float32": 16.0, "int8": 32.0},
}
_NOMINAL_CLOCK_GHZ = 2.0


class Rate(Frozen):
    """A fitted number and its 95 % interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class _Seen:
    """A model, what is in it, and its latency."""

    model: ProbeModel
    observation: Observation


def probed(
    place: Place,
    folder: Path,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DeviceProfile, dict[str, Rate]]:
    """Measure a device and fit a profile to it.

    Args:
        place: an open connection to it.
        folder: an empty one for the models.
        threads: of the runtime, >= 1.
        seconds: longest timing of each model.
        seed: of weights and inputs; latencies do not depend on their values.
        progress: told about models timed and models planned.

    Returns:
        The profile, and each fitted rate by name, "utilisation.int8.conv".

    Raises:
        BackendMissing: the device is lost.
        ModelFileError: its runtime refuses a model.
    """
    about = place.about()
    codes: Codes = "int8" if about.machine in ("aarch64", "arm64") else "uint8"
    probes, checks = probe_models(codes, seed), check_networks(codes, seed)
    models = [*probes, *checks]
    for model in models:
        onnx.save(model.model, folder / _file(model))
    place.put({_file(model): folder / _file(model) for model in models})
    least = dict.fromkeys((model.name for model in models), math.inf)
    for turn in range(_ROUNDS):
        # in rounds, so that something else that runs for a while does not hit all the runs of one model
        for done, model in enumerate(models, start=1):
            taken = _timed_ms(place, model, threads, seconds / _ROUNDS)
            least[model.name] = min(least[model.name], taken)
            if progress is not None:
                progress(turn * len(models) + done, _ROUNDS * len(models))
    seen = [_Seen(model, _observation(model, threads, least[model.name])) for model in models]
    return _profile(place.name, about, seen[: len(probes)], seen[len(probes) :], threads)


def _file(model: ProbeModel) -> str:
    return f"{model.name}.onnx"


def _timed_ms(place: Place, model: ProbeModel, threads: int, seconds: float) -> float:
    measured = place.measure(
        {model.name: _file(model)},
        model.feeds,
        session=SessionSettings(threads=threads),
        timing=Timing(queries=200, max_seconds=seconds, warmup_min=4, warmup_max_seconds=seconds / 2, window=2),
    )
    return undisturbed_ms(measured.models[model.name].samples_ms)


def _observation(model: ProbeModel, threads: int, latency_ms: float) -> Observation:
    return Observation(model.name, work_of(count_operators(model.model).operators), threads, latency_ms)


def undisturbed_ms(samples_ms: Sequence[float]) -> float:
    """The 10th percentile: what else a machine does only ever adds, and a profile is about the device."""
    return nearest_rank(samples_ms, 10.0)


def _profile(
    name: str, about: About, probes: Sequence[_Seen], checks: Sequence[_Seen], threads: int
) -> tuple[DeviceProfile, dict[str, Rate]]:
    start = _starting(name, about, probes, threads)
    observations = [one.observation for one in probes]
    found, intervals = fitted_with_spreads(start, observations, free=_FREE)
    when = (
        f"least 10th percentile of three rounds of the probe's runs on {name}, {about.runtime} {about.runtime_version}"
    )
    points = [
        Point(
            network=f"probe:{one.model.name.rpartition('_')[0]}",
            element_type=one.model.element_type,
            threads=threads,
            latency_ms=one.observation.latency_ms,
            held_out_ms=total_ms(one.observation.work, found, threads=threads),
            source=when,
        )
        for one in checks
    ]
    source = f"fitted to {len(observations)} small models timed on {name}; the points below were not fitted"
    profile = found.model_copy(update={"points": points, "rates": found.rates.model_copy(update={"source": source})})
    rates = {key: Rate(value=_value(found, key), lower=low, upper=high) for key, (low, high) in intervals.items()}
    return DeviceProfile.model_validate(profile.model_dump()), rates


def _value(profile: DeviceProfile, key: str) -> float:
    parts = key.split(".")
    if parts[0] != "utilisation":
        return float(getattr(profile.rates, parts[0]))
    return profile.rates.utilisation[parts[1]][parts[2]]  # type: ignore[index]


def _starting(name: str, about: About, probes: Sequence[_Seen], threads: int) -> DeviceProfile:
    """Nominal peaks, bandwidths as seen, and the rates that every fit starts from."""
    model = about.details.get("model")
    clock = _clock_ghz(about)
    peaks = dict(_PEAKS.get(about.machine, _PEAKS["aarch64"]))
    cores = Cores(
        name=str(model or about.machine),
        count=max(about.cores or 1, threads),
        clock_ghz=clock or _NOMINAL_CLOCK_GHZ,
        macs_per_cycle=peaks,
        source="nominal: only the product with the utilisation was measured",
    )
    rates = starting_rates("cpu").model_copy(update={"memory_share": 1.0 / _HEADROOM, "call_us": 20.0})
    return DeviceProfile(
        name=_file_name(name),
        title=f"{model or about.machine}, {about.system}",
        runtime=f"{about.runtime} {about.runtime_version}",
        basis="probed",
        threads=threads,
        cores=[cores],
        memory=_memory(probes, threads),
        rates=rates,
        notes=["This device was emulated: its times say nothing about the processor it stands for."]
        if about.emulated
        else [],
    )


def _memory(probes: Sequence[_Seen], threads: int) -> Memory:
    """Bandwidths from products with ever larger weights: where they fall off, the cache has ended."""
    speeds = {}
    for one in probes:
        if one.model.name.startswith("weights"):
            size = int(one.observation.work.weight_bytes.sum())
            speeds[size] = size / one.observation.latency_ms / 1e6
    sizes = sorted(speeds)
    # the smallest ones cost a call more than their bytes: the cache is as fast as the fastest
    fastest = max(sizes, key=lambda size: speeds[size])
    cached = [size for size in sizes if size >= fastest and speeds[size] >= _SLOWER_THAN_CACHE * speeds[fastest]]
    memory, last = speeds[sizes[-1]], min(sizes.index(max(cached)), len(sizes) - 2)
    return Memory(
        gb_per_s=_HEADROOM * memory,
        cache_bytes=round(math.sqrt(sizes[last] * sizes[last + 1])),  # it ends somewhere between the two
        cache_gb_per_s_of_one_core=_HEADROOM * speeds[fastest] / threads,
        source="products of a vector with matrices of 0.5 to 32 MiB, timed",
    )


def _clock_ghz(about: About) -> float | None:
    clocks = about.details.get("clocks_mhz")
    values = [float(one) for one in clocks if one] if isinstance(clocks, list) else []
    return max(values) / 1e3 if values else None


def _file_name(device: str) -> str:
    kept = "".join(letter if letter.isalnum() else "_" for letter in device)
    return kept.strip("_") or "device"
