"""Fill a cache: run the teacher over the very batches that training will show, and keep what it says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from edgekd._background import background
from edgekd._cache_codec import encoded
from edgekd._cache_folder import Store
from edgekd._cache_head import is_whole
from edgekd._cache_layout import EpochList, Head, ShardEntry, list_name, named_epoch, shard_name, torch_dtype
from edgekd._cache_views import Views, views_of
from edgekd.batches import Batches, RawBatch
from edgekd.errors import UsageError
from edgekd.spec import Frozen

__all__ = ["Built", "fill"]

_BLOCK = 1 << 20

Progress = Callable[[int, int], None]


class Built(Frozen):
    """What one call built.

    Args:
        rows: views that the teacher was asked about; 0 if everything was there.
        epochs: that are complete now, of those asked for.
        seconds: it took.
    """

    rows: int
    epochs: int
    seconds: float


def fill(
    store: Store,
    head: Head,
    ask: Callable[[RawBatch, int], tuple[Tensor, Mapping[str, Tensor]]],
    batches: Batches,
    epochs: Sequence[int],
    progress: Progress,
) -> Built:
    """Build what is missing of these epochs.

    Args:
        store: where the cache lies.
        head: what it says of itself.
        ask: the teacher.
        batches: the views.
        epochs: which, counted from 0; they are done in this order, those that another builder works on last.
        progress: told rows that are there and rows in all.
    """
    work = _Filling(store, head, ask, batches, progress, total=len(epochs) * head.fingerprint.samples)
    started = time.perf_counter()
    busy = [epoch for epoch in epochs if not work.epoch(epoch, wait=False)]
    done = len(epochs) - len(busy)
    done += sum(work.epoch(epoch, wait=True) for epoch in busy)
    return Built(rows=work.asked, epochs=done, seconds=time.perf_counter() - started)


class _Arriving:
    """A batch's answers on their way from the device, while the teacher goes on with the next one.

    Args:
        kept: on the device.
        ids: of the batch.
        row: of its first sample in the epoch.
        views: of the epoch.
    """

    def __init__(self, kept: Mapping[str, Tensor], ids: Tensor, row: int, views: Views) -> None:
        self.row = row
        self._host = {name: values.to("cpu", non_blocking=True) for name, values in kept.items()}
        self._event = None
        if any(values.is_cuda for values in kept.values()):
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        rows = slice(row, row + len(ids))
        self._host |= {"ids": ids.to(torch.int32), "seeds": views.seeds[rows]}
        if views.partners is not None:
            self._host["partners"] = views.partners[rows]

    def rows(self) -> dict[str, Tensor]:
        """The answers on this side, and what they answer."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


