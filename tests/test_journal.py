"""_journal: whole lines of JSON, whatever happened to the process or the disk before."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgekd._journal import Journal


def lines(path: Path) -> list[dict[str, object]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_line_is_the_time_and_the_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "metrics.jsonl")
    assert not (tmp_path / "run").exists()
    before = datetime.datetime.now(datetime.UTC)
    journal.write({"event": "step", "loss": 1 / 3, "step": 123456789, "terms": {"kd": 2.0}, "list": [1, "é\n"]})
    [line] = lines(tmp_path / "run" / "metrics.jsonl")
    utc = datetime.datetime.fromisoformat(str(line.pop("utc")))
    assert before - datetime.timedelta(seconds=1) <= utc <= datetime.datetime.now(datetime.UTC)
    assert line == {"event": "step", "loss": 0.3333333, "step": 123456789, "terms": {"kd": 2.0}, "list": [1, "é\n"]}


def test_what_json_does_not_have_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    journal.write({"loss": float("nan"), "terms": {"a": float("inf"), "b": [-float("inf"), 1.0]}, "val": None})
    [line] = lines(tmp_path / "m")
    assert (line["loss"], line["terms"], line["val"]) == (None, {"a": None, "b": [None, 1.0]}, None)


def test_lines_are_there_before_the_file_is_closed_and_go_on_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    journal.write({"n": 1})
    assert len(lines(tmp_path / "m")) == 1
    journal.close()
    journal.close()
    journal.write({"n": 2})
    Journal(tmp_path / "m").write({"n": 3})
    assert [line["n"] for line in lines(tmp_path / "m")] == [1, 2, 3]


@pytest.mark.parametrize("half", ['{"event": "st', "x" * 200_000])
@pytest.mark.parametrize("whole", ["", '{"n": 1}\n'])
def test_half_a_line_is_cut_off(tmp_path: Path, whole: str, half: str) -> None:
    (tmp_path / "m").write_text(whole + half, encoding="utf-8")
    Journal(tmp_path / "m").write({"n": 2})
    assert [line["n"] for line in lines(tmp_path / "m")] == ([1, 2] if whole else [2])


def test_killed_process_loses_no_line(tmp_path: Path) -> None:
    script = """
        import sys
        from edgekd._journal import Journal
        from pathlib import Path
        journal = Journal(Path(sys.argv[1]))
        number = 0
        while True:
            journal.write({"n": number, "more": "x" * 5000})
            number += 1
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "m")])
    try:
        for _ in range(600):
            if (tmp_path / "m").exists() and (tmp_path / "m").stat().st_size > 500_000:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    Journal(tmp_path / "m").write({"n": "last"})
    *found, last = [line["n"] for line in lines(tmp_path / "m")]
    assert found == list(range(len(found)))
    assert len(found) >= 90
    assert last == "last"


def test_full_disk_is_told_and_leaves_whole_lines(small_disk: Path) -> None:
    path = small_disk / "m"
    journal = Journal(path)

    def fill() -> None:
        for number in range(1000):
            journal.write({"n": number, "more": "x" * 3000})

    with pytest.raises(OSError, match="No space left on device"):
        fill()
    written = len(lines(path))
    assert written > 50
    os.truncate(path, 0)
    journal.write({"n": "again"})
    assert [line["n"] for line in lines(path)] == ["again"]
    journal.close()
