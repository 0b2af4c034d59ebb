"""A cache at a URL: an S3 server on this machine, and the bounded copy through which shards are read."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cache_cases import SAMPLES, asked, batches, built, fingerprint, online, teacher
from moto.server import ThreadedMotoServer

from edgekd import cache
from edgekd._cache_copies import Copies, own_folder, removed
from edgekd.batches import Share
from edgekd.errors import ArtifactError, BackendMissing, MismatchError, StorageError, UsageError

EPOCHS = [0, 1, 2]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where local copies go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def held(folder: Path) -> int:
    """Bytes in files below a folder; some may go while it is looked at."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def test_a_cache_in_a_bucket_is_read_through_a_bounded_copy(bucket: str, scratch: Path) -> None:
    given, network, where = batches(), online(), f"{bucket}/exact"
    assert built(where, given, epochs=EPOCHS).rows == 3 * SAMPLES
    [about] = cache.summaries(where)
    assert about.epochs == EPOCHS
    sizes = [info for name, info in _listed(where).items() if "shard-" in name]
    bound = 2 * max(sizes) + 10
    assert sum(sizes) > 3 * bound
    found = cache.open_cache(where, fingerprint=fingerprint(given), local_bytes=bound)
    assert found is not None
    cached = found.teacher(given)
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, held(scratch))
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for epoch in EPOCHS:
        for raw in given.epoch(epoch):
            left = asked(cached, raw.inputs, raw.ids, epoch).logits
            assert torch.equal(left, asked(network, raw.inputs, raw.ids, epoch).logits)
            most = max(most, held(scratch))
    over.set()
    watcher.join()
    assert 0 < most <= bound
    found.close()
    assert list(scratch.iterdir()) == []


def test_a_bucket_is_verified_and_refused_like_a_folder(bucket: str, scratch: Path) -> None:
    given, where = batches(), f"{bucket}/checked"
    built(where, given, epochs=EPOCHS)
    looked = cache.verify(where, teacher(), given, fingerprint=fingerprint(given), rows=40)
    assert (looked.shards, looked.rows, looked.largest_difference) == (9, 40, 0.0)
    with pytest.raises(MismatchError, match=r"s3://bucket/checked holds other answers: its seed is 5"):
        cache.open_cache(where, fingerprint=fingerprint(given).model_copy(update={"seed": 6}))
    _write(f"{where}/epoch-0001/shard-00001.safetensors", b"something else")
    with pytest.raises(ArtifactError, match=r"s3://bucket/checked/epoch-0001/shard-00001\.safetensors is damaged"):
        cache.verify(where, teacher(), given, fingerprint=fingerprint(given))


def test_a_build_in_a_bucket_goes_on_and_processes_divide_it(bucket: str, scratch: Path) -> None:
    given, where = batches(), f"{bucket}/parts"
    asked_for = fingerprint(given)
    rows = [
        cache.build(
            where, teacher(), given, fingerprint=asked_for, epochs=EPOCHS, share=Share(index, 2), shard_bytes=1200
        ).rows
        for index in (0, 1)
    ]
    assert rows == [2 * SAMPLES, SAMPLES]
    _remove(f"{where}/epoch-0001/shards.json")
    _write(f"{where}/epoch-0001/shard-00002.safetensors", b"half")
    assert built(where, given, epochs=EPOCHS).rows == SAMPLES - 64
    assert cache.verify(where, teacher(), given, fingerprint=asked_for).shards == 9


def test_an_epoch_that_is_not_in_the_bucket_is_named(bucket: str, scratch: Path) -> None:
    given, where = batches(), f"{bucket}/some"
    built(where, given, epochs=[0])
    found = cache.open_cache(where, fingerprint=fingerprint(given))
    assert found is not None
    assert found.missing(EPOCHS) == [1, 2]
    raw = next(given.epoch(1))
    with pytest.raises(ArtifactError, match=r"s3://bucket/some/epoch-0001/shard-00000\.safetensors is missing"):
        asked(found.teacher(given), raw.inputs, raw.ids, 1)


