"""What a device can do, as numbers with their sources: one file a device, found by looking into a folder."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from edgekd._roofline import ElementType, Kind
from edgekd.errors import UsageError, did_you_mean
from edgekd.spec import Frozen

__all__ = ["Cores", "DeviceProfile", "Memory", "Point", "Rates", "find_profile", "profile_names", "to_toml"]

FOLDER = Path(__file__).parent / "device_profiles"
_SUFFIXES = (".toml", ".json")


class Cores(Frozen):
    """Cores of one kind.

    Args:
        name: "Cortex-A76".
        count: how many, >= 1.
        clock_ghz: highest clock, > 0.
        macs_per_cycle: multiply-accumulates of one core in one cycle by element type, at its best.
        source: where these numbers are from.
    """

    name: str
    count: int = Field(ge=1)
    clock_ghz: float = Field(gt=0.0)
    macs_per_cycle: dict[ElementType, float] = Field(min_length=1)
    source: str


class Memory(Frozen):
    """How fast bytes arrive, in 1e9 bytes a second.

    Args:
        gb_per_s: from memory, at its best, > 0.
        gb_per_s_of_one_core: that one core can have of it; None for all.
        cache_bytes: of the last cache that the cores share; 0 for none.
        cache_gb_per_s_of_one_core: from there, of one core.
        source: where these numbers are from.
    """

    gb_per_s: float = Field(gt=0.0)
    gb_per_s_of_one_core: float | None = Field(None, gt=0.0)
    cache_bytes: int = Field(0, ge=0)
    cache_gb_per_s_of_one_core: float = Field(gt=0.0)
    source: str


class Rates(Frozen):
    """What of the peaks is reached; fitted, or taken over from another profile.

    Args:
        utilisation: share of the peak in (0, 1] by element type and kind. A rate above the peak's means that the
            runtime does less work than was counted.
        memory_share: share of the bandwidths in (0, 1].
        overhead_us: of every operator, >= 0.
        call_us: of every inference, >= 0.
        parallel: share of a core that each thread after the first adds, in [0, 1].
        source: how they were found.
    """

    utilisation: dict[ElementType, dict[Kind, float]]
    memory_share: float = Field(gt=0.0)
    overhead_us: float = Field(ge=0.0)
    call_us: float = Field(0.0, ge=0.0)
    parallel: float = Field(1.0, ge=0.0, le=1.0)
    source: str


class Point(Frozen):
    """One latency that somebody measured, beside what a profile that never saw its network says.

    Args:
        network: its name in `benchmarks/devices/networks.json`.
        element_type: that it ran in.
        threads, batch: of it.
        latency_ms: as measured.
        held_out_ms: the estimate of a profile fitted on the other networks only; None if it was never estimated.
        source: who measured it, and with what.
    """

    network: str
    element_type: ElementType
    threads: int = Field(ge=1)
    batch: int = Field(1, ge=1)
    latency_ms: float = Field(gt=0.0)
    held_out_ms: float | None = Field(None, gt=0.0)
    source: str

    @property
    def error(self) -> float | None:
        """The estimate over the measurement, minus one; 0.1 for 10 % too slow."""
        return None if self.held_out_ms is None else self.held_out_ms / self.latency_ms - 1.0


class DeviceProfile(Frozen):
    """A device, as far as an estimate knows it.

    Args:
        name: what `--device-profile` is given.
        title: board and processor in words.
        processor: a GPU runs on all its cores whatever the threads.
        runtime: whose speed the rates describe.
        basis: what the rates come from: published latencies, measurements of `edgekd probe`, or another profile.
        threads: that it was fitted at; the default of an estimate.
        cores: the kinds of cores, the fastest first.
        memory: bandwidths and cache.
        rates: what of the peaks is reached.
        rates_from: the profile whose rates these are, where no latency of this device is known.
        points: latencies that it was held against.
        notes: what one must know, one sentence each.
    """

    name: str
    title: str
    processor: Literal["cpu", "gpu"] = "cpu"
    runtime: str
    basis: Literal["published", "probed", "assumed"]
    threads: int = Field(1, ge=1)
    cores: list[Cores] = Field(min_length=1)
    memory: Memory
    rates: Rates
    rates_from: str | None = None
    points: list[Point] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _float32_is_known(self) -> Self:
        if "float32" not in self.rates.utilisation:
            raise ValueError("rates.utilisation must have float32, which the other types fall back on")
        for cores in self.cores:
            if "float32" not in cores.macs_per_cycle:
                raise ValueError(f"cores '{cores.name}': macs_per_cycle must have float32")
        for kinds in self.rates.utilisation.values():
            for kind, value in kinds.items():
                if not 0.0 < value <= 4.0:
                    raise ValueError(f"utilisation of {kind} must be in (0, 4], got {value}")
        return self

    def peak(self, element_type: ElementType, threads: int) -> float:
        """Multiply-accumulates a second of as many cores as there are threads, the fastest first."""
        left = sum(one.count for one in self.cores) if self.processor == "gpu" else threads
        speeds: list[float] = []
        for one in self.cores:
            used = min(left - len(speeds), one.count)
            at_once = one.macs_per_cycle.get(element_type, one.macs_per_cycle["float32"])
            speeds += [at_once * one.clock_ghz * 1e9] * used
        if self.processor == "gpu":
            return sum(speeds)
        return speeds[0] + self.rates.parallel * sum(speeds[1:])

    def rate(self, kind: Kind, element_type: ElementType, threads: int) -> float:
        """Operations a second that kernels of a kind reach."""
        known = self.rates.utilisation
        if element_type not in known or element_type not in self.cores[0].macs_per_cycle:
            element_type = "float32"
        share = known[element_type].get(kind, known["float32"].get(kind, _UNKNOWN_SHARE))
        return share * self.peak(element_type, threads)

    def bandwidth_gb_s(self, threads: int) -> tuple[float, float]:
        """From memory and from the cache, as reached."""
        cores = sum(one.count for one in self.cores)
        used = cores if self.processor == "gpu" else min(threads, cores)
        memory = self.memory
        of_cores = math.inf if memory.gb_per_s_of_one_core is None else memory.gb_per_s_of_one_core * used
        share = self.rates.memory_share
        return share * min(memory.gb_per_s, of_cores), share * memory.cache_gb_per_s_of_one_core * used

    @property
    def checked(self) -> list[Point]:
        """The points that have an estimate by a profile that never saw their network."""
        return [one for one in self.points if one.held_out_ms is not None]

    @property
    def median_error(self) -> float | None:
        """Median of the absolute errors of held-out points, as a fraction; None without any."""
        errors = [abs(one.error or 0.0) for one in self.checked]
        return statistics.median(errors) if errors else None

    @property
    def worst_error(self) -> float | None:
        """Largest absolute error of a held-out point, as a fraction; None without any."""
        errors = [abs(one.error or 0.0) for one in self.checked]
        return max(errors) if errors else None

    @property
    def factor(self) -> float | None:
        """The smallest factor, >= 1, that all held-out points are within, above or below; None without any."""
        ratios = [one.latency_ms / one.held_out_ms for one in self.checked if one.held_out_ms is not None]
        return max(max(ratio, 1.0 / ratio) for ratio in ratios) if ratios else None


_UNKNOWN_SHARE = 0.1


def profile_names() -> list[str]:
    """The profiles that come with edgekd, sorted."""
    return sorted(file.stem for file in FOLDER.iterdir() if file.suffix in _SUFFIXES)


def find_profile(name: str) -> DeviceProfile:
    """A profile that comes with edgekd by its name, or a user's own by its path (.toml or .json).

    Raises:
        UsageError: there is none, or it is not one.
    """
    path = Path(name)
    if path.suffix in _SUFFIXES:
        return _read(path)
    if name not in profile_names():
        raise UsageError(
            f"There is no device profile '{name}'. {did_you_mean(name, profile_names())}"
            " Or give the path of your own, a .toml that `edgekd probe --out` wrote."
        )
    return _read(next(FOLDER / f"{name}{suffix}" for suffix in _SUFFIXES if (FOLDER / f"{name}{suffix}").is_file()))


def _read(path: Path) -> DeviceProfile:
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: the device profile cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # of TOML, JSON and of text that is not UTF-8
        raise UsageError(f"{path}: not a device profile: {error}.") from error
    try:
        return DeviceProfile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"]) or "profile"
        raise UsageError(f"{path}: not a device profile: {where}: {first['msg']}.") from error


def to_toml(profile: DeviceProfile) -> str:
    """A profile as the text of a .toml file; `find_profile` gives an equal one back."""
    return "\n".join(_table_lines(profile.model_dump(mode="json", exclude_none=True), ())).lstrip("\n") + "\n"


def _table_lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in values.items() if not _is_table(value)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = _table_lines(value, (*path, key))
            lines += ["", f"[{'.'.join((*path, key))}]", *inner]
        elif _is_table(value):
            for one in value:
                lines += ["", f"[[{'.'.join((*path, key))}]]", *_table_lines(one, (*path, key))]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # its escapes are TOML's, too
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)
