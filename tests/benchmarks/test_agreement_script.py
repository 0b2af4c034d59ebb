"""The agreement benchmark on a small trained network, and its crops."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int8_models import images, network

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("agreement")


@pytest.mark.slow
def test_row_has_every_variant_against_the_reference(script: Any, tmp_path: Path) -> None:
    calibration, _ = images(32, 2)
    inputs, labels = images(40, 1)
    student = script.Student(network("tiny"), calibration, inputs.numpy(), labels.numpy(), "minmax", {"model": "tiny"})
    row = script.row_of(student, 30, tmp_path, ["onnxruntime_x86"])
    assert row["n"] == 30
    assert set(row["files"]) == set(script._VARIANTS)
    for name, file in row["files"].items():
        pair = file["pairs"]["onnxruntime_plain/onnxruntime_x86"]
        assert file["n"] == 30
        assert file["answers"]["onnxruntime_plain"]["accuracy"] > 0.9
        if "reduced_range" in name:  # such weights never saturate
            assert pair["agreeing"] == 30
            assert pair["max_rel_diff"] < 0.02


def test_crops_are_of_the_network_s_size_and_lie_inside_the_photograph(script: Any) -> None:
    photograph = np.zeros((300, 500, 3), np.uint8)
    photograph[:, :, 1] = np.linspace(10, 250, 500)[None, :]
    dice = np.random.default_rng(0)
    crops = [script._crop(photograph, dice) for _ in range(20)]
    assert {crop.shape for crop in crops} == {(224, 224, 3)}
    # of a slope from left to right, every crop keeps its direction and nothing from beyond the edge
    assert all(10 <= crop[0, 0, 1] < crop[0, -1, 1] <= 250 for crop in crops)
    assert len({int(crop[0, 0, 1]) for crop in crops}) > 5
