"""Every script of the engine's benchmarks in its smallest setting, and the arithmetic behind what they report."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "engine"
PEER = os.environ.get("EDGEKD_TORCHDISTILL_PYTHON")
"""An interpreter with torchdistill and torchvision, where one is at hand; it is never installed for a test."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads a script by its place: other folders have scripts of the same name."""
    for folder in (FOLDER.parent / "quantization", FOLDER.parent, FOLDER / "peers", FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    threads = torch.get_num_threads()

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"engine_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)


def record_of(module: ModuleType, out: Path, *arguments: str) -> dict[str, Any]:
    """Runs a script's main and reads what it wrote, after checking what every record must have."""
    assert module.main([*arguments, "--quick", "--out", str(out)]) == out
    text = out.read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    assert record["schema_version"] == 1
    assert record["benchmark"] == module.NAME
    assert record["command"].startswith(f"python benchmarks/{module.NAME}.py")
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 0
    assert record["n"] >= 1 if "n" in record else all(row["n"] >= 1 for row in record["rows"].values())
    assert not {"hostname", "kernel"} & set(record["machine"])
    for private in (platform.node(), str(out.parent), str(Path.home())):
        assert len(private) < 4 or private not in text
    return record


# throughput


@pytest.mark.slow
def test_throughput_of_two_ways_has_their_ratio(script: Any, tmp_path: Path) -> None:
    record = record_of(script("throughput"), tmp_path / "out.json", "--ways", "online", "by_hand")
    assert list(record["ratios"]) == list(record["goals"]) == ["online_over_by_hand"]
    assert record["ratios"]["online_over_by_hand"]["ratio"] == record["goals"]["online_over_by_hand"]["measured"]
    assert record["bytes_per_view"] is None
    assert record["loss_of_the_last_round"]["by_hand"] == pytest.approx(
        record["loss_of_the_last_round"]["online"], rel=1e-2
    )


@pytest.mark.slow
def test_throughput_has_every_goal_and_the_same_training_in_every_way(script: Any, tmp_path: Path) -> None:
    module = script("throughput")
    ways = [way for way in module.WAYS if way != "torchdistill"]
    record = record_of(module, tmp_path / "out.json", "--ways", *ways)
    assert sorted(record["ways"]) == sorted(ways)
    assert record["forward_flops"]["teacher_over_student"] >= 5
    assert record["bytes_per_view"] == 4 * 10 + 4 + 4  # float32 logits, sample, seed of the view
    expected = 0.9 * (1 + record["forward_flops"]["teacher_over_student"] / 3)
    bounds = {name: goal.get("at_least", goal.get("at_most")) for name, goal in record["goals"].items()}
    assert bounds == {
        "cached_over_alone": 0.95,
        "online_over_by_hand": 0.98,
        "online_over_by_hand_channels_last": 0.98,
        "cached_over_by_hand": pytest.approx(expected, rel=1e-4),
        "share_of_reading": 0.05,
    }
    for way in ("alone", "online", "cached"):
        assert sum(record["ways"][way]["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    losses = record["loss_of_the_last_round"]
    assert losses["cached"] == losses["online"]
    for way in ("by_hand", "by_hand_channels_last"):
        assert losses[way] == pytest.approx(losses["online"], rel=1e-2), "the same work"


@pytest.mark.slow
@pytest.mark.skipif(PEER is None, reason="EDGEKD_TORCHDISTILL_PYTHON names no interpreter with torchdistill")
def test_throughput_of_torchdistill_is_of_the_same_work(script: Any, tmp_path: Path) -> None:
    ways = ("--ways", "online", "torchdistill", "--python", str(PEER))
    record = record_of(script("throughput"), tmp_path / "out.json", *ways)
    assert "--python" not in record["command"]
    assert set(record["peer_versions"]) == {"torchdistill", "torch", "torchvision"}
    losses = record["loss_of_the_last_round"]
    assert losses["torchdistill"] == pytest.approx(losses["online"], rel=0.2)  # its crops are others


def test_throughput_refuses_a_teacher_that_needs_no_cache(script: Any, tmp_path: Path) -> None:
    module = script("throughput")
    with pytest.raises(SystemExit, match="5 times the student's operations"):
        module.main(["--teacher", "14", "--student", "8", "--out", str(tmp_path / "out.json")])


def test_ratio_of_throughput_is_that_of_times_by_image(script: Any) -> None:
    ratios = script("_ratios")
    rounds = {
        "fast": [{"images": 10, "seconds": 1.0, "cpu_seconds": 0.5}] * 3,
        "slow": [{"images": 20, "seconds": 4.0, "cpu_seconds": 1.0}] * 3,
    }
    told = ratios.times(rounds, "fast", "slow", seed=0)
    assert (told["ratio"], told["ratio_cpu"], told["n"]) == (pytest.approx(2.0), pytest.approx(1.0), 3)
    assert ratios.speeds(rounds)["slow"]["images_per_s"] == 5.0
    assert ratios.at_least(0.95, 0.95)["met"] is True
    assert ratios.at_least(0.949, 0.95)["met"] is False
    assert ratios.at_most(1.301, 1.3)["met"] is False


def test_places_on_this_machine_are_left_out_of_the_command(script: Any) -> None:
    assert script("_ratios").public(["--python", "/x", "--rounds", "3", "--environments=/y"]) == ["--rounds", "3"]


# the networks


def test_operations_of_the_residual_network_are_those_counted_by_hand(script: Any) -> None:
    pair = script("_cifar_pair")
    # depth 8: three stages of one block; 3x3 convolutions and projections, then the classifier
    stem, first = 32 * 32 * 16 * 27, 2 * 32 * 32 * 16 * 144
    second = 16 * 16 * 32 * (144 + 288) + 16 * 16 * 32 * 16
    third = 8 * 8 * 64 * (288 + 576) + 8 * 8 * 64 * 32
    assert pair.forward_flops(pair.resnet(8, 10, seed=0).eval()) == 2 * (stem + first + second + third + 64 * 10)


def test_networks_and_images_are_those_of_their_seed(script: Any) -> None:
    pair = script("_cifar_pair")
    one, same, other = (pair.resnet(8, 10, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.0.weight"], other["0.0.weight"])
    assert torch.equal(pair.pixels(2, seed=1), pair.pixels(2, seed=1))
    with pytest.raises(ValueError, match="6 n \\+ 2"):
        pair.resnet(10, 10, seed=0)


def test_work_survives_the_way_to_another_process(script: Any) -> None:
    work = script("_cifar_pair").Work
    assert work.of(work(batch=3, seed=7).text()) == work(batch=3, seed=7)


# processes that take turns


def test_workers_take_turns_and_every_one_begins_in_turn(script: Any, tmp_path: Path) -> None:
    turns = script("_turns")
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from _turns import Stopped, Turns; turns = Turns()\n"
        "print('noise'); turns.say(name=sys.argv[1]); count = 0\n"
        "try:\n"
        "    while True:\n"
        "        turns.wait(); count += 1; turns.answer(count=count, name=sys.argv[1])\n"
        "except Stopped:\n"
        "    pass\n"
    )
    order: list[str] = []

    class Noted(turns.Worker):  # type: ignore[name-defined, misc]
        def round(self) -> dict[str, Any]:
            answer: dict[str, Any] = super().round()
            order.append(answer["name"])
            return answer

    command = [sys.executable, "-c", code]
    with Noted([*command, "a"], tmp_path / "a") as a, Noted([*command, "b"], tmp_path / "b") as b:
        assert (a.ready(), b.ready()) == ({"name": "a"}, {"name": "b"})
        found = turns.interleaved({"a": a, "b": b}, rounds=2, warmup=1)
    assert "".join(order) == "abbaab"
    assert [one["count"] for one in found["a"]] == [2, 3]
    assert all(one["cpu_seconds"] >= 0 for one in found["b"])
    assert (tmp_path / "a").read_text() == "noise\n"


def test_workers_of_one_side_make_their_rounds_at_the_same_time(script: Any, tmp_path: Path) -> None:
    turns = script("_turns")
    code = (  # each waits for the other's file
        f"import os, sys, time; sys.path.insert(0, {str(FOLDER)!r}); from _turns import Turns; turns = Turns()\n"
        "turns.say(); turns.wait(); mine, other = sys.argv[1:]; open(mine, 'w').close()\n"
        "while not os.path.exists(other): time.sleep(0.01)\n"
        "turns.answer(way=os.environ['WAY'])\n"
    )
    marks = [str(tmp_path / name) for name in "ab"]
    commands = [[sys.executable, "-c", code, *marks], [sys.executable, "-c", code, *reversed(marks)]]
    with (
        turns.Worker(commands[0], tmp_path / "one", environment={"WAY": "left"}) as one,
        turns.Worker(commands[1], tmp_path / "two", environment={"WAY": "right"}) as two,
    ):
        side = turns.Together([one, two])
        assert side.ready() == {"members": [{}, {}]}
        assert [member["way"] for member in side.round()["members"]] == ["left", "right"]


def test_worker_that_fails_says_why(script: Any, tmp_path: Path) -> None:
    worker = script("_turns").Worker
    with (
        worker([sys.executable, "-c", "1 / 0"], tmp_path / "log") as failing,
        pytest.raises(RuntimeError, match=r"ended with 1: .*ZeroDivisionError"),
    ):
        failing.ready()


# cache, quantization


def test_cache_build_tells_the_bytes_of_every_form(script: Any, tmp_path: Path) -> None:
    record = record_of(script("cache_build"), tmp_path / "out.json")
    names = 8  # bytes of a sample's number and its view's seed
    expected = {
        "dense_float32": 10 * 4 + names,
        "top10_of_1000_float16": 10 * (2 + 2) + 4 + names,  # value and class, and the mass of the rest
        "top100_of_1000_float16": 100 * (2 + 2) + 4 + names,
        "dense_and_tap_float16": 10 * 2 + 64 * 8 * 8 * 2 + names,
    }
    assert {name: row["bytes_per_view"] for name, row in record["rows"].items()} == expected
    for row in record["rows"].values():
        assert row["goal"]["at_least"] == 0.95
        assert row["goal"]["met"] == (row["build_over_bare"]["ratio"] >= 0.95)
        assert min(row["rows_per_s"].values()) > 0


@pytest.mark.slow
def test_qat_step_compares_every_phase_with_the_float_step(script: Any, tmp_path: Path) -> None:
    record = record_of(script("qat_step"), tmp_path / "out.json")
    assert set(record["over_float"]) == set(record["goals"]) == {"track", "learn", "frozen"}
    assert set(record["median_step_ms"]) == {"online", "cached", "track", "learn", "frozen"}
    assert min(record["median_step_ms"].values()) > 0
    assert {goal["at_most"] for goal in record["goals"].values()} == {1.3}


def test_qat_step_takes_the_teacher_off_both_sides(script: Any) -> None:
    rounds = {
        name: [{"seconds": value, "cpu_seconds": value}] for name, value in {"online": 5.0, "cached": 2.0}.items()
    }
    rounds["track"] = [{"seconds": 6.0, "cpu_seconds": 7.0}]
    told = script("qat_step").against(rounds, "track", 0)
    assert told["ratio"] == pytest.approx(6 / 5)
    assert told["without_teacher"] == pytest.approx((6 - 3) / 2)
    assert told["without_teacher_cpu"] == pytest.approx((7 - 3) / 2)


# kills


def event(kind: str, second: int, **more: Any) -> dict[str, Any]:
    return {"utc": f"2026-01-01T00:00:{second:02d}.000+00:00", "event": kind, "stage": "teacher", **more}


class History:
    """The one thing of a training's history that the loss is told by."""

    def __init__(self, resumed_step: int) -> None:
        self.resumed_step = resumed_step


START = event("stage", 0, state="started", folder="teacher-1")
STEPS = [event("step", 10 + step, step=step) for step in (1, 2, 3, 4)]
KILLED_AT = 1767225616.0  # two seconds after the fourth step


@pytest.mark.parametrize(
    ("events", "resumed", "expected"),
    [
        ([START, *STEPS], 3, (4, 3, 3.0)),
        ([START, *STEPS], 4, (4, 4, 2.0)),
        ([START, *STEPS], 0, (4, 0, 5.0)),  # from its first step on
        ([START], 0, (None, None, 0.0)),  # before its first step
        ([START], None, (None, None, 16.0)),  # a stage that does not train
        ([START, event("stage", 1, state="done", folder="teacher-1")], None, (None, None, 0.0)),
        ([], None, (None, None, 0.0)),
    ],
)
def test_time_lost_counts_from_the_state_that_training_went_on_with(
    script: Any, events: list[Mapping[str, Any]], resumed: int | None, expected: tuple[Any, ...]
) -> None:
    history = None if resumed is None else History(resumed)
    assert script("_killing").lost(events, history, KILLED_AT) == pytest.approx(expected)


def test_stages_belong_to_the_commands_that_make_them(script: Any) -> None:
    group_of = script("_killing").group_of
    stages = ("teacher", "student", "quality", "int8_ptq-x86", "int8-x86", "export-x86", "before", "between")
    groups = ["train", "distill", "distill", "quantize", "quantize", "export", "before", "between"]
    assert [group_of(stage) for stage in stages] == groups


def test_leftovers_of_a_crash_are_seen(script: Any, tmp_path: Path) -> None:
    killing = script("_killing")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".lock").touch()
    assert killing.leftovers(tmp_path) == []
    (tmp_path / ".checkpoints" / "teacher-1.pt").touch()
    (tmp_path / ".teacher-1.partial").mkdir()
    assert killing.leftovers(tmp_path) == [".teacher-1.partial", "teacher-1.pt"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a fork needs a POSIX system")
def test_killed_runs_end_as_the_undisturbed_one(script: Any, tmp_path: Path) -> None:
    record = record_of(script("kills"), tmp_path / "out.json")
    assert record["n"] == record["identical"] == record["whole"] == 2
    assert sum(record["by_stage"].values()) == 2
    assert record["goals"]["identical"]["met"]
    assert record["artifacts"] == 6
    for kill in record["kills"]:
        assert kill["identical"]
        assert kill["left"] == []
        assert (kill["step"] is None) == (kill["resumed_step"] is None)


# processes, starts, devices


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_processes_are_compared_with_one(script: Any, tmp_path: Path) -> None:
    record = record_of(script("processes"), tmp_path / "out.json")
    assert set(record["rows"]) == {"16"}
    row = record["rows"]["16"]
    assert set(row["over_one"]) == {"two", "two_own_statistics", "apart"}
    assert {goal["at_least"] for goal in row["goals"].values()} == {1.8}
    assert min(row["images_per_s"].values()) > 0


@pytest.mark.slow
def test_resumed_start_goes_on_in_the_middle(script: Any, tmp_path: Path) -> None:
    record = record_of(script("resumed_start"), tmp_path / "out.json")
    assert record["first_step_after_the_cut"] > 1
    assert record["median_cpu_seconds_to_first_step"] > 0
    assert record["goals"]["seconds_to_first_step"]["at_most"] == 5.0
    small, large = record["checkpoint"]["small"], record["checkpoint"]["large"]
    assert large["checkpoint_bytes"] > 10 * small["checkpoint_bytes"]
    for one in (small, large):
        assert 0 < one["handed_over_ms"]["median"] <= one["handed_over_ms"]["max"]


def test_checkpoints_are_timed_where_they_are_handed_over(script: Any, tmp_path: Path) -> None:
    module = script("resumed_start")
    options = module.parsed(["--steps", "4", "--interval", "0.0001"])
    told = module.holding((8, 16, 32), tmp_path / "small", options)
    assert told["n"] == 4  # after every step but the last, and at the epoch's end
    assert told["step_ms"]["with_a_checkpoint"] > 0
    assert module.engine._Run._save.__name__ == "_save", "the clock is taken off again"


def test_gpu_script_says_so_where_there_is_none(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script("gpu").main(["--out", str(tmp_path / "out.json")]) is None
    assert capsys.readouterr().out == "Nothing was measured: torch finds no CUDA device here.\n"
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_gpu_script_counts_what_each_way_computes(script: Any, tmp_path: Path) -> None:
    name = "wrn_40_2_wrn_16_2_32"
    ways = ("--ways", "float32_online", "bfloat16_online", "float32_cached")
    chosen = ("--pairs", name, *ways, "--device", "cpu", "--threads", "1")
    record = record_of(script("gpu"), tmp_path / "out.json", *chosen)
    row = record["rows"][name]
    online, cached = row["ways"]["float32_online"], row["ways"]["float32_cached"]
    flops = row["forward_flops"]
    for way, operations in ((online, 3 * flops["student"] + flops["teacher"]), (cached, 3 * flops["student"])):
        assert way["tflops"] == pytest.approx(way["images_per_s"] * operations / 1e12, rel=1e-3)
        assert way["share_of_peak"] is None  # of no known device
    assert set(row["ratios"]) == {"bfloat16_online_over_float32_online", "float32_cached_over_float32_online"}


def test_peaks_are_of_the_device_s_name(script: Any) -> None:
    peak_of = script("gpu").peak_of
    assert peak_of("NVIDIA H100 80GB HBM3")["bfloat16"] == 989.0
    assert peak_of("unknown") is None
