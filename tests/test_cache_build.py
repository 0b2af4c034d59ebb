"""Filling a cache: broken off and gone on with, by several builders at once, and with answers that cannot be kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cache_cases import (
    ALL,
    BATCH,
    CLASSES,
    PLAIN,
    SAMPLES,
    TAP,
    asked,
    batches,
    built,
    fingerprint,
    online,
    opened,
    teacher,
)
from torch import Tensor, nn

from edgekd import cache
from edgekd.batches import Share
from edgekd.errors import StorageError, UsageError
from edgekd.recipe import ComputeSettings

EPOCHS = range(4)
# A process that has imported everything: each builder is a cheap fork of it, slow enough to be met at work.
NURSERY = """
import json, os, sys, time
from cache_cases import batches, fingerprint, teacher
from edgekd import cache

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    children = []
    for number in range(order["count"]):
        child = os.fork()
        if child == 0:
            network, of = teacher(), batches()
            network.register_forward_hook(lambda *_: time.sleep(order["seconds"]))
            asked = fingerprint(of)
            done = cache.build(order["folder"], network, of, fingerprint=asked, epochs=range(4), shard_bytes=1200)
            with open(f"{order['folder']}-{number}.json", "w") as file:
                file.write(done.model_dump_json())
            os._exit(0)
        children.append(child)
    print(json.dumps(children), flush=True)
    for child in children:
        os.waitpid(child, 0)
    print("ended", flush=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but locks."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if _is_content(path)}


def _is_content(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(".lock")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed build writes."""
    folder = tmp_path_factory.mktemp("whole")
    built(folder, batches(), epochs=EPOCHS)
    return contents(folder)


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert told(process) == "ready"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def builders(nursery: subprocess.Popen[str], folder: Path, *, count: int, seconds: float) -> list[int]:
    """Start builders at the same moment; their process ids."""
    assert nursery.stdin is not None
    nursery.stdin.write(json.dumps({"folder": str(folder), "count": count, "seconds": seconds}) + "\n")
    nursery.stdin.flush()
    children: list[int] = json.loads(told(nursery))
    return children


def test_what_is_there_is_not_asked_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert built(tmp_path, batches(), epochs=[1]).rows == SAMPLES
    assert built(tmp_path, batches(), epochs=EPOCHS).rows == 3 * SAMPLES
    assert built(tmp_path, batches(), epochs=EPOCHS).rows == 0
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2], [0, 1, 2]])
def test_only_missing_shards_are_built(tmp_path: Path, whole: dict[str, bytes], lost: list[int]) -> None:
    built(tmp_path, batches(), epochs=EPOCHS)
    (tmp_path / "epoch-0002/shards.json").unlink()
    rows = 0
    for shard in lost:
        path = tmp_path / f"epoch-0002/shard-{shard:05}.safetensors"
        # gone, or not all of it there
        path.unlink() if shard != 1 else path.write_bytes(path.read_bytes()[:-1])
        rows += 32 if shard < 2 else SAMPLES - 64
    assert built(tmp_path, batches(), epochs=EPOCHS).rows == rows
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]" + b"\0" * 90], ids=["empty", "short", "noise", "a list"]
)
def test_a_file_that_is_no_shard_is_built_again(tmp_path: Path, whole: dict[str, bytes], junk: bytes) -> None:
    built(tmp_path, batches(), epochs=EPOCHS)
    (tmp_path / "epoch-0000/shards.json").unlink()
    (tmp_path / "epoch-0000/shard-00001.safetensors").write_bytes(junk)
    assert built(tmp_path, batches(), epochs=EPOCHS).rows == 32
    assert contents(tmp_path) == whole


def test_a_build_that_was_killed_goes_on(
    tmp_path: Path, whole: dict[str, bytes], nursery: subprocess.Popen[str]
) -> None:
    [child] = builders(nursery, tmp_path, count=1, seconds=0.05)
    deadline = time.monotonic() + 60
    while not (tmp_path / "epoch-0001/shard-00000.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert told(nursery) == "ended"
    assert set(contents(tmp_path)) < set(whole)
    # what the killed one may have left half written
    (tmp_path / "epoch-0001/.shard-00001.safetensors.0123abcd").write_bytes(b"half")
    there = len(list(tmp_path.glob("epoch-0001/shard-*.safetensors")))
    assert there < 3
    assert built(tmp_path, batches(), epochs=EPOCHS).rows == 3 * SAMPLES - 32 * there
    assert contents(tmp_path) == whole


def test_two_builders_share_the_epochs(tmp_path: Path, whole: dict[str, bytes], nursery: subprocess.Popen[str]) -> None:
    folder = tmp_path / "cache"
    builders(nursery, folder, count=2, seconds=0.02)
    assert told(nursery) == "ended"
    found = [json.loads((tmp_path / f"cache-{number}.json").read_text()) for number in range(2)]
    assert [one["epochs"] for one in found] == [4, 4]
    assert sum(one["rows"] for one in found) == 4 * SAMPLES  # nothing was done twice
    assert min(one["rows"] for one in found) >= SAMPLES
    assert contents(folder) == whole


def test_shards_continue_with_another_batch_size(tmp_path: Path) -> None:
    built(tmp_path, batches(PLAIN), epochs=[0])
    for shard in (0, 1):
        (tmp_path / f"epoch-0000/shard-{shard:05}.safetensors").unlink()
    (tmp_path / "epoch-0000/shards.json").unlink()
    given, network = batches(PLAIN, batch_size=25), online()
    assert built(tmp_path, given, epochs=[0]).rows == 64
    found = opened(tmp_path, given)
    for raw in given.epoch(0):
        wanted = asked(network, raw.inputs, raw.ids, 0).logits
        assert torch.allclose(asked(found, raw.inputs, raw.ids, 0).logits, wanted, atol=1e-6)


def test_parts_together_are_the_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for first in (0, 1):
        built(tmp_path, batches(), epochs=EPOCHS[first::2])
    assert contents(tmp_path) == whole


def test_progress_counts_what_is_there_too(tmp_path: Path) -> None:
    given, seen = batches(), []
    built(tmp_path, given, epochs=[0])
    cache.build(
        str(tmp_path),
        teacher(),
        given,
        fingerprint=fingerprint(given),
        epochs=[0, 1],
        share=Share(1, 2),  # in a folder the lock divides the work, and every process ends with all of it
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (SAMPLES, 2 * SAMPLES)
    assert seen[-1] == (2 * SAMPLES, 2 * SAMPLES)
    assert seen == sorted(seen)


class Large(nn.Module):
    """Gives one logit that is too large for half precision, or none at all."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        logits = torch.zeros(len(inputs), CLASSES)
        logits[:, 2] = self.value
        return logits


def _build_large(folder: Path, value: float, dtype: str) -> cache.Built:
    given = batches()
    asked_for = cache.fingerprint_of(given, teacher="t", data="d", dtype=dtype)  # type: ignore[arg-type]
    return cache.build(str(folder), Large(value), given, fingerprint=asked_for, epochs=[0])


def test_a_logit_that_does_not_fit_the_dtype_is_refused(tmp_path: Path) -> None:
    text = r"The teacher's logits for sample \d+ is not finite as float16\. Set distill\.cache\.dtype = 'bfloat16'"
    with pytest.raises(UsageError, match=text):
        _build_large(tmp_path, 70000.0, "float16")
    assert not list(tmp_path.glob("epoch-*/*"))
    assert _build_large(tmp_path / "wider", 70000.0, "bfloat16").rows == SAMPLES
    with pytest.raises(UsageError, match=r"not finite as float32\. .* the teacher's weights are broken"):
        _build_large(tmp_path / "broken", float("nan"), "float32")


def test_an_output_of_another_shape_is_refused(tmp_path: Path) -> None:
    given = batches()
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES + 1))
    with pytest.raises(UsageError, match=rf"output of shape \({BATCH}, 7\), but logits must be \(B, 6\)"):
        cache.build(str(tmp_path), network, given, fingerprint=fingerprint(given), epochs=[0])


