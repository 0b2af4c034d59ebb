"""Device profiles: what they must hold, that they follow from their own points, and what a wrong file is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd._estimate_fit import Observation, fitted, fitted_with_spreads, held_out, starting_rates
from edgekd._estimate_profile import (
    Cores,
    DeviceProfile,
    Memory,
    Point,
    find_profile,
    profile_names,
    to_toml,
)
from edgekd._roofline import Operator, total_ms, work_of
from edgekd.errors import UsageError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "devices"
FEWEST = 13


@pytest.fixture(scope="module")
def estimates():
    """The benchmark's own module, which refits the profiles from what is committed."""
    before = list(sys.path)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    try:
        import estimates as module

        yield module
    finally:
        sys.path[:] = before


def small_profile(**changes) -> DeviceProfile:
    values = {
        "name": "small",
        "title": "Small",
        "runtime": "none",
        "basis": "published",
        "cores": [Cores(name="c", count=2, clock_ghz=2.0, macs_per_cycle={"float32": 8.0, "int8": 32.0}, source="-")],
        "memory": Memory(gb_per_s=10.0, cache_bytes=2**20, cache_gb_per_s_of_one_core=40.0, source="-"),
        "rates": starting_rates("cpu"),
    }
    return DeviceProfile.model_validate({**values, **changes})


def network(scale: int, *, depthwise: bool = False, element_type="float32"):
    kind = "depthwise" if depthwise else "conv"
    rows = [
        Operator(str(i), "Conv", kind if i % 2 else "conv", "float32", scale * 10**6, scale * 10**6, 10**4, 10**5,
                 10**5, 0, 0, 0).as_type(element_type)
        for i in range(10)
    ]  # fmt: skip
    return work_of(rows)


def test_every_profile_is_found_and_says_where_its_numbers_are_from() -> None:
    names = profile_names()
    assert len(names) >= FEWEST
    assert {"pixel4", "rpi4", "rpi5", "jetson_orin_nano", "generic_avx2", "generic_vnni"} <= set(names)
    for name in names:
        profile = find_profile(name)
        assert profile.name == name
        sources = [
            profile.memory.source,
            profile.rates.source,
            *(one.source for one in (*profile.cores, *profile.points)),
        ]
        assert all(len(one) > 10 for one in sources), name
        assert (profile.rates_from is None) or not profile.points


def test_a_profile_without_points_is_unchecked() -> None:
    assert small_profile().median_error is None
    assert small_profile().factor is None


def test_errors_by_hand() -> None:
    points = [
        Point(network=name, element_type="int8", threads=1, latency_ms=measured, held_out_ms=said, source="-")
        for name, measured, said in (("a", 10.0, 11.0), ("b", 10.0, 8.0), ("c", 10.0, 10.5))
    ]
    profile = small_profile(points=[one.model_dump() for one in points])
    assert profile.median_error == pytest.approx(0.1)
    assert profile.worst_error == pytest.approx(0.2)
    assert profile.factor == pytest.approx(1.25)  # 10 over 8


def test_profiles_follow_from_their_points_alone(estimates) -> None:
    """Rates and held-out estimates in every file are what a fresh fit gives: nobody set them by hand."""
    checked = 0
    for name in profile_names():
        profile = find_profile(name)
        if len(profile.points) > 4:  # the larger fits are left to the slow test
            continue
        again = estimates.refitted(profile)
        assert again.rates.memory_share == pytest.approx(profile.rates.memory_share, rel=0.02), name
        assert again.rates.overhead_us == pytest.approx(profile.rates.overhead_us, rel=0.02), name
        for kind, share in profile.rates.utilisation["float32"].items():
            assert again.rates.utilisation["float32"][kind] == pytest.approx(share, rel=0.02), (name, kind)
        for point, other in zip(profile.points, again.points, strict=True):
            assert other.held_out_ms == pytest.approx(point.held_out_ms, rel=0.02), (name, point.network)
            checked += 1
    assert checked >= 8


@pytest.mark.slow
def test_large_profiles_follow_from_their_points_alone(estimates) -> None:
    for name in ("jetson_orin_nano", "pixel4", "rpi4", "rpi5"):
        profile = find_profile(name)
        again = estimates.refitted(profile)
        assert [one.held_out_ms for one in again.points] == pytest.approx(
            [one.held_out_ms for one in profile.points], rel=0.02
        )


def test_the_stated_errors_are_within_what_the_docs_say() -> None:
    pixel4, rpi4 = find_profile("pixel4"), find_profile("rpi4")
    assert len(pixel4.checked) == 14
    assert pixel4.median_error < 0.06
    assert pixel4.worst_error < 0.30
    assert rpi4.worst_error < 0.25


