"""A phone over adb, through the stand-in of `fake_adb`: no phone has run this yet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from adb_desk import FEEDS, QUICK, SESSION, Desk, net
from fake_adb import set_thermal

from edgekd.devices._adb_link import safe
from edgekd.devices._adb_perftest import command, placements, seconds_of
from edgekd.devices._adb_state import phone_of, reading_of
from edgekd.devices._adb_turns import Turns, steady_after
from edgekd.devices._place import EndToEnd, Reading, SessionSettings, Timing
from edgekd.errors import BackendMissing, MismatchError, UsageError


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_about_is_what_the_phone_says(desk: Desk) -> None:
    with desk.open() as place:
        about = place.about()
    assert (about.machine, about.system) == (__import__("platform").machine(), "Android 15, arm64-v8a")
    assert about.details["model"] == "Phone 1"
    assert about.details["soc"] is None
    assert about.details["max_clocks_mhz"] == [1800.0] * 4 + [2400.0] * 2 + [3000.0] * 2
    assert about.details["governor"] == "schedutil"
    assert about.free_bytes is not None
    assert about.free_bytes > 0
    assert about.runtime_version == "not told"


def test_version_is_read_from_the_library(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "libs"
    folder.mkdir()
    (folder / "libonnxruntime.so").write_bytes(b"....\0VERS_1.23.2\0....")
    with desk.open(libraries=str(folder)) as place:
        assert place.about().runtime_version == "1.23.2"


def test_answers_are_those_of_onnxruntime(desk: Desk, tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx")
    feeds = [FEEDS, {"x": np.full((1, 3), -0.25, np.float32)}]
    with desk.open() as place:
        place.put({"models/net.onnx": path})
        answers = place.run("models/net.onnx", feeds, SESSION)
    session = onnxruntime.InferenceSession(str(path))
    for answer, feed in zip(answers, feeds, strict=True):
        for name, array in zip(("y", "out/neg.0"), session.run(None, feed), strict=True):
            assert np.array_equal(answer[name], array)
    assert np.array_equal(answers[0]["y"], 2 * FEEDS["x"] + 1)


def test_models_take_turns_and_every_query_is_kept(desk: Desk, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with desk.open() as place:
        place.put({"a/net.onnx": net(tmp_path / "a.onnx"), "b/net.onnx": net(tmp_path / "b.onnx", weight=3.0)})
        found = place.measure(
            {"one": "a/net.onnx", "two": "b/net.onnx"},
            FEEDS,
            session=SESSION,
            timing=QUICK.model_copy(update={"queries": 3}),
            progress=lambda done, planned: told.append((done, planned)),
        )
    assert list(found.models) == ["one", "two"]
    for timed in found.models.values():
        assert len(timed.samples_ms) == len(timed.started_ms) == 3
        assert timed.started_ms == sorted(timed.started_ms)
        assert min(timed.samples_ms) > 0
        assert timed.warmup > 4
        assert timed.provider_used == "CPUExecutionProvider"
    assert min(timed.started_ms[0] for timed in found.models.values()) == 0.0
    assert told == [(1, 3), (2, 3), (3, 3)]  # turns, not one long run each
    assert found.readings[0].at_ms < 0 < found.readings[-1].at_ms
    assert found.readings[0].throttled == []
    # "ibat" is a current; what the hardware says now wins over what is cached
    assert found.readings[0].temperatures_c == {"CPU": 57.9, "SKIN": 34.351, "battery": 30.1}
    assert found.readings[0].clocks_mhz == [900.0] * 4 + [1200.0] * 2 + [1500.0] * 2


def test_throttling_is_told_in_words(desk: Desk) -> None:
    link = desk.device()._link()
    before = phone_of(link)
    set_thermal(desk.root, 3)
    (desk.root / "sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq").write_text("1200000\n")
    (desk.folder / "commands/settings").write_text("#!/bin/sh\necho 1\n")
    words = ["thermal status severe", "frequency capped on core 7", "battery saver"]
    assert reading_of(link, before, 0.0).throttled == words
    # a ceiling that was low when the connection opened is the phone's own setting, not throttling
    assert reading_of(link, phone_of(link), 0.0).throttled == [words[0], words[2]]


def test_a_phone_without_the_thermal_service_tells_nothing(desk: Desk) -> None:
    (desk.root / "thermal").unlink()
    link = desk.device()._link()
    now = reading_of(link, phone_of(link), 5.0)
    assert (now.throttled, now.temperatures_c, now.at_ms) == (None, {"battery": 30.1}, 5.0)


def test_program_is_pinned_to_the_fastest_cores_the_named_ones_or_the_user_s_mask(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        assert place._cores(SessionSettings(threads=4)) == [4, 5, 6, 7]
        assert place._cores(SessionSettings(cores=[0, 3])) == [0, 3]
        assert place._cores(SESSION) == []
        place.cold("net.onnx", FEEDS, session=SessionSettings(threads=2), repeats=1)
        place._taskset = "30"
        assert place._cores(SessionSettings(cores=[0])) == [4, 5]
        place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)
    assert (desk.root / "masks").read_text().split() == ["c0", "30"]


def test_cold_start_is_taken_apart(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        found = place.cold("net.onnx", FEEDS, session=SESSION, repeats=2)
    assert len(found) == 2
    for cold in found:
        assert cold.process_ms > 50  # a new Python imports onnxruntime
        assert 0 < cold.load_ms < cold.process_ms
        assert cold.peak_bytes == 91336704


def test_placement_is_the_runtime_s_own(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        found = place.placement("net.onnx", FEEDS, session=SESSION, runs=3)
    assert [node.op for node in found] == ["Mul", "Add", "Neg"]
    assert {node.provider for node in found} == {"CPUExecutionProvider"}
    assert found[0].input_types[0] == "float32"
    assert all(node.mean_us >= 0 for node in found)


def test_folder_is_gone_afterwards_and_close_can_be_called_again(desk: Desk, tmp_path: Path) -> None:
    place = desk.open()
    place.put({"net.onnx": net(tmp_path / "net.onnx")})
    assert len(desk.there()) == 1
    place.close()
    place.close()
    assert desk.there() == []


def test_leftovers_of_a_killed_session_are_swept_after_a_day(desk: Desk) -> None:
    import os
    import time

    old, new = (desk.root / f"data/local/tmp/edgekd-{name}" for name in ("old", "new"))
    other = desk.root / "data/local/tmp/mine"
    for folder in (old, new, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (time.time() - 3 * 86400,) * 2)
    desk.open().close()
    assert desk.there() == ["edgekd-new", "mine"]


def test_every_remote_word_is_a_safe_one(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        with pytest.raises(MismatchError, match=r"'x;reboot.onnx' cannot be sent to a phone"):
            place.put({"x;reboot.onnx": net(tmp_path / "net.onnx")})
        with pytest.raises(MismatchError, match="is no relative name"):
            place.put({"../net.onnx": tmp_path / "net.onnx"})
        with pytest.raises(MismatchError, match="was not put there"):
            place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)
    assert not any("reboot" in " ".join(words) for words in desk.calls())


@pytest.mark.parametrize(
    "word", ["a b", "$(id)", "a;b", "`x`", "a&b", "a|b", "a>b", "../x", "/a/../b", "", "'", "*", "~", "-"]
)
def test_words_with_a_meaning_to_the_shell_are_refused(word: str) -> None:
    with pytest.raises(MismatchError, match="cannot be sent to a phone"):
        safe(word)


@pytest.mark.parametrize("word", ["model.onnx", "/data/local/tmp/edgekd-0a/d.x/m.onnx", "-rf", "./runner", "f0", "a=b"])
def test_plain_words_are_safe(word: str) -> None:
    assert safe(word) == word


def test_provider_options_cannot_leave_their_quotes() -> None:
    session = SessionSettings(provider="XnnpackExecutionProvider", provider_options={"intra_op_num_threads": "4"})
    line = command("/r", "/m.onnx", session, repeats=3)
    assert line.split(" ", 1)[1] == (
        "-e xnnpack -m times -r 3 -x 1 -y 1 -C 'session.disable_cpu_ep_fallback|1' -i 'intra_op_num_threads|4' /m.onnx"
    )
    for bad in ("4'; reboot '", "a b", "x|y"):
        with pytest.raises(UsageError, match="cannot be sent"):
            command("/r", "/m", session.model_copy(update={"provider_options": {"k": bad}}), repeats=1)
    with pytest.raises(
        UsageError, match=r"provider must be one of CPUExecutionProvider, .* got 'CUDAExecutionProvider'"
    ):
        command("/r", "/m", SessionSettings(provider="CUDAExecutionProvider"), repeats=1)


def test_end_to_end_is_refused(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        timing = QUICK.model_copy(update={"end_to_end": EndToEnd(image="i.npy")})
        with pytest.raises(UsageError, match="image to labels cannot be timed on a phone"):
            place.measure({"m": "net.onnx"}, FEEDS, session=SESSION, timing=timing)


def test_fingerprint_is_json(desk: Desk) -> None:
    found = desk.device().fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["model"] == "Phone 1"


# ---- reading what the runner writes


def test_seconds_are_those_of_the_rows_up_to_the_statistics() -> None:
    text = "d,0.00720383,91336704,62,0\nd,0.5e-2,91336704,62,1\n\nMin Latency: 0.005 s\n"
    assert seconds_of(text) == [0.00720383, 0.005]


@pytest.mark.parametrize("text", ["d,0.1,1,62,1\n", "hello\n", "d,-1,1,62,0\n", "d,nan,1,62,0\n"])
def test_a_row_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BackendMissing, match="in place of run 0"):
        seconds_of(text)


def test_a_damaged_profile_is_refused() -> None:
    with pytest.raises(BackendMissing, match="profile cannot be read"):
        placements('[{"cat": "Node", "name": "a_kernel_time", "dur": 3}]')


def test_first_run_is_left_out_of_a_node_s_mean() -> None:
    args = {"op_name": "Conv", "provider": "CPU", "input_type_shape": [{"uint8": [1]}, {"float": [1]}]}
    events = [{"cat": "Node", "name": "c_kernel_time", "dur": dur, "args": args} for dur in (100, 10, 20)]
    (node,) = placements(json.dumps([*events, {"cat": "Session", "name": "model_run"}]))
    assert (node.node, node.op, node.mean_us, node.input_types) == ("c", "Conv", 15.0, ["uint8", "float32"])


# ---- turns, with a clock of their own


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def program(self, ms: float, load_s: float = 0.5) -> object:
        def start(count: int) -> list[float]:
            self.now += load_s + count * ms / 1000.0
            return [ms] * count

        return start


def turns(clock: Clock, timing: Timing, **ms: float) -> Turns:
    programs = {name: clock.program(each) for name, each in ms.items()}
    return Turns(programs, lambda: Reading(at_ms=0.0), timing, provider="P", clock_s=lambda: clock.now)  # type: ignore[arg-type]


def test_starts_are_counted_back_from_the_end_of_each_turn() -> None:
    timing = Timing(queries=4, max_seconds=100.0, warmup_min=2, window=1, warmup_max_seconds=1.0)
    found = turns(Clock(), timing, a=100.0).measured(cores=[], progress=None).models["a"]
    # four turns of one query; each is a program of 0.5 s, two warm-up queries and the timed one: 0.8 s
    assert found.started_ms == pytest.approx([0.0, 800.0, 1600.0, 2400.0])
    assert found.samples_ms == [100.0] * 4
    assert (found.warmup, found.steady) == (2 + 4 * 2, True)


def test_timing_ends_with_the_time_and_keeps_one_query_of_each() -> None:
    timing = Timing(queries=1000, max_seconds=0.1, warmup_min=2, window=1, warmup_max_seconds=1.0)
    found = turns(Clock(), timing, a=100.0, b=300.0).measured(cores=[1], progress=None)
    assert [len(timed.samples_ms) for timed in found.models.values()] == [1, 1]
    assert found.cores == [1]


def test_readings_are_made_between_turns_when_asked_for() -> None:
    timing = Timing(queries=8, max_seconds=100.0, warmup_min=2, window=1, warmup_max_seconds=1.0, readings_seconds=1.5)
    found = turns(Clock(), timing, a=100.0).measured(cores=[], progress=None)
    # 0.8 s a turn: one after every second turn, the first and the last
    assert len(found.readings) == 1 + 4 + 1
    assert [reading.at_ms for reading in found.readings] == sorted(reading.at_ms for reading in found.readings)


def test_warm_up_is_as_long_as_the_latency_falls() -> None:
    timing = Timing(warmup_min=2, window=2, steady=0.02)
    assert steady_after([9.0, 8.0, 7.0, 6.0, 5.0, 5.0, 5.0, 5.0], timing) == 8
    assert steady_after([5.0] * 8, timing) == 4
    assert steady_after([9.0, 8.0, 7.0, 6.0], timing) is None
