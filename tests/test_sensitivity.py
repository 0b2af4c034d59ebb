"""sensitivity: hand-worked errors, the layer that is bad on purpose comes first, and sums that do not grow."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from blamed_networks import BAD, graph, network, numerics, prepared, samples
from torch import Tensor, nn

from edgekd import sensitivity
from edgekd._switching import Switchboard
from edgekd.calibration._fake_quantize import quantizers
from edgekd.errors import DataError, MismatchError, UsageError
from edgekd.evaluate import Predictions, accuracy, kl_to
from edgekd.quantize import sqnr_db
from edgekd.sensitivity import Labelled, Sensitivity, measure


def measured(name: str, *, labelled: bool = True, batch: int = 32) -> Sensitivity:
    inputs, labels = samples(name)
    pieces: Iterator[Labelled] = (
        (x, y if labelled else None) for x, y in zip(inputs.split(batch), labels.split(batch), strict=True)
    )
    return measure(graph(name), pieces, numerics=numerics())


@pytest.mark.parametrize("name", sorted(set(BAD) - {"fine"}))
def test_layer_that_is_bad_on_purpose_is_the_worst(name: str) -> None:
    found = measured(name)
    worst = found.worst()
    assert worst[0].name == BAD[name][0]
    # all the loss is its loss, and the next one is far behind
    assert max(worst[0].kl_gain, worst[0].kl_gain_output) > 0.9 * found.kl_int8
    assert max(worst[1].kl_gain, worst[1].kl_gain_output) < 0.1 * found.kl_int8


def test_range_between_two_int8_layers_is_blamed_on_the_output_and_not_on_either_layer() -> None:
    found = measured("bad_range")
    rows = {one.name: one for one in found.groups}
    # restored alone, its codes are still taken and made: nothing is won
    assert abs(rows["a"].kl_gain) < 0.01 * found.kl_int8
    assert abs(rows["b"].kl_gain) < 0.01 * found.kl_int8
    assert rows["a"].kl_gain_output > 0.9 * found.kl_int8
    assert rows["a"].readers == ["b"]


def test_low_errors_are_flagged_and_good_ones_are_not() -> None:
    rows = {one.name: one for one in measured("bad_weights").groups}
    assert rows["b"].flags == ["output"]
    assert rows["b"].output_sqnr_db < sensitivity.OUTPUT_DB
    assert not any(one.flags for name, one in rows.items() if name != "b")


def test_coarse_weights_are_flagged() -> None:
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        # one large weight in each row and the others just under half a step: all but one of 127 codes are lost
        layer.weight.copy_(torch.tensor([[1.0, 0.4]] * 3))
    found = _linear(layer, top=1)
    assert found.weight_sqnr_db is not None
    assert found.weight_sqnr_db < sensitivity.WEIGHT_DB
    assert "weights" in found.flags


def test_weight_sqnr_is_the_one_worked_by_hand() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        # the scale is 127 / 127 = 1: 127 is a code and 0.5 is rounded to 0
        layer.weight.copy_(torch.tensor([[127.0, 0.5]]))
    found = _linear(layer)
    assert found.weight_sqnr_db == pytest.approx(10 * math.log10((127.0**2 + 0.25) / 0.25), abs=1e-9)
    assert found.flags == []


def _linear(layer: nn.Linear, *, top: int = 127) -> sensitivity.GroupSensitivity:
    inputs = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    ready = prepared(nn.Sequential(layer).eval(), inputs)
    for _, quantizer in quantizers(ready):
        if hasattr(quantizer, "ch_axis"):
            quantizer.grid = quantizer.grid.__class__(-top, top, symmetric=True)
            quantizer.quant_min, quantizer.quant_max = -top, top
    return measure(ready, [(inputs, None)], numerics=numerics()).groups[0]


def test_numbers_equal_those_of_whole_runs() -> None:
    inputs, labels = samples("bad_range")
    found = measured("bad_range")
    board = Switchboard(graph("bad_range"), numerics=numerics())
    runs = {name: board.forward(plan)(inputs) for name, plan in (("float", board.in_float), ("int8", board.base))}
    wanted = {name: Predictions(logits.numpy(), labels.numpy()) for name, logits in runs.items()}
    assert found.n == len(inputs)
    assert found.accuracy_float == accuracy(wanted["float"]).value == 1.0
    assert found.accuracy_int8 == accuracy(wanted["int8"]).value
    assert found.kl_int8 == pytest.approx(kl_to(wanted["float"], wanted["int8"]), rel=1e-6)
    # kernels add up in another order for another batch size
    assert found.sqnr_int8_db == pytest.approx(sqnr_db(runs["float"], runs["int8"]), abs=1e-3)
    for row in found.groups:
        alone, without = board.forward(board.only(row.name))(inputs), board.forward(board.plan([row.name]))(inputs)
        alone_says, without_says = (Predictions(one.numpy(), labels.numpy()) for one in (alone, without))
        assert row.end_to_end_sqnr_db == pytest.approx(min(200.0, sqnr_db(runs["float"], alone)), abs=1e-3)
        assert row.kl_alone == pytest.approx(kl_to(wanted["float"], alone_says), rel=1e-3, abs=1e-7)
        assert row.kl_gain == pytest.approx(found.kl_int8 - kl_to(wanted["float"], without_says), rel=1e-3, abs=1e-6)
        assert row.drop_alone == pytest.approx(1.0 - accuracy(alone_says).value)
        assert row.gain == pytest.approx(accuracy(without_says).value - found.accuracy_int8)


def test_isolated_output_error_is_that_of_the_layer_fed_by_floats() -> None:
    inputs, _ = samples("fine")
    model = network("fine")
    row = next(one for one in measured("fine").groups if one.name == "b")
    with torch.no_grad():
        source = torch.relu(model.a(inputs))
        wanted = torch.relu(model.b(source))
        scale = float(source.max()) / 255
        rounded = (source / scale).round().clamp(0, 255) * scale
        steps = model.b.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        weight = (model.b.weight / steps).round() * steps
        found = torch.relu(nn.functional.conv2d(rounded, weight, model.b.bias))
        step = float(wanted.max()) / 255
        found = (found / step).round().clamp(0, 255) * step
    # the calibrated extremes are those of all samples, which are the ones measured here
    assert row.output_sqnr_db == pytest.approx(sqnr_db(wanted, found), abs=0.05)


def test_sums_do_not_depend_on_the_batches() -> None:
    whole, parts = measured("bad_weights", batch=64), measured("bad_weights", batch=5)
    for one, other in zip(whole.groups, parts.groups, strict=True):
        for key, value in one.model_dump().items():
            if isinstance(value, float):
                assert getattr(other, key) == pytest.approx(value, rel=1e-6, abs=1e-9), (one.name, key)
            else:
                assert getattr(other, key) == value


def test_batches_are_let_go_when_more_come() -> None:
    inputs, labels = samples("fine")
    seen: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Labelled]:
        for x, y in zip(inputs.split(8), labels.split(8), strict=True):
            assert sum(one() is not None for one in seen) <= 1
            fresh = x.clone()
            seen.append(weakref.ref(fresh))
            yield fresh, y

    measure(graph("fine"), batches(), numerics=numerics())
    assert len(seen) == 8


def test_accuracy_is_left_out_when_there_are_no_labels() -> None:
    found = measured("bad_weights", labelled=False)
    assert found.accuracy_float is None
    assert found.accuracy_int8 is None
    assert all(one.gain is None and one.drop_alone is None for one in found.groups)
    assert found.worst()[0].name == "b"


def test_progress_counts_samples() -> None:
    inputs, _ = samples("fine")
    told: list[int] = []
    measure(graph("fine"), [(inputs[:12], None), (inputs[12:17], None)], numerics=numerics(), progress=told.append)
    assert told == [12, 17]


def test_large_batches_are_taken_in_pieces_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured("bad_weights", batch=64)
    per_sample = Switchboard(graph("bad_weights"), numerics=numerics()).kept_elements
    # the input, three ReLUs, the pool, its flattened form if it has one, and the logits
    assert 4 * 128 + 8 + 5 <= per_sample <= 4 * 128 + 2 * 8 + 5 + 8
    monkeypatch.setattr(sensitivity, "_KEPT_VALUES", 10 * per_sample + 1)
    told: list[int] = []
    inputs, labels = samples("bad_weights")
    pieces = measure(graph("bad_weights"), [(inputs, labels)], numerics=numerics(), progress=told.append)
    assert told == [10, 20, 30, 40, 50, 60, 64]
    assert pieces.accuracy_int8 == whole.accuracy_int8
    assert pieces.kl_int8 == pytest.approx(whole.kl_int8, rel=1e-6)


def test_result_survives_json() -> None:
    found = measured("bad_range_for_float")
    assert Sensitivity.model_validate_json(found.model_dump_json()) == found


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="at least one sample"):
        measure(graph("fine"), [], numerics=numerics())


def test_broken_samples_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite logits"):
        measure(graph("fine"), [(torch.full((2, 8, 4, 4), torch.nan), None)], numerics=numerics())


def test_labels_for_some_batches_only_are_refused() -> None:
    inputs, labels = samples("fine")
    with pytest.raises(MismatchError, match="Some batches have labels"):
        measure(graph("fine"), [(inputs[:8], labels[:8]), (inputs[8:], None)], numerics=numerics())


def test_uncalibrated_graph_is_refused() -> None:
    ready = graph("fine")
    for _, quantizer in quantizers(ready):
        for value in quantizer.buffers():
            value.zero_()
    with pytest.raises(UsageError, match="never calibrated"):
        measure(ready, [(samples("fine")[0], None)], numerics=numerics())
