"""Weights and ranges carried between differently annotated graphs of one network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from int8_models import calibrated, images, network, target

from edgekd import quantize
from edgekd._transfer import transfer, transfer_weights
from edgekd.catalog import CATALOGS


def prepared(family: str, name: str, *, reduce_range: bool = True, **settings: Any) -> torch.fx.GraphModule:
    member = CATALOGS["calibration"].load("mse").member
    return quantize.prepare(
        network(family),
        images(320, 0)[0][:4],
        numerics=target(name).numerics,
        calibrator=member(member.Options()),
        reduce_range=reduce_range,
        **settings,
    )


def logits(graph: torch.fx.GraphModule) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = graph(images(64, 1)[0])[0]
    return found


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
def test_the_same_codes_serve_signed_and_unsigned_activations(family: str):
    source = calibrated(family, "onnxruntime_x86")
    other = prepared(family, "onnxruntime_arm")
    assert transfer(source, other) == []
    quantize.set_phase(other, "frozen")
    assert torch.equal(logits(source), logits(other))


def test_a_layer_back_to_float_keeps_the_others_as_they_were():
    source = calibrated("resnet", "onnxruntime_x86")
    mixed = prepared("resnet", "onnxruntime_x86", float_layers=["layer2.0.conv1"])
    assert transfer(source, mixed) == []
    quantize.set_phase(mixed, "frozen")
    kept = dict(quantize.ranges(source))
    assert set(quantize.ranges(mixed).values()) <= set(kept.values())
    assert quantize.sqnr_db(logits(source), logits(mixed)) > 20.0
    assert not torch.equal(logits(source), logits(mixed))


def test_tensors_without_a_known_range_are_named():
    source = prepared("resnet", "onnxruntime_x86", float_layers=["*"])
    assert len(transfer(source, calibrated("resnet", "onnxruntime_x86"))) >= 10


def test_weights_alone_leave_the_ranges():
    source = calibrated("resnet", "onnxruntime_x86")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(0.5)
    other = calibrated("resnet", "tensorrt")
    before = dict(quantize.ranges(other))
    transfer_weights(source, other)
    assert dict(quantize.ranges(other)) == before
    mine, theirs = dict(source.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
