"""The sockets between processes of one host: what arrives, and what is said when nothing does."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from edgekd import _group, _messages
from edgekd.errors import BackendMissing

if os.name == "nt":
    pytest.skip("Python has no Unix sockets there", allow_module_level=True)


@pytest.fixture
def ends() -> Iterator[list[dict[int, socket.socket]]]:
    """For each of three processes, its sockets to the others."""
    made: list[dict[int, socket.socket]] = [{}, {}, {}]
    for low, high in ((0, 1), (0, 2), (1, 2)):
        made[low][high], made[high][low] = socket.socketpair()
    yield made
    for one in made:
        for end in one.values():
            end.close()


@pytest.fixture
def lines(ends: list[dict[int, socket.socket]], monkeypatch: pytest.MonkeyPatch) -> list[_messages._Line]:
    """Three processes in one: each asks for its number when its line is made."""
    monkeypatch.setattr(_group, "count", lambda: 3)
    made = []
    for rank, others in enumerate(ends):
        monkeypatch.setattr(_group, "index", lambda rank=rank: rank)
        made.append(_messages._Line(others, patience_s=0.01))
    return made


@pytest.mark.parametrize("size", [1, _messages._CHUNK_BYTES // 4, _messages._LARGEST_BYTES // 4])
def test_everybody_gets_everything_in_order(lines: list[_messages._Line], size: int) -> None:
    sent = [torch.randn(size) for _ in lines]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda pair: pair[0].exchange(pair[1]), zip(lines, sent, strict=True)))
    for one in found:
        assert torch.equal(one, torch.stack(sent))


def test_one_that_is_late_is_waited_for(lines: list[_messages._Line]) -> None:
    with ThreadPoolExecutor(2) as pool:
        early = [pool.submit(line.exchange, torch.tensor([float(rank)])) for rank, line in enumerate(lines[:2])]
        assert not any(one.done() for one in early)
        threading.Event().wait(0.1)  # longer than their patience
        assert lines[2].exchange(torch.tensor([2.0])).flatten().tolist() == [0.0, 1.0, 2.0]
        assert early[0].result().flatten().tolist() == [0.0, 1.0, 2.0]


def test_process_that_ended_is_told(lines: list[_messages._Line], ends: list[dict[int, socket.socket]]) -> None:
    for end in ends[1].values():
        end.close()
    with pytest.raises(BackendMissing, match=r"^Another process of this run ended .* the same command again\.$"):
        lines[0].exchange(torch.zeros(3))


def test_one_process_sends_nothing() -> None:
    values = torch.randn(4)
    assert _messages.summed(values) is values
    assert _messages.largest(values) is values
    assert torch.equal(_messages.stacked(values), values[None])