def test_a_fit_finds_the_rates_that_made_its_latencies() -> None:
    start = small_profile()
    truth = start.model_copy(deep=True)
    truth.rates.utilisation["float32"]["conv"] = 0.3
    truth.rates.utilisation["float32"]["depthwise"] = 0.05
    works = [network(scale, depthwise=dw) for scale in (5, 20, 80) for dw in (True, False)]
    seen = [Observation(str(i), one, 1, total_ms(one, truth, threads=1)) for i, one in enumerate(works)]
    found = fitted(start, seen)
    assert found.rates.utilisation["float32"]["conv"] == pytest.approx(0.3, rel=0.03)
    assert found.rates.utilisation["float32"]["depthwise"] == pytest.approx(0.05, rel=0.03)
    again, intervals = fitted_with_spreads(start, seen)
    assert again == found
    for name, (low, high) in intervals.items():
        assert low < high, name
    low, high = intervals["utilisation.float32.conv"]
    assert low < 0.3 < high
    assert held_out(start, seen) == pytest.approx([one.latency_ms for one in seen], rel=0.05)


def test_products_go_along_with_convolutions_where_nothing_tells_them_apart() -> None:
    start = small_profile()
    seen = [Observation("a", network(50), 1, 2.0 * total_ms(network(50), start, threads=1))]
    found = fitted(start, seen).rates.utilisation["float32"]
    assert found["conv"] < start.rates.utilisation["float32"]["conv"]
    before = start.rates.utilisation["float32"]
    assert found["gemm"] / found["conv"] == pytest.approx(before["gemm"] / before["conv"])


def test_a_held_out_latency_does_not_move_its_own_estimate() -> None:
    start = small_profile()
    works = {name: network(scale) for name, scale in (("a", 10), ("b", 20), ("c", 40))}
    honest = [Observation(name, one, 1, total_ms(one, start, threads=1)) for name, one in works.items()]
    wild = [honest[0], honest[1], Observation("c", works["c"], 1, 50.0 * honest[2].latency_ms)]
    assert held_out(start, wild)[2] == pytest.approx(held_out(start, honest)[2])
    # and both forms of one network are left out together
    int8 = Observation("c", network(40, element_type="int8"), 1, 1.0)
    assert held_out(start, [*honest, int8])[2] == pytest.approx(held_out(start, honest)[2])


def test_one_network_alone_cannot_be_held_out() -> None:
    one = Observation("a", network(10), 1, 1.0)
    assert held_out(small_profile(), [one, one]) == [None, None]
    with pytest.raises(UsageError, match="at least one latency, got none"):
        fitted(small_profile(), [])


def test_a_network_that_runs_otherwise_than_counted_does_not_move_all_rates() -> None:
    start = small_profile()
    honest = [
        Observation(str(scale), network(scale), 1, total_ms(network(scale), start, threads=1))
        for scale in (5, 10, 20, 40, 80)
    ]
    wild = Observation("wild", network(15), 1, 4.0 * total_ms(network(15), start, threads=1))
    found = fitted(start, [*honest, wild])
    for one in honest:
        assert total_ms(one.work, found, threads=1) == pytest.approx(one.latency_ms, rel=0.1)


def test_toml_gives_the_same_profile_back(tmp_path: Path) -> None:
    for name in profile_names():
        profile = find_profile(name)
        path = tmp_path / f"{name}.toml"
        path.write_text(to_toml(profile), encoding="utf-8")
        assert find_profile(str(path)) == profile
        path = tmp_path / f"{name}.json"
        path.write_text(profile.model_dump_json(), encoding="utf-8")
        assert find_profile(str(path)) == profile


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40), number=st.floats(1e-9, 1e9))
def test_toml_holds_any_text_and_number(tmp_path_factory, text: str, number: float) -> None:
    memory = small_profile().memory.model_copy(update={"gb_per_s": number, "source": text})
    profile = small_profile(title=text, memory=memory.model_dump(), notes=[text, "second"])
    path = tmp_path_factory.mktemp("profile") / "one.toml"
    path.write_text(to_toml(profile), encoding="utf-8", newline="\n")
    assert find_profile(str(path)) == profile


def test_unknown_names_and_files() -> None:
    with pytest.raises(UsageError, match=r"no device profile 'pixel44'. Did you mean 'pixel4'\?"):
        find_profile("pixel44")
    with pytest.raises(UsageError, match=r"nowhere.toml: the device profile cannot be read"):
        find_profile("nowhere.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "not a device profile: Invalid value"),
        ('name = "x"', "not a device profile: title: Field required"),
        ("\udcff", "not a device profile"),
        ("a = 1\n" + "[" * 3000, "not a device profile"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=says):
        find_profile(str(path))


def test_wrong_values_are_named(tmp_path: Path) -> None:
    values = json.loads(small_profile().model_dump_json())
    values["rates"]["utilisation"] = {"int8": {"conv": 0.5}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match=r"rates.utilisation must have float32"):
        find_profile(str(path))
    values["rates"]["utilisation"] = {"float32": {"conv": -1.0}}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match=r"utilisation of conv must be in \(0, 4\], got -1.0"):
        find_profile(str(path))
    values["rates"]["utilisation"] = {"float32": {"conv": 0.5}}
    values["cores"][0]["macs_per_cycle"] = {"int8": 8.0}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match="cores 'c': macs_per_cycle must have float32"):
        find_profile(str(path))