def test_an_unknown_tap_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no module '11' to tap"):
        built(tmp_path, batches(), taps=["11"])
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_what_autocast_says(tmp_path: Path) -> None:
    given, network = batches(), online()
    asked_for = fingerprint(given, precision="bfloat16", taps=[TAP])
    compute = ComputeSettings(precision="bfloat16")
    cache.build(str(tmp_path), teacher(), given, fingerprint=asked_for, epochs=[0], compute=compute)
    found = opened(tmp_path, given, precision="bfloat16", taps=[TAP])
    raw = next(given.epoch(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = asked(network, raw.inputs, raw.ids, 0).logits
    assert wanted.dtype == torch.bfloat16
    assert torch.equal(asked(found, raw.inputs, raw.ids, 0).logits, wanted.float())


def test_a_full_disk_keeps_what_is_complete(small_disk: Path) -> None:
    given = batches(ALL)
    where = small_disk / "cache"
    with pytest.raises(StorageError, match="the disk is full"):
        built(where, given, epochs=range(60))
    complete = sorted(where.glob("epoch-*/shards.json"))
    assert len(complete) >= 2
    assert not list(where.glob("epoch-*/.shard*"))
    found = opened(where, given)
    raw = next(given.epoch(0))
    assert torch.equal(asked(found, raw.inputs, raw.ids, 0).logits, asked(online(), raw.inputs, raw.ids, 0).logits)
