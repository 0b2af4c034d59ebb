"""The teacher cache: what a teacher says to every view of every sample, computed once and kept.

A view is a sample in one epoch, with that epoch's crop, mirror image, cutout and mixture. All of these follow from the
seed, so training shows the very pixels that the teacher saw, and costs what training without a teacher costs. The cache
is a folder, or lies at any URL that fsspec knows; it says of what it holds answers, and is refused where that differs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd._cache_bucket import Bucket
from edgekd._cache_build import Built, fill
from edgekd._cache_fingerprint import fingerprint_of, kept_classes, kept_dtype
from edgekd._cache_folder import Folder, Store
from edgekd._cache_head import SHARD_BYTES, Rows, head_of
from edgekd._cache_layout import HEAD, Fingerprint, Head, check_same, list_name, parsed
from edgekd._cache_runner import Runner
from edgekd._cache_teacher import CachedOutputs, CachedTeacher
from edgekd._cache_verify import Verified, check_hashes, complete_epochs, recompute
from edgekd._compute import keep_freed_memory, threads
from edgekd.batches import Batches, RawBatch, Share
from edgekd.errors import ArtifactError
from edgekd.recipe import ComputeSettings
from edgekd.spec import Frozen
from edgekd.taps import TupleOutputs

__all__ = [
    "Built",
    "Cache",
    "CachedTeacher",
    "Fingerprint",
    "Summary",
    "Verified",
    "build",
    "check_place",
    "fingerprint_of",
    "kept_classes",
    "kept_dtype",
    "open_cache",
    "summaries",
    "verify",
]

_LOCAL_BYTES = 4096 << 20

Progress = Callable[[int, int], None]


class Summary(Frozen):
    """What lies in a cache.

    Args:
        where: folder or URL.
        fingerprint: whose answers, to what.
        epochs: complete ones, counted from 0.
        size_bytes: of all files.
        bytes_per_view: of one answer.
        share_of_dense: bytes of one answer over those of all logits in float32.
    """

    where: str
    fingerprint: Fingerprint
    epochs: list[int]
    size_bytes: int
    bytes_per_view: int
    share_of_dense: float


class Cache:
    """A cache that was opened, and found to be of the right answers.

    Args:
        store: where it lies.
        head: what it says of itself.
    """

    def __init__(self, store: Store, head: Head) -> None:
        self._store, self._head = store, head

    @property
    def where(self) -> str:
        """Folder or URL."""
        return self._store.where

    @property
    def bytes_per_view(self) -> int:
        """Of one answer."""
        return self._head.layout.bytes_per_view

    def missing(self, epochs: Sequence[int]) -> list[int]:
        """Those of these epochs that are not complete."""
        names = self._store.names()
        return [epoch for epoch in epochs if list_name(epoch) not in names]

    def teacher(self, batches: Batches, taps: Sequence[str] = ()) -> TupleOutputs:
        """The cache in the place of the network that it was built from.

        Args:
            batches: as training will show them; an epoch that repeats an earlier one is answered from that.
            taps: of those that are kept.

        Raises:
            UsageError: a tap that is not kept.
        """
        return CachedOutputs(CachedTeacher(self._store, self._head, batches, taps), taps)

    def close(self) -> None:
        """Remove the local copies of a cache at a URL."""
        self._store.close()


def check_place(where: str) -> None:
    """Find before the work that a place cannot be used; nothing is read or written there.

    Raises:
        BackendMissing: the package for this kind of URL is not installed.
        UsageError: no such kind of URL.
    """
    _store(where).close()


def build(
    where: str,
    teacher: nn.Module,
    batches: Batches,
    *,
    fingerprint: Fingerprint,
    epochs: Sequence[int],
    compute: ComputeSettings | None = None,
    device: torch.device | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Built:
    """Add what is missing of some epochs; a build that was broken off goes on, and several may work at once.

    Args:
        where: folder or URL; made if it is not there.
        teacher: moved to the device and into evaluation mode.
        batches: as training will show them.
        fingerprint: of `fingerprint_of` for these batches.
        epochs: of views, counted from 0. In a local folder a lock keeps several builders off the same epoch; at a URL
            each must be given epochs of its own.
        share: which of several processes with the same epochs this is; at a URL they divide the epochs by it.
        compute: precision and threads.
        device: where to compute; the CPU if not given.
        progress: told rows that are there and rows in all.
        shard_bytes: about how large a file is.

    Raises:
        MismatchError: the cache is of other answers; names the field.
        UsageError: a tap that the teacher does not have, or an answer that the dtype cannot hold.
        StorageError: the disk or the other side refused; what is complete stays.
    """
    compute = compute or ComputeSettings()
    keep_freed_memory()
    store = _store(where)
    try:
        with threads(compute.threads):
            runner = _runner(teacher, batches, fingerprint, compute, device)
            head = head_of(
                store, fingerprint, lambda: _some_taps(runner, batches), Rows(batches.batch_size, shard_bytes)
            )
            if share is not None and not store.shared_lock:
                epochs = epochs[share.index :: share.count]
            return fill(store, head, runner, batches, epochs, progress or (lambda done, total: None))
    finally:
        store.close()


def open_cache(where: str, *, fingerprint: Fingerprint, local_bytes: int = _LOCAL_BYTES) -> Cache | None:
    """A cache of these answers, None if there is nothing yet.

    Args:
        where: folder or URL.
        fingerprint: what it must be of.
        local_bytes: of a cache at a URL, how much may lie on this machine at once.

    Raises:
        MismatchError: it is of other answers; names the field.
        ArtifactError: it is damaged, or cannot be reached.
        BackendMissing: the package for this kind of URL is not installed.
    """
    store = _store(where, local_bytes)
    if (text := store.read(HEAD)) is None:
        return None
    head: Head = parsed(text, Head, store.place(HEAD))
    check_same(store.where, head.fingerprint, fingerprint)
    return Cache(store, head)


def verify(
    where: str,
    teacher: nn.Module,
    batches: Batches,
    *,
    fingerprint: Fingerprint,
    rows: int = 64,
    seed: int | None = None,
    compute: ComputeSettings | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Compare every shard with its hash, then make some views again and ask the teacher again.

    Args:
        where: folder or URL.
        teacher: as for `build`.
        batches: as for `build`.
        fingerprint: as for `build`.
        rows: how many views are made again.
        seed: of which ones; None for others each time.
        compute: precision and threads.
        device: where to compute; the CPU if not given.
        progress: told shards that were compared, and all.

    Raises:
        ArtifactError: nothing is there, or a shard is missing or damaged; it is named.
        MismatchError: it is of other answers, or an answer is not what the teacher says; the first is named.
    """
    compute = compute or ComputeSettings()
    cache = open_cache(where, fingerprint=fingerprint)
    if cache is None:
        raise ArtifactError(f"There is no cache at {where}. Run `edgekd cache build RECIPE`.")
    store, head = cache._store, cache._head
    try:
        epochs = complete_epochs(store.names())
        shards = check_hashes(store, epochs, progress or (lambda done, total: None))
        with threads(compute.threads):
            runner = _runner(teacher, batches, fingerprint, compute, device)
            chosen = secrets.randbits(32) if seed is None else seed
            looked, largest = recompute(store, head, runner, batches, epochs=epochs, rows=rows, seed=chosen)
    finally:
        store.close()
    return Verified(shards=shards, rows=looked, largest_difference=largest)


