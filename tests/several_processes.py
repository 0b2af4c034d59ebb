"""What test_several_processes.py computes in one process and in two; run by a launcher, it is the two."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import _group, _messages, _shared_teacher, quantize
from edgekd._synced_norm import restored, synced
from edgekd.batches import Batches, evaluation_batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import Hooks, fit
from edgekd.errors import RecipeError, UsageError
from edgekd.evaluate import Predictions, predict_shared
from edgekd.losses._base import Split
from edgekd.methods._base import Context, Method, WeightedLoss
from edgekd.models.tiny import Tiny
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing

CPU = ComputeSettings(device="cpu", threads=1)
PIXELS = Preprocessing(size=[6, 6], channels=1, mean=[0.5], std=[0.5])
SGD = TrainSettings(epochs=1, batch_size=12, lr=0.01, warmup_epochs=0.0, optimizer="sgd")
COUNT = 29  # two batches of 12, and one of 5 that cannot be halved
ROWS = {"equal": (4, 4), "unequal": (5, 3), "none": (8, 0)}
"""How a batch of eight rows lies on two processes."""

BATCHWISE = [name for name in CATALOGS["losses"].names() if CATALOGS["losses"].load(name).member.batchwise]
LOSSES = ["cross_entropy", "kd", *BATCHWISE]
WEIGHTS = {"dist": 0.1, "multi_head_graph": 0.1}
"""Of losses whose gradients here are so steep that rounding grows by a thousand in three steps."""
METHODS = CATALOGS["methods"].names()


def samples(count: int = COUNT) -> InMemorySamples:
    """Three classes, told apart by which third of the image is bright."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % 3
    pixels = torch.rand(count, 1, 6, 6, generator=generator) * 0.6
    for index, label in enumerate(labels.tolist()):
        pixels[index, :, 2 * label : 2 * label + 2] += 0.4
    return InMemorySamples(pixels, labels)


def batches(**options: Any) -> Batches:
    """The same batches in every process and every launch."""
    values = {"batch_size": 12, "augment": AugmentSettings(crop=1, flip=True, mixup=0.4), **options}
    return Batches(samples(), classes=3, preprocessing=PIXELS, seed=3, **values)


