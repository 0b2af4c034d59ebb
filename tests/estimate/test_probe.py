"""A probe finds the rates of a device: of one whose rates are known exactly, and of this processor for real."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from edgekd._estimate_fit import starting_rates
from edgekd._estimate_graph import count_operators
from edgekd._estimate_models import check_networks, probe_models
from edgekd._estimate_probe import probed, undisturbed_ms
from edgekd._estimate_profile import Cores, DeviceProfile, Memory, find_profile
from edgekd._roofline import total_ms, work_of
from edgekd.cli.main import main
from edgekd.devices._place import About, Measured, Reading, SessionSettings, Timed, Timing


def known_device() -> DeviceProfile:
    """A board with a cache of 4 MB, slow memory and slow depthwise convolutions in int8."""
    rates = starting_rates("cpu")
    rates.utilisation["int8"].update(conv=0.7, depthwise=0.02, gemm=0.6)
    rates.utilisation["float32"].update(conv=0.6, depthwise=0.35, gemm=0.7)
    return DeviceProfile(
        name="known",
        title="Known",
        runtime="none",
        basis="assumed",
        cores=[Cores(name="c", count=4, clock_ghz=1.8, macs_per_cycle={"float32": 8.0, "int8": 32.0}, source="-")],
        memory=Memory(gb_per_s=4.0, cache_bytes=4 * 10**6, cache_gb_per_s_of_one_core=20.0, source="-"),
        rates=rates.model_copy(update={"memory_share": 1.0, "overhead_us": 6.0, "call_us": 40.0}),
    )


class KnownPlace:
    """A device whose latencies follow from a profile: what a probe of it must find is known exactly."""

    name = "known:board"

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.files: dict[str, Path] = {}
        self.latencies: dict[str, float] = {}

    def about(self) -> About:
        return About(machine="aarch64", system="Linux", runtime_version="1.0", cores=4)

    def put(self, files: Mapping[str, Path]) -> None:
        self.files |= files

    def measure(
        self,
        models: Mapping[str, str],
        feeds: Mapping[str, np.ndarray],
        *,
        session: SessionSettings,
        timing: Timing,
        progress: object = None,
    ) -> Measured:
        found = {}
        for name, file in models.items():
            if file not in self.latencies:
                work = work_of(count_operators(self.files[file]).operators)
                self.latencies[file] = total_ms(work, self.profile, threads=session.threads)
            latency = self.latencies[file]
            found[name] = Timed(
                provider_requested="CPUExecutionProvider",
                provider_used="CPUExecutionProvider",
                warmup=4,
                steady=True,
                started_ms=[0.0] * 10,
                samples_ms=[latency, latency, *[3.0 * latency] * 8],  # disturbed eight times of ten
            )
        return Measured(models=found, readings=[Reading(at_ms=-1.0), Reading(at_ms=1.0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    with KnownPlace(known_device()) as place:
        told: list[tuple[int, int]] = []
        folder = tmp_path_factory.mktemp("probe")
        profile, rates = probed(place, folder, threads=2, progress=lambda done, total: told.append((done, total)))  # type: ignore[arg-type]
    assert told[-1] == (len(told), len(told))
    return profile, rates


def test_networks_that_were_not_fitted_are_estimated_well(found) -> None:
    profile, _ = found
    assert {(one.network, one.element_type) for one in profile.checked} == {
        (f"probe:{name}", kind) for name in ("mobile", "residual") for kind in ("float32", "int8")
    }
    assert profile.worst_error < 0.12


def test_rates_of_the_device_are_found(found) -> None:
    profile, rates = found
    truth = known_device()
    for element_type, kind in (("float32", "conv"), ("int8", "conv"), ("float32", "depthwise"), ("int8", "depthwise")):
        reached = profile.rate(kind, element_type, 2)
        assert reached == pytest.approx(truth.rate(kind, element_type, 2), rel=0.15), (element_type, kind)
    assert profile.rates.overhead_us == pytest.approx(6.0, rel=0.15)
    assert profile.bandwidth_gb_s(2)[0] == pytest.approx(4.0, rel=0.25)
    assert 2 * 10**6 < profile.memory.cache_bytes < 9 * 10**6
    for name, rate in rates.items():
        assert rate.lower <= rate.value <= rate.upper, name


def test_profile_says_what_it_is(found) -> None:
    profile, _ = found
    assert (profile.basis, profile.name, profile.threads) == ("probed", "known_board", 2)
    assert "1.0" in profile.runtime
    assert profile.notes == []


def test_only_what_disturbs_is_left_out() -> None:
    assert undisturbed_ms([5.0, 1.0, 9.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]) == 1.0
    assert undisturbed_ms([4.0]) == 4.0


def test_models_have_one_name_each_and_run_in_onnx_runtime() -> None:
    import onnxruntime

    models = [*probe_models("uint8", 0), *check_networks("uint8", 0)]
    assert len({one.name for one in models}) == len(models) >= 30
    for one in models:
        session = onnxruntime.InferenceSession(one.model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.isfinite(session.run(None, dict(one.feeds))[0]).all(), one.name
        work = count_operators(one.model)
        assert work.notes == (), one.name


@pytest.mark.slow
def test_this_processor_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here" / "mine.toml"
    assert main(["probe", "--seconds", "0.02", "--out", str(out), "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    profile = find_profile(str(out))
    assert answer["profile"]["name"] == profile.name == "cpu"
    assert (profile.basis, len(profile.checked)) == ("probed", 4)
    assert all(one.latency_ms > 0.0 for one in profile.points)
    before = out.read_bytes()
    assert main(["probe", "--out", str(out), "--quiet"]) == 2
    assert "is there already; nothing was measured" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert [one.name for one in out.parent.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seconds", "0"], "seconds above 0"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--out", "profile.txt"], "a profile is a .toml file"),
        (["--device", "toaster"], "There is no device 'toaster'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["probe", "--quiet", *arguments]) == 2
    assert says in capsys.readouterr().err