def test_a_bound_below_one_shard_says_what_to_raise(bucket: str, scratch: Path) -> None:
    given, where = batches(), f"{bucket}/large"
    built(where, given, epochs=[0], shard_bytes=1 << 20)
    found = cache.open_cache(where, fingerprint=fingerprint(given), local_bytes=1000)
    assert found is not None
    raw = next(given.epoch(0))
    with pytest.raises(
        UsageError, match=r"distill\.cache\.local_mb = 0: the shard epoch-0000/.* does not fit\. Raise it"
    ):
        asked(found.teacher(given), raw.inputs, raw.ids, 0)


def test_a_bucket_that_is_not_there_is_one_sentence(bucket: str, scratch: Path) -> None:
    given = batches()
    with pytest.raises(StorageError, match=r"Cannot write s3://nobody/x/cache\.json: .*Look at the address"):
        built("s3://nobody/x", given)


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    import s3fs

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ArtifactError, match=r"Cannot read s3://bucket/x/cache\.json: .*the network\."):
            cache.open_cache("s3://bucket/x", fingerprint=fingerprint(batches()))
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("gs://bucket/x", BackendMissing, r"needs a package that is not installed: .*gcsfs"),
        ("nothing://x", UsageError, r"Protocol not known: nothing.* Give a folder, or a URL such as s3://"),
    ],
)
def test_a_url_that_cannot_be_opened_is_found_before_the_work(url: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        cache.check_place(url)


class Source:
    """Files of 10 bytes that are fetched slowly, and how often."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.fetched: list[str] = []
        self.copies = Copies(folder, self.fetch, lambda name: 10, limit_bytes=25)

    def fetch(self, name: str, path: Path) -> None:
        self.fetched.append(name)
        if name == "broken":
            raise ArtifactError("no way")
        path.write_bytes(b"x" * 4)
        time.sleep(self.seconds)
        path.write_bytes(b"x" * 10)

    def there(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def test_the_copy_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    source = Source(tmp_path)
    for name in ("a", "b", "a", "c"):
        assert source.copies.path(name).read_bytes() == b"x" * 10
    assert source.fetched == ["a", "b", "c"]
    assert source.there() == ["a", "c"]
    source.copies.path("b")
    assert source.there() == ["b", "c"]
    assert source.fetched == ["a", "b", "c", "b"]
    source.copies.close()


def test_the_next_one_is_fetched_meanwhile_and_never_in_the_place_of_the_one_in_use(tmp_path: Path) -> None:
    source = Source(tmp_path, 0.5)
    source.copies.path("a")
    started = time.monotonic()
    source.copies.ahead("b")
    source.copies.ahead("b")
    assert time.monotonic() - started < 0.4
    assert source.copies.path("b").read_bytes() == b"x" * 10
    source.copies.ahead("c")
    assert source.copies.path("b").read_bytes() == b"x" * 10
    source.copies.path("c")
    assert source.fetched == ["a", "b", "c"]
    assert source.there() == ["b", "c"]
    source.copies.close()


def test_a_copy_that_failed_is_tried_again(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.copies.ahead("broken")
    for _ in range(2):
        with pytest.raises(ArtifactError, match="no way"):
            source.copies.path("broken")
    assert source.fetched == ["broken", "broken"]
    assert source.there() == []
    source.copies.path("a")
    source.copies.close()


def test_folders_of_dead_processes_are_removed_and_of_living_ones_not(scratch: Path) -> None:
    code = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from edgekd._cache_copies import own_folder\n"
        "print(own_folder()[0], flush=True); time.sleep(100)"
    )
    dead = subprocess.Popen([sys.executable, "-c", code, str(scratch)], stdout=subprocess.PIPE, text=True)
    assert dead.stdout is not None
    left = Path(dead.stdout.readline().strip())
    (left / "shard").write_bytes(b"x")
    own, owner = own_folder()
    assert left.is_dir()
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    other = own_folder()
    assert not left.exists()
    assert own.is_dir()
    for folder, lock in ((own, owner), other):
        removed(folder, lock)
    assert list(scratch.iterdir()) == []


def _files() -> object:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


def _listed(where: str) -> dict[str, int]:
    return {name: int(info["size"]) for name, info in _files().find(where, detail=True).items()}  # type: ignore[attr-defined]


def _write(where: str, content: bytes) -> None:
    _files().pipe_file(where, content)  # type: ignore[attr-defined]


def _remove(where: str) -> None:
    _files().rm_file(where)  # type: ignore[attr-defined]
