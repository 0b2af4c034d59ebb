"""A cache that stands in for its teacher: asked which samples come, it gives what the teacher said to their views."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from edgekd._cache_codec import decoded
from edgekd._cache_folder import Store
from edgekd._cache_layout import Head, TapLayout
from edgekd._cache_reader import Reader
from edgekd._step_clock import part
from edgekd.batches import Batches
from edgekd.errors import UsageError
from edgekd.taps import TupleOutputs

__all__ = ["CachedOutputs", "CachedTeacher"]


class CachedTeacher(nn.Module):
    """Gives `(logits, *taps)` of the teacher that a cache was built from, without running it.

    It must be told which samples come (`look_up_view`); what it is given as inputs only says how many there are and
    where they are. A batch that follows the epoch's order is one slice of each memory-mapped tensor; any other order is
    answered too.

    Args:
        store: where the cache lies.
        head: what it says of itself; it has been compared with the run.
        batches: of the training split, whose order and changes the cache was built for.
        taps: which of the kept taps are given, in this order.

    Raises:
        UsageError: a tap that is not kept.
    """

    def __init__(self, store: Store, head: Head, batches: Batches, taps: Sequence[str] = ()) -> None:
        super().__init__()
        missing = [name for name in taps if name not in head.layout.taps]
        if missing:
            raise UsageError(
                f"The cache at {store.where} does not keep the tap '{missing[0]}'. It keeps:"
                f" {', '.join(head.layout.taps) or 'none'}. Add it to distill.cache.taps."
            )
        self._where, self._head, self._taps = store.where, head, tuple(taps)
        self._reader = Reader(store, head, batches, taps)
        # in a list: setting an attribute of a module costs more than reading a row
        self._asked: list[tuple[Tensor, int]] = []
        self._seconds = [0.0]
        self._only_shapes = False

    @property
    def seconds(self) -> float:
        """Spent on reading so far."""
        return self._seconds[0]

    def __deepcopy__(self, memo: Mapping[int, object]) -> Self:
        """A copy is made to look at an example (`edgekd.taps.probe`): it answers with the first rows."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._asked, copied._only_shapes = [], True
        return copied

    def look_up_view(self, ids: Tensor, epoch: int) -> None:
        """Say which samples the next batch is of, and in which epoch of training it is shown.

        Args:
            ids: indices in the training split, int64, shape (B,).
            epoch: 0-based.
        """
        self._asked[:] = [(ids.detach().cpu(), epoch)]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, K), float32, then one tensor for each tap, on the device of the inputs.

        Raises:
            UsageError: no samples were named, or others than these.
            MismatchError: a row is of another view than the one that is shown.
            ArtifactError: a shard is missing or damaged; it is named.
        """
        started = time.perf_counter()
        with part("cache"):
            found = self._outputs(self._kept(len(inputs)), inputs.device)
        self._seconds[0] += time.perf_counter() - started
        return found

    def _kept(self, count: int) -> Mapping[str, Tensor]:
        if self._asked:
            ids, epoch = self._asked.pop()
            if len(ids) == count:
                return self._reader.of_samples(ids.numpy(), epoch)
        elif self._only_shapes:
            return self._reader.rows(0, np.arange(count) % self._head.fingerprint.samples)
        raise UsageError(
            f"The cache at {self._where} holds answers for training samples by their number, and here an image comes"
            " without one. What asks about other images needs the teacher itself."
        )

    def _outputs(self, kept: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
        if device.type != "cpu":
            kept = {name: values.to(device, non_blocking=True) for name, values in kept.items()}
        logits = decoded(kept, classes=self._head.fingerprint.classes)
        return (logits, *(_tap(kept[f"tap.{name}"], self._head.layout.taps[name]) for name in self._taps))


class CachedOutputs(TupleOutputs):
    """A cache among the teachers of a method, with the names of its taps."""

    def compile(self) -> None:
        """Nothing: what reads files cannot be compiled, and the student beside it can."""


def _tap(values: Tensor, layout: TapLayout) -> Tensor:
    """A tap as the teacher gave it, float32; its memory too."""
    whole = values.to(torch.float32)
    return whole.permute(0, 3, 1, 2) if layout.channels_last else whole
