from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from edgekd import _checkpoint
from edgekd._checkpoint import Best, Writer, best_file, forget, read_best, read_checkpoint, snapshot
from edgekd._stop import stopping
from edgekd.errors import ArtifactError, StorageError


def written(path: Path, tag: str = "a") -> tuple[dict[str, object] | None, tuple[Best, dict[str, torch.Tensor]] | None]:
    return read_checkpoint(path, tag=tag), read_best(path, tag=tag)


def test_state_and_best_come_back_and_belong_to_their_tag(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.pt", "a")
    writer.put({"x": torch.ones(2), "n": [1, "two"]}, (Best(3, 0.1 + 0.2), {"w": torch.arange(3)}))
    writer.flush()
    writer.close()
    state, best = written(tmp_path / "run.pt")
    assert state is not None
    assert best is not None
    assert state["n"] == [1, "two"]
    assert best[0] == Best(3, 0.1 + 0.2)
    assert torch.equal(best[1]["w"], torch.arange(3))
    assert written(tmp_path / "run.pt", "b") == (None, None)
    forget(tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())
    forget(tmp_path / "run.pt")


def test_newest_of_several_waiting_states_is_written_and_no_best_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow: of what arrives meanwhile the last state counts, and the last best, before it."""
    free, order = threading.Event(), []
    plain = _checkpoint.write_whole

    def slow(path: Path, content: bytes) -> None:
        free.wait(10)
        order.append(path.name)
        plain(path, content)

    monkeypatch.setattr(_checkpoint, "write_whole", slow)
    writer = Writer(tmp_path / "run.pt", "a")
    writer.put({"step": 0})
    while writer._state is not None:
        pass  # the worker has begun with the first
    writer.put({"step": 1}, (Best(1, 0.5), {"w": torch.ones(1)}))
    writer.put({"step": 2})
    writer.put({"step": 3})
    free.set()
    writer.flush()
    writer.close()
    state, best = written(tmp_path / "run.pt")
    assert state == {"step": 3}
    assert best is not None
    assert best[0] == Best(1, 0.5)
    assert order == ["run.pt", "run.best.safetensors", "run.pt"]


def test_refused_write_is_told_at_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for ask in (lambda one: one.put({}), lambda one: one.flush()):
        writer = Writer(tmp_path / "file" / "run.pt", "a")
        writer.put({"step": 0})
        writer._pending[0].exception()
        with pytest.raises(StorageError, match="Cannot write"):
            ask(writer)
        writer.close()


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"nonsense"])
def test_damaged_best_is_named(tmp_path: Path, content: bytes) -> None:
    best_file(tmp_path / "run.pt").write_bytes(content)
    if content.endswith(b"{}      "):
        assert read_best(tmp_path / "run.pt", tag="a") is None  # whole, and of nobody
        return
    with pytest.raises(ArtifactError, match=r"run\.best\.safetensors is damaged\. Delete it"):
        read_best(tmp_path / "run.pt", tag="a")


def test_snapshot_does_not_move_with_what_it_was_taken_of() -> None:
    value = torch.zeros(2)
    taken = snapshot({"a": [value, (value, "text")]})
    value += 1
    assert taken["a"][0].tolist() == taken["a"][1][0].tolist() == [0.0, 0.0]
    assert taken["a"][1][1] == "text"


def test_signal_has_its_way_at_the_end_of_the_block() -> None:
    done = []

    def interrupted() -> None:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            done.append(stop.asked)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [True]
    with stopping() as stop:
        pass
    assert not stop.asked


def test_handler_of_before_hears_of_sigterm() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == []
            assert stop.number == signal.SIGTERM
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing_back() -> None:
    found = []

    def work() -> None:
        with stopping() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