@dataclass
class _Filling:
    """One call of `fill`."""

    store: Store
    head: Head
    ask: Callable[[RawBatch, int], tuple[Tensor, Mapping[str, Tensor]]]
    batches: Batches
    progress: Progress
    total: int
    asked: int = 0
    there: int = 0

    def epoch(self, epoch: int, *, wait: bool) -> bool:
        """Whether the epoch is complete now; not if another builder is at work on it."""
        samples = self.head.fingerprint.samples
        if self.store.read(list_name(epoch)) is not None:
            self._count(samples)
            return True
        with self.store.locked(named_epoch(epoch), wait=wait) as mine:
            if not mine:
                return False
            if self.store.read(list_name(epoch)) is None:  # else who held the lock has built it meanwhile
                self._build(epoch)
            else:
                self._count(samples)
        return True

    def _build(self, epoch: int) -> None:
        sizes = self.store.names()
        missing = []
        for shard in range(self.head.shards):
            if is_whole(self.store, shard_name(epoch, shard), sizes, self.head, self.head.rows_of(shard)):
                self._count(self.head.rows_of(shard))
            else:
                missing.append(shard)
        entries: dict[int, ShardEntry] = {}
        with background("cache") as writer:
            written: tuple[int, Future[ShardEntry]] | None = None
            for shard, tensors in self._shards(epoch, missing):
                if written is not None:  # at most one shard waits to be written
                    entries[written[0]] = written[1].result()
                written = (shard, writer.submit(self._written, epoch, shard, tensors))
            if written is not None:
                entries[written[0]] = written[1].result()
        whole = [entries.get(shard) or self._hashed(epoch, shard) for shard in range(self.head.shards)]
        self.store.write(list_name(epoch), EpochList(shards=whole).model_dump_json(indent=1).encode())

    def _shards(self, epoch: int, missing: Sequence[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The tensors of each missing shard."""
        views = views_of(self.batches, epoch)
        for first, last in _runs(missing):
            start, end = first * self.head.layout.rows_per_shard, self.head.rows_of(last)
            end += last * self.head.layout.rows_per_shard
            gathered: list[dict[str, Tensor]] = []
            shard, row = first, start
            for kept in self._answers(epoch, start, end, views):
                while len(kept["ids"]):
                    room = shard * self.head.layout.rows_per_shard + self.head.rows_of(shard) - row
                    gathered.append({name: values[:room] for name, values in kept.items()})
                    row += len(gathered[-1]["ids"])
                    kept = {name: values[room:] for name, values in kept.items()}
                    if len(gathered[-1]["ids"]) == room:
                        yield shard, {name: torch.cat([one[name] for one in gathered]) for name in gathered[0]}
                        gathered, shard = [], shard + 1

    def _answers(self, epoch: int, start: int, end: int, views: Views) -> Iterator[dict[str, Tensor]]:
        """What is kept of rows start to end, a batch at a time; each is fetched while the next one is computed."""
        size = self.batches.batch_size
        row = start // size * size
        before: _Arriving | None = None
        for raw in self.batches.epoch(epoch, start=start // size):
            arriving = _Arriving(self._kept(raw, epoch), raw.ids, row, views)
            row += len(raw.ids)
            if before is not None:
                yield self._cut(before, start, end)
            before = arriving
            if row >= end:
                break
        if before is not None:
            yield self._cut(before, start, end)

    def _cut(self, arriving: _Arriving, start: int, end: int) -> dict[str, Tensor]:
        rows = arriving.rows()
        first, last = max(start - arriving.row, 0), end - arriving.row
        cut = {name: values[first:last] for name, values in rows.items()}
        self.asked += len(cut["ids"])
        self._count(len(cut["ids"]))
        return cut

    def _kept(self, raw: RawBatch, epoch: int) -> dict[str, Tensor]:
        fingerprint, layout = self.head.fingerprint, self.head.layout
        dtype = torch_dtype(fingerprint.dtype)
        logits, taps = self.ask(raw, epoch)
        if logits.dim() != 2 or logits.shape[1] != fingerprint.classes:
            raise UsageError(
                f"The teacher gives an output of shape {tuple(logits.shape)}, but logits must be"
                f" (B, {fingerprint.classes})."
            )
        with torch.inference_mode():
            kept = encoded(logits, top_k=fingerprint.top_k, dtype=dtype)
            for name, values in taps.items():
                stored = values.permute(0, 2, 3, 1) if layout.taps[name].channels_last else values
                kept[f"tap.{name}"] = stored.to(dtype).contiguous()
        return kept

    def _written(self, epoch: int, shard: int, tensors: dict[str, Tensor]) -> ShardEntry:
        """Publish a shard; runs beside the teacher."""
        name = shard_name(epoch, shard)
        self._check_finite(tensors)
        content = save(tensors)
        self.store.write(name, content)
        digest = hashlib.sha256(content).hexdigest()
        return ShardEntry(name=name, rows=self.head.rows_of(shard), bytes=len(content), sha256=digest)

    def _hashed(self, epoch: int, shard: int) -> ShardEntry:
        name, digest, size = shard_name(epoch, shard), hashlib.sha256(), 0
        for block in self.store.blocks(name, _BLOCK):
            digest.update(block)
            size += len(block)
        return ShardEntry(name=name, rows=self.head.rows_of(shard), bytes=size, sha256=digest.hexdigest())

    def _check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for column, values in tensors.items():
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                row = int((~torch.isfinite(values).view(len(values), -1).all(dim=1)).nonzero()[0])
                raise UsageError(
                    f"The teacher's {column} for sample {int(tensors['ids'][row])} is not finite as"
                    f" {self.head.fingerprint.dtype}. Set distill.cache.dtype = 'bfloat16' or 'float32', whose range is"
                    " wider; if it still is not, the teacher's weights are broken."
                )

    def _count(self, rows: int) -> None:
        self.there += rows
        self.progress(self.there, self.total)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of numbers that follow each other; they are sorted."""
    first = 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            yield numbers[first], number
            first = place + 1
