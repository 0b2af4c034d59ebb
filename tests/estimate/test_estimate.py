"""Estimates of files, on the command line too: never a measurement, with an interval only where there is a check."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edgekd._estimate_models import check_networks
from edgekd._estimate_profile import to_toml
from edgekd.cli.main import main
from edgekd.errors import UsageError
from edgekd.estimate import answer, count_operators, estimate, find_profile, profile_names
from edgekd.report import Report


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The probe's small networks as files."""
    folder = tmp_path_factory.mktemp("networks")
    found = {}
    for one in check_networks("uint8", 0):
        found[one.name] = folder / f"{one.name}.onnx"
        onnx.save(one.model, found[one.name])
    return found


def test_interval_is_as_wide_as_the_worst_held_out_error(files: dict[str, Path]) -> None:
    profile = find_profile("rpi4")
    found = estimate(files["residual_float32"], profile=profile)
    assert found.unchecked is None
    assert (found.lower_ms, found.upper_ms) == pytest.approx(
        (found.estimate_ms / profile.factor, found.estimate_ms * profile.factor)
    )
    assert (found.held_out, found.worst_error) == (6, profile.worst_error)
    assert sum(row.estimate_ms for row in found.by_kind) == pytest.approx(found.estimate_ms)
    assert sum(row.macs for row in found.by_kind) == found.macs


@pytest.mark.parametrize(
    ("name", "profile", "changes", "says"),
    [
        ("residual_int8", "galaxy_s24", {}, "no checked point"),
        ("residual_int8", "pixel3a", {}, "no checked point in int8, only in float32"),
        ("residual_float32", "pixel4", {"threads": 1}, "no checked point with 1 threads"),
    ],
)
def test_no_interval_where_nothing_was_checked(
    files: dict[str, Path], name: str, profile: str, changes: dict[str, int], says: str
) -> None:
    found = estimate(files[name], profile=find_profile(profile), budget_ms=1e9, **changes)
    assert (found.lower_ms, found.upper_ms, found.unchecked) == (None, None, says)
    assert found.fits == "cannot tell"


def test_far_from_what_was_checked_there_is_no_interval(tmp_path: Path) -> None:
    from edgekd._estimate_models import _tiny

    path = tmp_path / "tiny.onnx"
    onnx.save(_tiny("tiny", 3, 0).model, path)
    found = estimate(path, profile=find_profile("pixel4"))
    assert found.unchecked is not None
    assert found.unchecked.startswith("far outside the checked latencies, 5 to 324.1 ms")


def test_budget_is_answered_from_the_interval() -> None:
    assert answer(10.0, 5.0, 10.0) == "likely"
    assert answer(10.0, 10.0, 20.0) == "cannot tell"
    assert answer(10.0, 10.1, 20.0) == "unlikely"


def test_more_threads_and_int8_are_faster_and_batches_slower(files: dict[str, Path]) -> None:
    for name in ("pixel4", "rpi4", "rpi5", "rb3_gen2"):
        profile = find_profile(name)
        slow = estimate(files["residual_float32"], profile=profile, threads=1).estimate_ms
        assert estimate(files["residual_float32"], profile=profile, threads=4).estimate_ms < slow
        assert estimate(files["residual_int8"], profile=profile, threads=1).estimate_ms < slow


def test_arguments_out_of_range(files: dict[str, Path]) -> None:
    profile = find_profile("rpi4")
    with pytest.raises(UsageError, match="threads must be 1 to 4, the cores of 'rpi4', got 5"):
        estimate(files["mobile_int8"], profile=profile, threads=5)
    with pytest.raises(UsageError, match="batch must be at least 1 and the budget above 0 ms, got 1 and 0"):
        estimate(files["mobile_int8"], profile=profile, budget_ms=0.0)


def test_a_gpu_does_not_ask_for_threads(files: dict[str, Path]) -> None:
    profile = find_profile("jetson_orin_nano")
    assert estimate(files["mobile_int8"], profile=profile, threads=64).threads == 1


def test_every_profile_estimates_every_file(files: dict[str, Path]) -> None:
    for name in profile_names():
        for path in files.values():
            found = estimate(path, profile=find_profile(name))
            assert 0.0 < found.estimate_ms < 1000.0
            assert found.operators == len(count_operators(path).operators)


def test_an_estimate_is_no_report(files: dict[str, Path]) -> None:
    found = estimate(files["mobile_int8"], profile=find_profile("rpi4"))
    assert found.kind == "estimate"
    assert not set(type(found).model_fields) & {"latency", "p50_ms", "p90_ms", "verdict"}
    with pytest.raises(ValueError, match="validation error"):
        Report.model_validate(found.model_dump())


def test_command_line_says_estimate_everywhere(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", str(files["residual_int8"]), "--device-profile", "rpi4"]
    assert main([*command, "--budget-ms", "1000"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ESTIMATE: computed from a profile of the device, not measured on it.")
    assert "median 8%, worst 20%" in shown
    assert "a budget of 1000 ms: likely" in shown
    for number in (line for line in shown.splitlines() if " ms" in line and "latencies" not in line):
        assert "ESTIMATE" in number or number.startswith("kind") or "Note" in number, number


def test_a_budget_is_no_verdict(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", str(files["residual_int8"]), "--device-profile", "rpi4", "--json", "--budget-ms", "0.1"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["fits"]) == ("estimate", "unlikely")
    assert found["notice"].startswith("ESTIMATE")
    assert found["upper_ms"] > found["estimate_ms"] > found["lower_ms"] > 0.1


def test_profiles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--list", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert sorted(listed) == profile_names()
    assert listed["galaxy_s24"]["median_error"] is None
    assert main(["estimate", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in listed)
    assert "unchecked" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give a model and --device-profile NAME, or --list"),
        (["MODEL"], "Give a model and --device-profile NAME, or --list"),
        (["MODEL", "--device-profile", "pixel9000"], "There is no device profile 'pixel9000'"),
        (["MODEL", "--device-profile", "rpi4", "--size", "height"], "--size height: write NAME=N"),
        (["MODEL", "--device-profile", "rpi4", "--size", "height=0"], "--size height=0: write NAME=N"),
    ],
)
def test_wrong_usage(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    given = [str(files["mobile_int8"]) if one == "MODEL" else one for one in arguments]
    assert main(["estimate", *given]) == 2
    assert says in capsys.readouterr().err


def test_a_profile_of_ones_own(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = find_profile("rpi5").model_copy(update={"name": "mine"})
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(profile), encoding="utf-8")
    assert main(["estimate", str(files["mobile_int8"]), "--device-profile", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "mine"


def test_docs_show_the_numbers_of_the_profiles(repository: Path) -> None:
    text = (repository / "docs" / "estimate.md").read_text(encoding="utf-8")
    shown = 0
    for name in profile_names():
        profile = find_profile(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        if profile.median_error is None or profile.worst_error is None:
            assert row.endswith("| unchecked | unchecked | 0 |")
        else:
            assert row.endswith(
                f"| {profile.median_error:.0%} | {profile.worst_error:.0%} | {len(profile.checked)} |".replace(
                    "%", " %"
                )
            )
        for one in profile.checked:
            start = f"| {name} | {one.network} | {one.element_type} | {one.threads} | {one.latency_ms:g} |"
            assert f"{start} {one.held_out_ms:.3g} | {100 * one.error:+.0f} % |" in text
            assert f"- `{name}`: {one.source}" in text
            shown += 1
    assert shown >= 45