def summaries(where: str) -> list[Summary]:
    """Every cache at a place: itself, or one for each teacher in folders below it.

    Raises:
        ArtifactError: there is none, or one is damaged.
    """
    store = _store(where)
    names = store.names()
    found = []
    folders = [one.removesuffix(HEAD) for one in names if one.rpartition("/")[2] == HEAD]
    for folder in sorted(folders, key=lambda one: one.rstrip("/")):
        name = f"{folder}{HEAD}"
        head: Head = parsed(store.read(name) or b"", Head, store.place(name))
        below = {one.removeprefix(folder): size for one, size in names.items() if one.startswith(folder)}
        dense = 4 * head.fingerprint.classes
        found.append(
            Summary(
                where=store.place(folder).rstrip("/"),
                fingerprint=head.fingerprint,
                epochs=complete_epochs(below),
                size_bytes=sum(below.values()),
                bytes_per_view=head.layout.bytes_per_view,
                share_of_dense=head.layout.bytes_per_view / dense,
            )
        )
    if not found:
        raise ArtifactError(f"There is no cache at {where}. Run `edgekd cache build RECIPE`.")
    return found


def _store(where: str, local_bytes: int = _LOCAL_BYTES) -> Store:
    scheme, separator, rest = where.partition("://")
    if not separator:
        return Folder(Path(where))
    return Folder(Path(rest)) if scheme == "file" else Bucket(where, limit_bytes=local_bytes)


def _runner(
    teacher: nn.Module,
    batches: Batches,
    fingerprint: Fingerprint,
    compute: ComputeSettings,
    device: torch.device | None,
) -> Runner:
    example = next(batches.epoch(0)).inputs[:2]
    where = device or torch.device("cpu")
    return Runner(teacher, fingerprint.taps, device=where, precision=compute.precision, example=example)


def _some_taps(runner: Runner, batches: Batches) -> Mapping[str, Tensor]:
    if not runner.taps:
        return {}
    first = next(batches.epoch(0))
    few = RawBatch(first.inputs[:2], first.labels[:2], first.ids[:2], first.total)  # their shapes are all that counts
    return runner(few, 0)[1]
