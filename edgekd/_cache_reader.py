"""Read rows of a cache: shards are mapped into memory, held against what training shows, and sliced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgekd._cache_folder import Store
from edgekd._cache_layout import Head, shard_name
from edgekd._cache_views import Views, views_of
from edgekd.batches import Batches
from edgekd.errors import ArtifactError, MismatchError

__all__ = ["Reader", "mapped"]

_LOGITS = ("logits", "values", "classes", "others")
_AGAIN = "Build the cache again with `edgekd cache build RECIPE`, in another place or after removing this one."


class Reader:
    """Rows of a cache by sample and epoch.

    Args:
        store: where the cache lies.
        head: what it says of itself.
        batches: of the training split, whose order and changes the cache was built for.
        taps: which of the kept ones are read.
    """

    def __init__(self, store: Store, head: Head, batches: Batches, taps: Sequence[str]) -> None:
        self._store, self._head, self._batches = store, head, batches
        self._needed = {*_LOGITS, *(f"tap.{name}" for name in taps)}
        self._views: tuple[int, Views] | None = None
        self._shard: tuple[tuple[int, int], Mapping[str, Tensor]] | None = None

    def of_samples(self, ids: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Copies of the rows of these samples, in this order.

        Args:
            ids: indices in the training split, shape (B,).
            epoch: of training, 0-based.

        Raises:
            MismatchError: a row is of another view than the one that is shown, or a sample has none.
            ArtifactError: a shard is missing or damaged; it is named.
        """
        view = self._batches.view(epoch)
        rows = self._expected(view).rows[ids]
        if rows.max() >= self._head.fingerprint.samples:
            raise MismatchError(
                f"The cache at {self._store.where} has {self._head.fingerprint.samples} rows in an epoch, and a sample"
                f" is asked for that it left out: the batches have another size. {_AGAIN}"
            )
        return self.rows(view, rows)

    def rows(self, view: int, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Copies of these rows of an epoch of views, in this order, from one shard or several."""
        size = self._head.layout.rows_per_shard
        number, start = divmod(int(rows[0]), size)
        if start + len(rows) <= size and _runs_on(rows):
            shard = self._opened(view, number)
            return {name: values[start : start + len(rows)].clone() for name, values in shard.items()}
        found: dict[str, Tensor] = {}
        numbers, places = np.divmod(rows, size)
        for number in np.unique(numbers).tolist():
            here = torch.from_numpy(np.flatnonzero(numbers == number))
            place = torch.from_numpy(places)[here]
            for name, values in self._opened(view, number).items():
                if name not in found:
                    found[name] = values.new_empty((len(rows), *values.shape[1:]))
                found[name][here] = values[place]
        return found

    def _expected(self, view: int) -> Views:
        if self._views is None or self._views[0] != view:
            self._views = (view, views_of(self._batches, view))
        return self._views[1]

    def _opened(self, view: int, number: int) -> Mapping[str, Tensor]:
        """The mapped tensors of a shard, the last one kept open, each of its rows compared with what is shown."""
        if self._shard is None or self._shard[0] != (view, number):
            self._shard = None  # the next one may take the place of its copy
            shard = mapped(self._store, shard_name(view, number), self._head.rows_of(number))
            self._check(shard, self._expected(view), view, number)
            self._shard = ((view, number), {name: shard[name] for name in shard if name in self._needed})
            self._store.ahead(shard_name(*self._following(view, number)))
        return self._shard[1]

    def _following(self, view: int, number: int) -> tuple[int, int]:
        if number + 1 < self._head.shards:
            return view, number + 1
        return self._batches.view(view + 1), 0

    def _check(self, shard: Mapping[str, Tensor], expected: Views, view: int, number: int) -> None:
        start = number * self._head.layout.rows_per_shard
        end = start + self._head.rows_of(number)
        for name, what in (("ids", "sample"), ("seeds", "the view with seed"), ("partners", "a mixture with sample")):
            wanted = getattr(expected, name)
            if wanted is None or torch.equal(shard[name], wanted[start:end]):
                continue
            row = int((shard[name] != wanted[start:end]).nonzero()[0])
            raise MismatchError(
                f"{self._store.place(shard_name(view, number))}: row {row} is of {what} {int(shard[name][row])}, but"
                f" training shows {what} {int(wanted[start + row])} there. {_AGAIN}"
            )


def mapped(store: Store, name: str, rows: int) -> Mapping[str, Tensor]:
    """A shard's tensors, memory-mapped: only what is read of them is fetched from the disk.

    Raises:
        ArtifactError: the epoch was not built, or the shard is damaged.
    """
    try:
        path = store.local(name)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{store.place(name)} is missing: this epoch was not built, or not to its end. Run"
            " `edgekd cache build RECIPE`."
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            found = {one: file.get_tensor(one) for one in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{store.place(name)} is damaged: {error}. Remove it and run `edgekd cache build RECIPE`."
        ) from error
    if any(len(values) != rows for values in found.values()):
        raise ArtifactError(
            f"{store.place(name)} is damaged: it has {len(next(iter(found.values())))} rows instead of {rows}. Remove"
            " it and run `edgekd cache build RECIPE`."
        )
    return found


def _runs_on(rows: NDArray[np.int64]) -> bool:
    """Whether rows follow each other."""
    return bool(rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all())
