"""The whole of post-training quantization: stages in their order, what each correction brought, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from odd_networks import images, odd_network
from torch import Tensor, nn

from edgekd import quantize
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.corrections._base import Context, Correction, Stage
from edgekd.errors import DataError, UsageError
from edgekd.spec import Options

X86 = CATALOGS["targets"].load("onnxruntime_x86").member.numerics
SETTINGS: dict[str, Any] = {"numerics": X86, "calibrator": MinMax(Options()), "reduce_range": False}
SEEN: list[tuple[str, type[nn.Module], bool]] = []


class _Looks(Correction):
    """Writes down when it was called, and changes one bias of whatever it is given."""

    amount: ClassVar[float] = 0.5

    def apply(self, model: nn.Module, context: Context) -> None:
        SEEN.append((self.stage, type(model), context.reference is not None))
        name = next(name for name, _ in model.named_parameters() if name.endswith("fc.bias"))
        with torch.no_grad():
            model.get_parameter(name)[0] += self.amount


class AtNetwork(_Looks):
    stage: ClassVar[Stage] = "network"


class AtFolded(_Looks):
    stage: ClassVar[Stage] = "folded"
    amount: ClassVar[float] = 1e-4  # within the 60 dB that a folded graph may differ


class TooMuch(AtFolded):
    amount: ClassVar[float] = 0.5


class AtCalibrated(_Looks):
    stage: ClassVar[Stage] = "calibrated"


def batches() -> Iterator[Tensor]:
    yield from images(40).split(16)


def looking() -> list[Correction]:
    SEEN.clear()
    return [AtCalibrated(Options()), AtFolded(Options()), AtNetwork(Options())]


def test_without_corrections_it_is_preparing_and_calibrating() -> None:
    network = odd_network("InPlace")
    done = quantize.post_training(network, images(4), batches, **SETTINGS)
    graph = quantize.prepare(network, images(4), **SETTINGS)
    assert quantize.calibrate(graph, batches()) == done.samples == 40
    assert torch.equal(graph(images(8))[0], done.graph(images(8))[0])
    assert done.corrections == ()


def test_corrections_run_by_stage_on_what_their_stage_says() -> None:
    network = odd_network("InPlace")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    done = quantize.post_training(network, images(4), batches, corrections=looking(), **SETTINGS)
    assert [(stage, reference) for stage, _, reference in SEEN] == [
        ("network", False),
        ("folded", False),
        ("calibrated", True),
    ]
    assert SEEN[0][1] is type(network)
    assert [line.stage for line in done.corrections] == ["network", "folded", "calibrated"]
    # each added its part to the first logit's bias, and the student itself has none of them
    added = float(done.graph.get_parameter("model.head.fc.bias")[0].detach() - before["head.fc.bias"][0])
    assert added == pytest.approx(1.0001)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_report_tells_float_and_int8_apart() -> None:
    done = quantize.post_training(odd_network("InPlace"), images(4), batches, corrections=looking(), **SETTINGS)
    network, folded, calibrated = done.corrections
    # a network that was changed is the reference for what comes after it
    assert network.after_db == pytest.approx(network.before_db, abs=3.0)
    assert network.float_db < 40
    assert folded.before_db == network.after_db
    assert 60 < folded.float_db < 100
    # half a unit on one logit of int8 alone is an error
    assert calibrated.before_db == folded.after_db
    assert calibrated.after_db < calibrated.before_db - 5
    assert calibrated.float_db == math.inf


def test_two_steps_give_what_the_whole_does() -> None:
    network = odd_network("InPlace")
    corrections = [AtNetwork(Options()), AtFolded(Options()), AtCalibrated(Options())]
    context = Context(batches, X86, False)
    graph = quantize.prepare(network, images(4), corrections=corrections[:1], context=context, **SETTINGS)
    quantize.calibrate(graph, batches(), corrections=corrections, context=context)
    whole = quantize.post_training(
        network, images(4), batches, corrections=[corrections[0], corrections[2]], **SETTINGS
    ).graph
    assert torch.equal(graph(images(8))[0], whole(images(8))[0])


def test_correction_that_changes_the_float_function_is_refused_when_the_stage_forbids_it() -> None:
    context = Context(batches, X86, False)
    with pytest.raises(quantize.NotFaithful, match="differs from the float student"):
        quantize.prepare(
            odd_network("InPlace"), images(4), corrections=[TooMuch(Options())], context=context, **SETTINGS
        )


def test_corrections_without_a_context_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"Correction 'test_post_training' needs a context: calibration data"):
        quantize.prepare(odd_network("InPlace"), images(4), corrections=[AtFolded(Options())], **SETTINGS)
    graph = quantize.prepare(odd_network("InPlace"), images(4), **SETTINGS)
    with pytest.raises(UsageError, match="needs a context"):
        quantize.calibrate(graph, batches(), corrections=[AtCalibrated(Options())])


def test_no_data_is_refused() -> None:
    with pytest.raises(DataError, match="Calibration saw no data"):
        quantize.post_training(odd_network("InPlace"), images(4), list, corrections=looking(), **SETTINGS)
