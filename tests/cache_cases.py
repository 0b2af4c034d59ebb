"""What the tests of the teacher cache share: a teacher, batches of changed images, and the two compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import cache
from edgekd.batches import Batches
from edgekd.cache import Built, Fingerprint
from edgekd.datasets._base import InMemorySamples
from edgekd.losses._base import Outputs
from edgekd.methods._observe import observe_frozen
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing
from edgekd.taps import Tapped, TupleOutputs, tapped

SAMPLES, CLASSES, BATCH, SIDE = 90, 6, 16, 8
PLAIN = AugmentSettings()
ALL = AugmentSettings(crop=1, flip=True, cutout=3, mixup=0.5)
TAP = "1"


def teacher(seed: int = 0) -> nn.Module:
    """Two convolutions and a classifier; its taps are "0" to "4"."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()


def batches(augment: AugmentSettings = ALL, *, samples: int = SAMPLES, **changed: Any) -> Batches:
    """Batches of random images."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (samples, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES, (samples,), generator=random)
    settings = {"batch_size": BATCH, "classes": CLASSES, "seed": 5, **changed}
    preprocessing = Preprocessing(size=[SIDE, SIDE], channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    return Batches(InMemorySamples(pixels, labels), preprocessing=preprocessing, augment=augment, **settings)


def fingerprint(of: Batches, **changed: Any) -> Fingerprint:
    return cache.fingerprint_of(of, **{"teacher": "teacher", "data": "data", **changed})


def built(
    where: Path | str, of: Batches, *, epochs: Sequence[int] = (0, 1), shard_bytes: int = 1200, **changed: Any
) -> Built:
    """Build a cache of small shards."""
    asked = fingerprint(of, **changed)
    return cache.build(str(where), teacher(), of, fingerprint=asked, epochs=epochs, shard_bytes=shard_bytes)


def opened(where: Path | str, of: Batches, give: Sequence[str] = (), **changed: Any) -> TupleOutputs:
    """The cache in its teacher's place."""
    found = cache.open_cache(str(where), fingerprint=fingerprint(of, **changed))
    assert found is not None
    return found.teacher(of, give)


def asked(network: Tapped | TupleOutputs, inputs: Tensor, ids: Tensor, epoch: int) -> Outputs:
    """What a teacher says to a batch as training asks it."""
    return observe_frozen(network, inputs.to(memory_format=torch.channels_last), ids, epoch)


def online(taps: Sequence[str] = ()) -> Tapped | TupleOutputs:
    """The teacher itself, laid out as it trains and as it fills a cache."""
    network = tapped(teacher(), taps)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def only_shard(folder: Path, epoch: int = 0, shard: int = 0) -> Path:
    return folder / f"epoch-{epoch:04}" / f"shard-{shard:05}.safetensors"
