"""Exported files equal the programs they came from, at every opset that is offered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from odd_networks import images, odd_network

from edgekd.catalog import CATALOGS
from edgekd.export import INPUT, OUTPUT, metadata, model_spec, onnx_from_torch, save_onnx
from edgekd.quantize import sqnr_db
from edgekd.spec import Preprocessing

SPEC = model_spec(Preprocessing(size=[16, 16], channels=3, mean=[0.0] * 3, std=[1.0] * 3), ["cat", "dog"])


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_float_file_equals_torch_at_every_opset(opset: int, tmp_path: Path) -> None:
    target = CATALOGS["targets"].load("onnxruntime_x86").member()
    network = odd_network("Grouped")
    model = onnx_from_torch(network, images(1), target=target, opset=opset, int8=False, metadata={})
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [opset]
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == [OUTPUT]
    assert "ReduceMean" not in {node.op_type for node in model.graph.node}
    inputs = images(5)
    with torch.no_grad():
        expected = network(inputs)
    with target.runner(save_onnx(model, tmp_path / "model.onnx")) as runner:
        found = torch.from_numpy(runner.run({INPUT: inputs.numpy()})[OUTPUT])
    assert sqnr_db(expected, found) > 100


def test_export_leaves_the_network_as_it_was() -> None:
    target = CATALOGS["targets"].load("onnxruntime_x86").member()
    network = odd_network("Grouped").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    onnx_from_torch(network, images(2), target=target, opset=20, int8=False, metadata={})
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_metadata_holds_labels_preprocessing_and_ids_as_json() -> None:
    notes = metadata(SPEC, {"student_id": "1f", "recipe": "digits"})
    assert json.loads(notes["edgekd.labels"]) == ["cat", "dog"]
    assert json.loads(notes["edgekd.preprocessing"])["size"] == [16, 16]
    assert notes["edgekd.recipe"] == "digits"
