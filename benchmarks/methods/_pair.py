"""The pair of networks, its data, and one training of the student: float, calibrated, and distilled as int8."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _networks import target
from _rows import Row
from _transformer import Transformer
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._probes import int8_sums
from edgekd.batches import Batches, calibration_ids, evaluation_batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.engine import Hooks, fit
from edgekd.evaluate import Predictions, accuracy, agreement, predict
from edgekd.losses._base import Split
from edgekd.methods._base import Context, Method, WeightedLoss
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.taps import TupleOutputs, logits_of
from edgekd.weights import load_weights, save_weights

__all__ = ["Pair", "TransformerPair", "distilled"]

_SIZE, _CLASSES = 14, 10
_AUGMENT = AugmentSettings(crop=1, flip=True)
_CALIBRATION = 256
_COMPUTE = ComputeSettings(device="cpu", threads=1)


class Pair:
    """Data, teachers and assistants, made once and kept.

    Args:
        keep: folder of the trained teachers.
        images: that the student is given.
        epochs: of the student.
        teacher_epochs: of each teacher.
    """

    def __init__(self, keep: Path, *, images: int, epochs: int, teacher_epochs: int) -> None:
        self.keep, self.images = keep, images
        self.train = TrainSettings(epochs=epochs, batch_size=64, lr=0.1, warmup_epochs=0.5)
        self.teacher_train = TrainSettings(epochs=teacher_epochs, batch_size=128, lr=0.1)
        self.shape = (1, _SIZE, _SIZE)

    @cached_property
    def all_data(self) -> DataBundle:
        """What teachers are trained on."""
        return self._data(None)

    @cached_property
    def data(self) -> DataBundle:
        """What the student is trained on."""
        return self._data(self.images)

    def student(self, seed: int) -> nn.Module:
        """A fresh student."""
        return self._network("tiny", seed, width=8)

    def teachers(self, count: int) -> list[nn.Module]:
        """The first so many teachers, trained once each."""
        return [self._kept(f"teacher{index}", self._network("resnet", index, depth=8), index) for index in range(count)]

    def facts(self) -> dict[str, Any]:
        """What every row has in common."""
        scores = [accuracy(predictions(one, self.data)).value for one in self.teachers(3)]
        return {
            "data": f"fashion_mnist, {_SIZE} x {_SIZE} pixels",
            "images": {"train": len(self.data.train), "test": len(self.data.test)},
            "teacher": f"resnet8, trained on {len(self.all_data.train)} images",
            "student": "tiny, width 8",
            "parameters": {
                "teacher": sum(one.numel() for one in self.teachers(1)[0].parameters()),
                "student": sum(one.numel() for one in self.student(0).parameters()),
            },
            "teachers_test_accuracy": scores,
            "train": self.train.model_dump(mode="json"),
        }

    def _data(self, limit: int | None) -> DataBundle:
        member = CATALOGS["datasets"].load("fashion_mnist").member
        # normalised alike for both, or the teacher would see other values than it was trained on
        wanted = Wanted(seed=0, val_fraction=0.1, limit_train=limit, size=(_SIZE, _SIZE), mean=(0.286,), std=(0.32,))
        found: DataBundle = member(member.Options()).load(wanted)
        return found

    def _network(self, model: str, seed: int, **options: Any) -> nn.Module:
        factory = CATALOGS["models"].load(model).member
        torch.manual_seed(seed)
        network: nn.Module = factory(factory.Options(**options)).build(_CLASSES, self.shape)
        return network

    def _kept(self, name: str, network: nn.Module, seed: int) -> nn.Module:
        path = self.keep / f"{name}.safetensors"
        if not path.exists():
            method = made("alone", {}, network, [], (("cross_entropy", 1.0, {}),), Context())
            trained(method, self.all_data, self.teacher_train, seed)
            save_weights(path, network, metadata={})
        load_weights(network, path)
        return network.eval()

    def assistant(self, row: Row, seed: int) -> nn.Module:
        """A network between teacher and student, distilled from the teacher by the same method."""
        path = self.keep / f"assistant{seed}.safetensors"
        network = self._network("tiny", seed, width=16)
        if not path.exists():
            method = made(row.method, {}, network, self.teachers(1), row.losses, self.context(seed))
            trained(method, self.data, self.train, seed)
            save_weights(path, network, metadata={})
        load_weights(network, path)
        return network.eval()

    def context(self, seed: int) -> Context:
        """What a method may use."""
        split = Split(self.data.train.labels, _CLASSES)
        return Context(split, lambda index: self.student(1000 * index + seed))


class TransformerPair(Pair):
    """The same data and budget; a transformer of four layers teaches one of two, half as wide."""

    def __init__(self, keep: Path, *, images: int, epochs: int, teacher_epochs: int) -> None:
        super().__init__(keep, images=images, epochs=epochs, teacher_epochs=teacher_epochs)
        adamw = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.01}
        self.train, self.teacher_train = (one.model_copy(update=adamw) for one in (self.train, self.teacher_train))

    def student(self, seed: int) -> nn.Module:
        """A fresh student."""
        torch.manual_seed(seed)
        return Transformer(32, 2, size=_SIZE, classes=_CLASSES)

    def teachers(self, count: int) -> list[nn.Module]:
        """One teacher, whatever the count asks beyond it."""
        torch.manual_seed(0)
        network = Transformer(64, 4, size=_SIZE, classes=_CLASSES)
        return [self._kept("transformer", network, 0)][:count]

    def facts(self) -> dict[str, Any]:
        """What every row has in common."""
        names = {
            "teacher": f"transformer, 4 layers of width 64, trained on {len(self.all_data.train)} images",
            "student": "transformer, 2 layers of width 32",
        }
        return super().facts() | names


def distilled(pair: Pair, row: Row, seed: int) -> dict[str, Any]:
    """One student of one row: test accuracy of float, int8_ptq and int8, and its agreement with the teacher."""
    teachers = pair.teachers(row.teachers)
    if row.assistant:
        teachers.append(pair.assistant(row, seed))
    method = made(row.method, row.options, pair.student(seed), teachers, row.losses, pair.context(seed))
    # batches that show every sample twice make twice the steps of an epoch: the budget is steps
    epochs = pair.train.epochs if type(method).sampling == "plain" else pair.train.epochs // 2
    trained(method, pair.data, pair.train.model_copy(update={"epochs": epochs}), seed)
    student = method.exported().eval()
    found = predictions(student, pair.data)
    ptq, int8 = _quantized(pair, row, method, teachers, seed)
    return {
        "float": accuracy(found).value,
        "int8_ptq": accuracy(ptq).value,
        "int8": accuracy(int8).value,
        "agreement": agreement(predictions(pair.teachers(1)[0], pair.data), found).value,
    }


def _quantized(
    pair: Pair, row: Row, learned: Method, teachers: list[nn.Module], seed: int
) -> tuple[Predictions, Predictions]:
    data, numerics, student = pair.data, target("onnxruntime_x86").numerics, learned.exported()
    ids = calibration_ids(data.train, _CALIBRATION, seed=seed)
    example = next(evaluation_batches(data.train, data.preprocessing, ids=ids[:8])).inputs
    peers = Context(pair.context(seed).split, lambda index: copy.deepcopy(student))
    own = type(learned).student_taps(learned.options)
    taps = tuple(dict.fromkeys([*(tap for term in learned.losses for tap in term.loss.student_taps()), *own]))
    done = quantize.post_training(
        student,
        example,
        lambda: [one.inputs for one in evaluation_batches(data.train, data.preprocessing, batch_size=64, ids=ids)],
        numerics=numerics,
        calibrator=_member("calibration", "mse", {}),
        reduce_range=int8_sums() != "exact",
        taps=taps,
        corrections=[_member("corrections", "bias_correction", {})],
        seed=seed,
    )
    graph = copy.deepcopy(done.graph)
    method = made(row.method, row.options, TupleOutputs(graph, taps), teachers, row.losses, peers)
    _trained_int8(pair, method, graph, seed, learned.companions())
    programs = [quantize.convert(one, example, numerics=numerics) for one in (done.graph, graph)]
    ptq, int8 = (predictions(one, data) for one in programs)
    return ptq, int8


def _trained_int8(pair: Pair, method: Method, graph: GraphModule, seed: int, companions: dict[str, Tensor]) -> None:
    """One epoch, with the settings that a recipe's quantize stage has by default."""
    settings = pair.train.model_copy(
        update={"epochs": 1, "optimizer": "adamw", "lr": 2e-4, "clip_grad_norm": 1.0, "weight_decay": 0.0}
    ).model_copy(update={"warmup_epochs": 0.0})

    def phase(progress: float) -> None:
        quantize.set_phase(graph, "track" if progress < 0.5 else "frozen")

    def no_modes(module: nn.Module, training: bool) -> None:
        quantize.set_phase(graph, "frozen")

    quantize.set_phase(graph, "frozen")
    trained(method, pair.data, settings, seed, Hooks(on_step=phase, set_training=no_modes), companions)
    quantize.set_phase(graph, "frozen")


