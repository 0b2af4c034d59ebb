"""The audit on networks of other people, quantized by other people's tool: no float operator is left unexplained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peer_files import PLACEMENTS, Encoder, efficientnet_lite0, exported, minilm, quantized, timm_model
from torch import nn

from edgekd.targets._audit import audit_onnxruntime, examine, marked, optimized
from edgekd.targets._base import Audit
from edgekd.targets._modelfile import read_model

IMAGE_NETWORKS = ("mobilenetv3_small_100", "vit_tiny_patch16_224", "efficientnet_lite0")


def audited(path: Path, *, signed: bool = False) -> Audit:
    found = audit_onnxruntime(path, target="onnxruntime_x86", asked_int8=True, int8_activations=signed)
    assert found.int8 == found.quantizable - len(found.islands)
    unexplained = [island for island in found.islands if "no rule" in island.cause or not island.remedy]
    assert unexplained == []
    return found


def rules_agree(path: Path, *, signed: bool = False) -> None:
    """Of every operator that ran as one of its own, the rules alone say whether it is int8."""
    model = read_model(path)
    ran = optimized(marked(model), int8_activations=signed)
    facts = examine(model, ran, asked_int8=True, signed_rewritten=not signed).quantizable
    rules = examine(model, None, asked_int8=True, signed_rewritten=not signed).quantizable
    assert {number: rules.get(number) for number in facts} == dict(facts)


def image_network(name: str) -> nn.Module:
    return efficientnet_lite0() if name == "efficientnet_lite0" else timm_model(name)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    ids = torch.randint(0, 50, (2, 8))
    exported(Encoder(50, 32, 4, 2).eval(), ids, path, dynamo=False)
    return path, {"input": ids.numpy()}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_encoder_has_every_float_operator_explained(
    placement: str, encoder: tuple[Path, dict[str, np.ndarray]]
) -> None:
    path = quantized(encoder[0], placement, encoder[1])
    found = audited(path, signed=placement == "qdq_signed")
    if placement in ("qdq_unsigned", "qdq_signed", "qoperator"):
        assert found.islands == ()
        assert found.operators["QLinearMatMul"] == 16  # six products a layer and two of attention
        assert found.operators["QLinearSoftmax"] == 2
    if placement == "products_only":
        assert {island.op for island in found.islands} == {"Add"}
        assert found.legitimate["LayerNormalization"] + found.legitimate.get("SkipLayerNormalization", 0) == 4
        assert found.legitimate["Softmax"] == 2
    if placement != "products_only":  # there the runtime joins what the rules see in pieces
        rules_agree(path, signed=placement == "qdq_signed")


def test_dynamic_quantization_leaves_attention_in_float_by_design(
    encoder: tuple[Path, dict[str, np.ndarray]],
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    out = encoder[0].with_suffix(".dynamic.onnx")
    quantize_dynamic(str(encoder[0]), str(out))
    found = audited(out)
    assert (found.quantizable, found.islands) == (12, ())
    assert found.legitimate["Softmax"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_image_network_has_every_float_operator_explained(name: str, dynamo: bool, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    path = exported(image_network(name), images, tmp_path / "model.onnx", dynamo=dynamo)
    by_design = set()
    for placement in PLACEMENTS:
        found = audited(quantized(path, placement, {"input": images.numpy()}), signed=placement == "qdq_signed")
        if placement == "qdq_unsigned":
            assert found.coverage > 0.85
            assert {island.op for island in found.islands} <= {"ReduceMean"}
            by_design = set(found.legitimate)
    wanted = {
        "mobilenetv3_small_100": {"HardSigmoid"},
        # operator set 14 has no normalisation of its own: its pieces are float by design
        "vit_tiny_patch16_224": {"LayerNormalization"} if dynamo else {"Pow", "Sqrt", "Div"},
        "efficientnet_lite0": set(),
    }
    assert by_design >= wanted[name]


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_minilm_has_every_float_operator_explained(dynamo: bool, tmp_path: Path) -> None:
    ids = torch.randint(0, 30_000, (2, 16), generator=torch.Generator().manual_seed(0))
    path = exported(minilm(), ids, tmp_path / "model.onnx", dynamo=dynamo)
    for placement in PLACEMENTS:
        found = audited(quantized(path, placement, {"input": ids.numpy()}), signed=placement == "qdq_signed")
        if placement == "qdq_unsigned":
            assert found.islands == ()
            assert found.operators["QLinearMatMul"] == 48
