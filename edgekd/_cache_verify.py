"""Look whether a cache still holds what was put in, and whether the teacher would say it again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from edgekd._cache_folder import Store
from edgekd._cache_layout import EpochList, Head, list_name, parsed, shard_name
from edgekd._cache_reader import mapped
from edgekd.batches import Batches, RawBatch
from edgekd.errors import ArtifactError, MismatchError
from edgekd.spec import Frozen

__all__ = ["Verified", "check_hashes", "complete_epochs", "recompute"]

_BLOCK = 1 << 20
_TOGETHER = 16  # rows looked at in one batch: mixup makes a view of a whole batch, so few rows of many cost as much
_LIMIT = 1e-5
_ROUNDING = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of a number of this type, twice


class Verified(Frozen):
    """What a check looked at.

    Args:
        shards: whose bytes were compared with their hash.
        rows: whose views were made and shown to the teacher again.
        largest_difference: of a logit or tap among them.
    """

    shards: int
    rows: int
    largest_difference: float


def complete_epochs(names: Mapping[str, int]) -> list[int]:
    """The epochs whose list is there, in order.

    Args:
        names: every file of the cache.
    """
    starts = [name.partition("/")[0].removeprefix("epoch-") for name in names if name.endswith("/shards.json")]
    numbers = sorted(int(start) for start in starts if start.isdigit())
    return [number for number in numbers if list_name(number) in names]


def check_hashes(store: Store, epochs: Sequence[int], progress: Callable[[int, int], None]) -> int:
    """Compare every shard with the hash that its epoch's list gives; how many there were.

    Raises:
        ArtifactError: one is missing or damaged; it is named.
    """
    lists = [(epoch, store.read(list_name(epoch)) or b"") for epoch in epochs]
    entries = [one for epoch, text in lists for one in parsed(text, EpochList, store.place(list_name(epoch))).shards]
    for done, entry in enumerate(entries, start=1):
        digest = hashlib.sha256()
        try:
            for block in store.blocks(entry.name, _BLOCK):
                digest.update(block)
        except FileNotFoundError as error:
            raise ArtifactError(f"{store.place(entry.name)} is missing. {_again(store, entry.name)}") from error
        if digest.hexdigest() != entry.sha256:
            raise ArtifactError(
                f"{store.place(entry.name)} is damaged: its content is not what was built. {_again(store, entry.name)}"
            )
        progress(done, len(entries))
    return len(entries)


def recompute(
    store: Store,
    head: Head,
    ask: Callable[[RawBatch, int], tuple[Tensor, Mapping[str, Tensor]]],
    batches: Batches,
    *,
    epochs: Sequence[int],
    rows: int,
    seed: int,
) -> tuple[int, float]:
    """Make some views again, ask the teacher again, and compare.

    Args:
        store: where the cache lies.
        head: what it says of itself.
        ask: the teacher.
        batches: the views.
        epochs: complete ones, of which some are taken.
        rows: how many views about.
        seed: of which ones.

    Returns:
        How many views there were, and the largest difference of a logit or tap.

    Raises:
        MismatchError: one differs by more than rounding explains; names epoch, row and sample.
    """
    looked, largest = 0, 0.0
    for epoch, number, chosen in _chosen(batches, head.fingerprint.samples, epochs, rows, seed):
        raw = next(batches.epoch(epoch, start=number))
        logits, taps = ask(raw, epoch)
        for place in chosen.tolist():
            row = number * batches.batch_size + place
            computed = {name: values[place].float().cpu() for name, values in {"": logits, **taps}.items()}
            for name, kept, said in _pairs(head, _row(store, head, epoch, row), computed):
                apart = float((kept - said).abs().max())
                if apart > _limit(head, said):
                    raise MismatchError(
                        f"{store.where}: epoch {epoch}, row {row} (sample {int(raw.ids[place])}): {name} is"
                        f" {apart:.3g} from what the teacher says to this view now. Remove the cache, build it again."
                    )
                largest = max(largest, apart)
        looked += len(chosen)
    return looked, largest


def _chosen(
    batches: Batches, samples: int, epochs: Sequence[int], rows: int, seed: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Epoch, number of a batch, and rows in it."""
    random = torch.Generator().manual_seed(seed)
    left = rows if epochs else 0
    while left > 0:
        epoch = epochs[int(torch.randint(len(epochs), (1,), generator=random))]
        number = int(torch.randint(len(batches), (1,), generator=random))
        size = min(batches.batch_size, samples - number * batches.batch_size)
        chosen = torch.randperm(size, generator=random)[: min(_TOGETHER, left)]
        yield epoch, number, chosen
        left -= len(chosen)


def _row(store: Store, head: Head, epoch: int, row: int) -> dict[str, Tensor]:
    shard, place = divmod(row, head.layout.rows_per_shard)
    tensors = mapped(store, shard_name(epoch, shard), head.rows_of(shard))
    return {name: values[place] for name, values in tensors.items()}


def _pairs(
    head: Head, stored: Mapping[str, Tensor], computed: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is kept of one view, and what the teacher said in its place."""
    logits = computed[""]
    if "logits" in stored:
        yield "a logit", stored["logits"].float(), logits
    else:
        # at the classes that were kept: which of two equal ones is the k-th, rounding may decide either way
        classes = stored["classes"].long()
        yield "a logit", stored["values"].float(), logits[classes]
        rest = torch.logsumexp(logits.scatter(0, classes, -math.inf), dim=0)
        yield "the mass of the other classes", stored["others"], rest - math.log(len(logits) - len(classes))
    for name, layout in head.layout.taps.items():
        kept = stored[f"tap.{name}"].float()
        yield f"tap '{name}'", kept.permute(2, 0, 1) if layout.channels_last else kept, computed[name]


def _limit(head: Head, said: Tensor) -> float:
    """How far two computations of these numbers may be apart."""
    kept = _ROUNDING[head.fingerprint.dtype] + _ROUNDING[head.fingerprint.precision]
    return (_LIMIT + kept) * max(1.0, float(said.abs().max()))


def _again(store: Store, name: str) -> str:
    """What to do about a shard: a list that names it would have it taken for whole."""
    epoch = name.partition("/")[0]
    return f"Remove {store.place(epoch)} and run `edgekd cache build RECIPE`."