def made(
    name: str, options: Any, student: nn.Module, teachers: list[nn.Module], losses: Any, context: Context
) -> Method:
    """A method of the catalog with its losses."""
    member = CATALOGS["methods"].load(name).member
    terms = [WeightedLoss(loss, _member("losses", loss, more), weight) for loss, weight, more in losses]
    method: Method = member(
        student, teachers if member.needs_teacher else [], terms, member.Options(**options), context
    )
    return method


def trained(
    method: Method,
    data: DataBundle,
    settings: TrainSettings,
    seed: int,
    hooks: Hooks | None = None,
    companions: dict[str, Tensor] | None = None,
) -> None:
    """Train a method to its last epoch."""
    batches = Batches(
        data.train,
        batch_size=settings.batch_size,
        classes=_CLASSES,
        preprocessing=data.preprocessing,
        seed=seed,
        augment=_AUGMENT,
        sampling=type(method).sampling,
    )
    fit(method, batches, settings=settings, compute=_COMPUTE, seed=seed, hooks=hooks, companions=companions)


def predictions(network: Any, data: DataBundle) -> Predictions:
    """Logits on the test split."""
    batches = evaluation_batches(data.test, data.preprocessing)
    return predict(lambda inputs: logits_of(network(inputs)), batches)


def _member(catalog: str, name: str, options: Any) -> Any:
    found = CATALOGS[catalog].load(name).member
    return found(found.Options(**options))
