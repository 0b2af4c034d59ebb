"""Networks of other people through `edgekd quantize`: what can be int8 is, what cannot is named, answers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from int8_models import sqnr_db, target
from peer_files import efficientnet_lite0, exported, minilm, timm_model

from edgekd.calibration.mse import MeanSquaredError
from edgekd.quantize_onnx import quantize_onnx
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

X86 = target("onnxruntime_x86")


def quantized(model: onnx.ModelProto, data: np.ndarray, out: Path) -> Path:
    """Calibrated on half of the data, a few samples at a time."""
    half = len(data) // 2
    made = quantize_onnx(
        model,
        [{"input": data[start : start + 2]} for start in range(0, half, 2)],
        target=X86,
        calibrator=MeanSquaredError(MeanSquaredError.Options()),
        reduce_range=True,
    )
    onnx.save(made.model, out)
    return out


def quality_db(model: Path, int8: Path, data: np.ndarray) -> float:
    """SQNR of the first output on the other half of the data."""
    held_out = {"input": data[len(data) // 2 :]}
    with OnnxRuntimeRunner(model) as real, OnnxRuntimeRunner(int8) as ours:
        return sqnr_db(*(next(iter(runner.run(held_out).values())) for runner in (real, ours)))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    ("name", "legitimate", "decibels"),
    [
        ("efficientnet_lite0", set(), 15.0),
        ("mobilenetv3_small_100", {"HardSigmoid"}, 15.0),
        ("vit_tiny_patch16_224", {"Softmax"}, 15.0),
    ],
)
def test_image_network_is_int8_wherever_the_runtime_can(
    name: str, legitimate: set[str], decibels: float, dynamo: bool, tmp_path: Path
) -> None:
    network = efficientnet_lite0() if name == "efficientnet_lite0" else timm_model(name)
    # smooth, as pictures are
    small = torch.randn(24, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    data = torch.nn.functional.interpolate(small, scale_factor=8, mode="bilinear")
    path = exported(network, data[:2], tmp_path / "model.onnx", dynamo=dynamo)
    int8 = quantized(onnx.load(path), data.numpy(), tmp_path / "int8.onnx")
    found = X86.audit(int8)
    assert found.islands == ()
    assert found.coverage == 1.0
    assert set(found.legitimate) >= legitimate
    assert quality_db(path, int8, data.numpy()) > decibels
    assert int8.stat().st_size < 0.35 * path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_sentence_encoder_is_int8_wherever_the_runtime_can(dynamo: bool, tmp_path: Path) -> None:
    ids = torch.randint(0, 30_000, (32, 16), generator=torch.Generator().manual_seed(0))
    path = exported(minilm(), ids[:2], tmp_path / "model.onnx", dynamo=dynamo)
    int8 = quantized(onnx.load(path), ids.numpy(), tmp_path / "int8.onnx")
    found = X86.audit(int8)
    assert found.islands == ()
    # the residual stream, attention's products and what lies between them have no gain from int8 here
    assert {"Softmax"} <= set(found.legitimate)
    products = [node for node in onnx.load(int8).graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 48  # six linear layers and two products of attention in each of six layers
    assert found.int8 >= 36
    assert quality_db(path, int8, ids.numpy()) > 15.0