class Tapped(nn.Module):
    """A network with named outputs of any shape between its input and its logits."""

    def __init__(self, taps: Mapping[str, tuple[int, ...]], *, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3) if norm else nn.Identity(), nn.ReLU()
        )
        self.taps = list(taps)
        sizes = {name: int(torch.tensor(shape).prod()) for name, shape in taps.items()}
        for name, shape in taps.items():
            self._put(name, nn.Sequential(nn.Linear(3 * 36, sizes[name]), nn.Unflatten(1, shape)))
        self.head = nn.Linear(sum(sizes.values()), 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.stem(inputs).flatten(1)
        return self.head(torch.cat([self.get_submodule(name)(found).flatten(1) for name in self.taps], dim=1))

    def _put(self, name: str, module: nn.Module) -> None:
        *outer, last = name.split(".")
        place: nn.Module = self
        for one in outer:
            if not hasattr(place, one):
                place.add_module(one, nn.Module())
            place = place.get_submodule(one)
        place.add_module(last, module)


def method_of(name: str, *, norm: bool) -> Method:
    """A student and a teacher with the taps of a loss; the student learns by it and by cross-entropy."""
    contract = _contract("losses")
    told = contract.case("losses", name)
    ours, theirs = told.get("CHANNELS", (4, 7))
    networks = []
    for seed, channels in ((1, ours), (2, theirs)):
        taps = told.get("TAPS") or {tap: (channels, *size) for tap, size in contract.SIZES.items()}
        torch.manual_seed(seed)
        networks.append(Tapped(taps, norm=norm))
    member = CATALOGS["losses"].load(name).member
    losses = [WeightedLoss(name, member(member.Options(**contract.values_for(name))), WEIGHTS.get(name, 1.0))]
    if name != "cross_entropy":
        losses.append(WeightedLoss("cross_entropy", _loss("cross_entropy"), 0.5))
    context = Context(Split(samples().labels, 3), None)
    method = CATALOGS["methods"].load("offline").member
    made: Method = method(networks[0], [networks[1].eval()], losses, method.Options(), context)
    return made


def trained(name: str, *, norm: bool) -> dict[str, Tensor]:
    """The whole method's state after an epoch of plain gradient steps."""
    method = method_of(name, norm=norm)
    fit(method, batches(), settings=SGD, compute=CPU, seed=5)
    return copy.deepcopy(method.state_dict())


def together(name: str) -> dict[str, Tensor]:
    """The state of a method with its own way of putting batches together, after two epochs."""
    contract = _contract("methods")
    torch.manual_seed(0)
    method: Method = contract.made(name, contract.network(4))
    data = InMemorySamples(torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)
    source = Batches(
        data,
        batch_size=12,
        classes=3,
        preprocessing=PIXELS.model_copy(update={"size": [8, 8]}),
        seed=3,
        sampling=type(method).sampling,
    )
    fit(method, source, settings=SGD.model_copy(update={"epochs": 2}), compute=CPU, seed=5)
    return copy.deepcopy(method.state_dict())


def normalised(rows: tuple[int, int]) -> dict[str, Tensor]:
    """A synchronised batch normalisation on this process's rows of a batch of eight."""
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(8, 3, 5, 5, generator=generator) * 2 + 3
    upstream = torch.randn(8, 3, 5, 5, generator=generator)
    start = rows[0] * _group.index()
    own = slice(start, start + rows[_group.index()]) if _group.count() > 1 else slice(None)
    layer = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
    network = nn.Sequential(layer)
    if _group.count() > 1:
        synced([network])
    inputs = whole[own].clone().requires_grad_()
    output = network(inputs)
    (output * upstream[own]).sum().backward()
    restored([network])
    assert type(layer) is nn.BatchNorm2d
    assert inputs.grad is not None
    gradients = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    return {"output": output.detach(), "inputs": inputs.grad, **gradients, **dict(layer.named_buffers())}


def predicted(count: int, batch_size: int) -> Predictions:
    """What a network answers for so many samples."""
    data, network = samples(count), Tiny(Tiny.Options(width=4)).build(3, (1, 6, 6)).eval()

    def of(ids: Tensor) -> Any:
        return evaluation_batches(data, PIXELS, batch_size=batch_size, ids=ids)

    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return predict_shared(network, count, of, batch_size=batch_size)


class Known:
    """A memory that only the main process may ask and fill."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def recall(self, graph: str) -> Any:
        """What was kept of a graph."""
        assert int(os.environ.get("RANK", "0")) == 0
        return self.kept.get(graph)

    def keep(self, graph: str, histograms: Any) -> None:
        """Keep it."""
        assert _group.is_main()
        self.kept[graph] = dict(histograms)


def calibrated() -> dict[str, dict[str, tuple[float, float]]]:
    """The ranges of a small network after three batches, after one, recalled, and after a batch in training."""
    torch.manual_seed(0)
    network = Tiny(Tiny.Options(width=4)).build(3, (1, 6, 6)).eval()
    target = CATALOGS["targets"].load("onnxruntime_x86").member()
    calibrator = CATALOGS["calibration"].load("percentile").member
    pixels = PIXELS.normalise(samples(24).images(torch.arange(24)))
    graph = quantize.prepare(
        network,
        pixels[:2],
        numerics=target.numerics,
        calibrator=calibrator(calibrator.Options()),
        reduce_range=False,
    )
    found, memory = {}, Known()
    for name, batches in (("three", pixels.split(8)), ("one", pixels[:8].split(8)), ("recalled", ())):
        seen = quantize.calibrate(graph, batches, memory=None if name == "three" else memory)
        assert seen == (24 if name == "three" else 8)
        found[name] = dict(quantize.ranges(graph))
    quantize.set_phase(graph, "track")
    rows = ROWS["unequal"]
    graph(pixels[8:16].split(rows)[_group.index()] if _group.count() > 1 else pixels[8:16])
    found["tracked"] = dict(quantize.ranges(graph))
    return found


def stopped_and_resumed(folder: Path, *, stop_after: int | None, whole: bool = False) -> dict[str, Tensor]:
    """A training of three epochs that stops after one, or goes on from there, or is left in peace (`whole`)."""
    method = method_of("kd", norm=True)

    def stop(record: Any) -> None:
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    settings = SGD.model_copy(update={"epochs": 3, "momentum": 0.9})
    try:
        done = fit(
            method,
            batches(),
            settings=settings,
            compute=CPU,
            seed=5,
            checkpoint=folder / "training.pt",
            hooks=Hooks(on_epoch=stop),
        )
    except KeyboardInterrupt:
        assert stop_after is not None
    else:
        assert done.resumed_at == (0 if whole else 1)
    return copy.deepcopy(method.state_dict())


def _talked() -> dict[str, Any]:
    """What the processes tell each other."""
    own = _group.index()
    tensor = torch.full((2,), float(own))
    _group.copy_from_main([tensor])
    found: dict[str, Any] = {
        "index": own,
        "count": _group.count(),
        "main": _group.is_main(),
        "from_main": _group.from_main(lambda: {"made by": own, "count": _group.count()}),
        "gathered": _group.gather(f"of {own}"),
        "agreed": [_group.agreed(flag) for flag in (False, own == 1, True)],
        "copied": tensor,
    }
    with _group.alone():
        found["alone"] = [_group.count(), _group.index(), _group.gather("one"), _group.from_main(lambda: own)]
    for kind, error in (("usage", UsageError("no such thing")), ("recipe", RecipeError("here", ["one", "two"]))):
        try:
            _group.from_main(lambda error=error: _raised(error))
        except Exception as caught:
            found[kind] = [type(caught).__name__, str(caught), caught.exit_code]  # type: ignore[attr-defined]
    _group.barrier()
    return found


def _added() -> dict[str, Any]:
    """Tensors that the processes send each other, by sockets where they are small and by gloo where they are large."""
    own, found = _group.index(), {}
    for name, size in (("empty", 0), ("one", 1), ("chunks", 3 * 2**13 + 1), ("large", 2**18 + 1)):
        values = torch.arange(size, dtype=torch.float32) * (1 - 2 * own)  # 0, 1, 2, ... and 0, -1, -2, ...
        by_gloo = values.clone()
        torch.distributed.all_reduce(by_gloo)
        by_us = _messages.averaged(values.clone()).wait()
        summed = _messages.summed(values.clone())
        found[name] = {
            "by sockets": _messages._line_for(values) is not None,
            "equal": torch.equal(summed, by_gloo) and torch.equal(2 * by_us, by_gloo),
            "stacked": torch.equal(_messages.stacked(values)[1 - own], -values),
            "largest": torch.equal(_messages.largest(values.clone()), torch.arange(size).float()),
        }
    half = torch.full((3, 2), own + 0.5, dtype=torch.bfloat16)
    found["other types"] = [_messages.stacked(half).tolist(), _messages.summed(torch.tensor(2**60 + own)).item()]
    return found


def _raised(error: Exception) -> None:
    raise error


def _sharded() -> dict[str, Any]:
    """A network whose weights lie on both processes, against the whole one."""
    refused = []
    for odd in (nn.ReLU(), torch.fx.symbolic_trace(nn.Linear(2, 2))):
        try:
            _shared_teacher.shard(odd)
        except UsageError as error:
            refused.append(str(error))
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    network = nn.Sequential(nn.Conv2d(3, 8, 3), block, nn.Flatten(), nn.Linear(8 * 16, 5), nn.Linear(5, 3)).eval()
    whole, inputs = copy.deepcopy(network), torch.randn(4, 3, 6, 6)
    _shared_teacher._FEWEST = 590  # the block has 600 weights, the first linear layer 645, the others fewer
    blocks = [list(network).index(one) for one in _shared_teacher._blocks(network)]
    _shared_teacher.shard(network.to(memory_format=torch.channels_last))
    with torch.no_grad():
        outputs = network(inputs)
    here = sum(weight.to_local().numel() for weight in network.parameters())
    return {
        "refused": refused,
        "blocks": blocks,
        "equal": torch.equal(outputs, whole(inputs)),
        "again": torch.equal(network(inputs), outputs),
        "here": here,
        "all": sum(weight.numel() for weight in whole.parameters()),
    }


def _taught_by_shards() -> dict[str, Tensor]:
    method = method_of("kd", norm=True)
    fit(method, batches(), settings=SGD, compute=CPU.model_copy(update={"shard_teacher": True}), seed=5)
    return copy.deepcopy(method.state_dict())


def _loss(name: str) -> Any:
    member = CATALOGS["losses"].load(name).member
    return member(member.Options())


def _contract(folder: str) -> Any:
    path = Path(__file__).parent / "contracts" / f"test_{folder}.py"
    spec = importlib.util.spec_from_file_location(f"contract_of_{folder}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quick(folder: Path) -> dict[str, Any]:
    """What is looked at in every test run."""
    found = {
        "talked": _talked(),
        "added": _added(),
        "normalised": {name: normalised(rows) for name, rows in ROWS.items()},
        "predicted": {batch: (one := predicted(50, batch)) and (one.logits, one.labels) for batch in (7, 60)},
        "calibrated": calibrated(),
        "sharded": _sharded(),
        "trained": {(name, True): trained(name, norm=True) for name in LOSSES},
        "resumed": stopped_and_resumed(folder / "one", stop_after=None),
        "taught_by_shards": _taught_by_shards(),
    }
    stopped_and_resumed(folder / "two", stop_after=0)
    return found


def slow(folder: Path) -> dict[str, Any]:
    """What takes longer."""
    return {
        "trained": {(name, False): trained(name, norm=False) for name in LOSSES},
        "together": {name: together(name) for name in METHODS},
    }


if __name__ == "__main__":
    _group.join(cpu=True)
    assert _group.count() == 2
    outcome = {"quick": quick, "slow": slow}[sys.argv[1]](Path(sys.argv[2]))
    torch.save(outcome, Path(sys.argv[2]) / f"rank{_group.index()}.pt")
    _group.barrier()
    torch.distributed.destroy_process_group()
