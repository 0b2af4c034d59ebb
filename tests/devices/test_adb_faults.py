"""Everything that can go wrong with a phone, on the stand-in: one clear sentence each, and nothing left there."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from adb_desk import FEEDS, QUICK, SESSION, Desk, net
from fake_adb import fault

from edgekd.errors import BackendMissing, MismatchError, ModelFileError, StorageError, UsageError


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("unauthorized", "does not trust this computer yet. Unlock it and allow USB debugging"),
        ("offline", "is offline or went away"),
        ("none", "no such phone is connected"),
        ("several", r"several phones are connected. Write adb:SERIAL"),
        ("permissions", "may not use the phone's USB port"),
    ],
)
def test_a_phone_that_cannot_be_used_says_why(desk: Desk, words: str, match: str) -> None:
    fault(desk.folder, words)
    with pytest.raises(BackendMissing, match=match):
        desk.open()


def test_an_unknown_serial_and_a_missing_adb_say_so(desk: Desk) -> None:
    with pytest.raises(BackendMissing, match=r"adb:OTHER: no such phone is connected. See 'adb devices'"):
        desk.device("OTHER").open()
    with pytest.raises(BackendMissing, match=r"there is no 'no-such-adb' here. Install the Android platform tools"):
        desk.open(adb="no-such-adb")
    with pytest.raises(UsageError, match="is no serial number"):
        desk.device("-H evil")


def test_a_phone_that_hangs_is_given_up(desk: Desk) -> None:
    fault(desk.folder, "hang")
    with pytest.raises(BackendMissing, match="did not answer for 1 s"):
        desk.open(timeout_seconds=1.0)


def test_a_phone_that_goes_away_in_the_middle_is_one_sentence_and_is_swept_later(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        fault(desk.folder, "gone")
        with pytest.raises(BackendMissing, match=r"is offline or went away. Connect it again; nothing was kept"):
            place.measure({"m": "net.onnx"}, FEEDS, session=SESSION, timing=QUICK)
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        fault(desk.folder, "offline")
    assert len(desk.there()) == 1  # close could not reach it, and said nothing


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ("full", StorageError, "net.onnx does not fit on the phone. Free some of its storage"),
        ("changed", StorageError, "net.onnx arrived changed"),
    ],
)
def test_files_that_do_not_arrive_whole_are_refused(
    desk: Desk, tmp_path: Path, words: str, error: type[Exception], match: str
) -> None:
    with desk.open() as place:
        fault(desk.folder, words)
        with pytest.raises(error, match=match):
            place.put({"net.onnx": net(tmp_path / "net.onnx")})
        fault(desk.folder, "")
    assert desk.there() == []


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("other processor", r"was built for another processor \(.*not executable: 64-bit ELF file\)"),
        ("no library", r'library "libonnxruntime.so" not found. Give the option libraries the folder'),
        ("crash", r"the runner crashed \(a bad address, exit code 139\)"),
        ("row missing", r"the runner made \d+ of \d+ runs"),
    ],
)
def test_a_runner_that_fails_says_why_and_leaves_nothing(desk: Desk, tmp_path: Path, words: str, match: str) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        fault(desk.folder, words)
        with pytest.raises(BackendMissing, match=match):
            place.measure({"m": "net.onnx"}, FEEDS, session=SESSION, timing=QUICK)
    assert desk.there() == []


def test_an_old_phone_with_carriage_returns_and_no_exit_codes_works(desk: Desk, tmp_path: Path) -> None:
    fault(desk.folder, "old")
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        found = place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)
        with pytest.raises(BackendMissing, match="ended with 1: "):
            place._link.shell("cat", f"{place._root}/missing")
    assert found[0].load_ms > 0


def test_a_model_that_the_runtime_refuses_is_named(desk: Desk, tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)
    with desk.open() as place:
        place.put({"net.onnx": path})
        with pytest.raises(
            ModelFileError, match=r"adb:R58N123: net.onnx: ONNX Runtime there .* refuses the model: .*opset"
        ):
            place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)


def test_an_input_that_does_not_fit_is_named(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        with pytest.raises(MismatchError, match=r"the input does not fit: .*invalid dimensions|Got invalid"):
            place.cold("net.onnx", {"x": np.zeros((1, 5), np.float32)}, session=SESSION, repeats=1)


def test_missing_programs_are_named_where_they_are_needed(desk: Desk, tmp_path: Path) -> None:
    with desk.open(runner="", verifier="") as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        with pytest.raises(BackendMissing, match="option runner is needed here: onnxruntime_perf_test"):
            place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)
        with pytest.raises(BackendMissing, match=r"option verifier is needed .*DEBUG_NODE_INPUTS_OUTPUTS=1"):
            place.run("net.onnx", [FEEDS], SESSION)
    with pytest.raises(BackendMissing, match="names '/no/such', which is no file"):
        desk.open(runner="/no/such")
    with pytest.raises(BackendMissing, match="names '/no/such', which is no folder"):
        desk.open(libraries="/no/such")


def test_a_verifier_without_dumps_is_told_apart(desk: Desk, tmp_path: Path) -> None:
    fault(desk.folder, "no dumps")
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        with pytest.raises(BackendMissing, match=r"the verifier wrote no tensor 'y'. Build it with"):
            place.run("net.onnx", [FEEDS], SESSION)


def test_a_program_of_another_processor_is_refused_before_it_is_pushed(desk: Desk, tmp_path: Path) -> None:
    program = tmp_path / "x86_perf_test"
    program.write_bytes(b"\x7fELF" + bytes(14) + struct.pack("<H", 62))
    with desk.open(runner=str(program)) as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        with pytest.raises(
            BackendMissing, match=r"was built for x86_64 and the phone is arm64-v8a. Build it with --android_abi"
        ):
            place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)


def test_a_phone_whose_date_has_no_nanoseconds_has_no_cold_start(desk: Desk, tmp_path: Path) -> None:
    with desk.open() as place:
        place.put({"net.onnx": net(tmp_path / "net.onnx")})
        fault(desk.folder, "no date")
        with pytest.raises(BackendMissing, match="tells no nanoseconds"):
            place.cold("net.onnx", FEEDS, session=SESSION, repeats=1)
