"""Calibration statistics used again: the same ranges without the data, and only for the very same graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from int8_models import images, network, target
from torch import nn

from edgekd import quantize
from edgekd._recalled import graph_hash
from edgekd.calibration._histogram import Histogram
from edgekd.calibration.minmax import MinMax
from edgekd.calibration.mse import MeanSquaredError
from edgekd.catalog import CATALOGS
from edgekd.errors import DataError
from edgekd.spec import Options

X86 = target("onnxruntime_x86").numerics
DATA = images(64, 0)[0]


class Notes:
    """What was kept, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Histogram]] = {}

    def recall(self, graph: str) -> Mapping[str, Histogram] | None:
        return self.kept.get(graph)

    def keep(self, graph: str, histograms: Mapping[str, Histogram]) -> None:
        self.kept[graph] = {name: Histogram.from_json(one.to_json()) for name, one in histograms.items()}


def calibrated(memory: Notes | None, data: list[torch.Tensor], **changes: Any) -> quantize.PostTraining:
    settings: dict[str, Any] = {"numerics": X86, "calibrator": MinMax(Options()), "reduce_range": False} | changes
    student = settings.pop("student", network("tiny"))
    return quantize.post_training(student, DATA[:4], lambda: data, memory=memory, **settings)


def test_ranges_are_the_same_without_the_data_whatever_the_calibrator() -> None:
    notes = Notes()
    calibrated(notes, [DATA])
    member = CATALOGS["calibration"].load("mse").member
    for calibrator in (MinMax(Options()), member(member.Options())):
        assert isinstance(calibrator, MinMax | MeanSquaredError)
        again = calibrated(notes, [], calibrator=calibrator)
        fresh = calibrated(None, [DATA], calibrator=calibrator)
        assert again.samples == fresh.samples == 64
        assert quantize.ranges(again.graph) == quantize.ranges(fresh.graph)
    assert len(notes.kept) == 1


@pytest.mark.parametrize("change", ["weights", "float layer", "numerics"])
def test_another_graph_is_calibrated_anew(change: str) -> None:
    notes = Notes()
    calibrated(notes, [DATA])
    changes: dict[str, Any] = {}
    if change == "weights":
        changes["student"] = network("resnet")
    elif change == "float layer":
        changes["float_layers"] = (
            ["stem*"] if any(n.startswith("stem") for n, _ in network("tiny").named_modules()) else ["0*"]
        )
    else:
        changes["numerics"] = target("tensorrt").numerics
    with pytest.raises(DataError, match="Calibration saw no data"):
        calibrated(notes, [], **changes)


def test_hash_of_a_graph_changes_with_any_weight_and_not_with_what_was_observed() -> None:
    graph = quantize.prepare(network("tiny"), DATA[:4], numerics=X86, calibrator=MinMax(Options()), reduce_range=False)
    before = graph_hash(graph)
    quantize.calibrate(graph, [DATA])
    assert graph_hash(graph) == before
    weight = next(one for one in graph.parameters() if one.ndim > 1)
    with torch.no_grad():
        nn.init.constant_(weight.view(-1)[:1], 0.125)
    assert graph_hash(graph) != before
