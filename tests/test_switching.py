"""Groups switched to float in one prepared graph compute what a graph prepared with them in float computes."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import int8_models
import pytest
import torch
from blamed_networks import graph, network, numerics, prepared, samples
from odd_networks import images, odd_network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd._floated import float_twin, floated
from edgekd._folding import fold_batch_norm
from edgekd._normal_form import normalise
from edgekd._switching import Switchboard
from edgekd.calibration._fake_quantize import quantizers, set_phase
from edgekd.errors import UsageError
from edgekd.targets._groups import groups

X86, TENSORRT = "onnxruntime_x86", "tensorrt"
EQUAL_DB = 100.0  # what is demanded; the same kernels on the same numbers give no difference at all
ODD = ("SharedConvolution", "AddItself", "Branches", "TwoReaders", "Shuffled", "InPlaceThenReadAgain", "ViewByBatch")
FOUR = {
    "resnet": ["conv1", "layer1.0.add", "layer2.0.downsample.0", "fc"],
    "mobilenet_v2": ["features.0.0", "features.2.conv.1.0", "features.11.conv.2", "avgpool"],
}


@cache
def _calibrated(family: str) -> GraphModule:
    return int8_models.calibrated(family, X86)


def calibrated(family: str) -> GraphModule:
    """A trained member of a family, prepared and calibrated; one's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(_calibrated(family))


@pytest.mark.parametrize("name", ODD)
def test_groups_have_the_same_names_when_quantizers_stand_between_them(name: str) -> None:
    exported = quantize.capture(odd_network(name), images(4))
    normalise(exported)
    fold_batch_norm(exported)
    names = [group.name for group in groups(exported)]
    assert [group.name for group in groups(prepared(odd_network(name), images(32)))] == names
    assert len(names) >= 2


def test_groups_have_the_same_names_when_a_layer_is_a_class_of_its_own() -> None:
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(Own(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    names = [group.name for group in groups(quantize.capture(network, images(4)))]
    assert names == ["0", "3"]
    assert [group.name for group in groups(prepared(network, images(32)))] == names


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=() if one == "tiny" else pytest.mark.slow) for one in sorted(FOUR)]
)
def test_floated_groups_equal_preparing_with_float_layers(family: str) -> None:
    inputs, _ = int8_models.images(320, 0)
    ready = calibrated(family)
    wanted = quantize.prepare(
        int8_models.network(family),
        inputs[:4],
        numerics=numerics(),
        calibrator=int8_models._calibrator("mse"),
        reduce_range=True,
        float_layers=FOUR[family],
    )
    quantize.calibrate(wanted, inputs[:64].split(32))
    board = Switchboard(ready, numerics=numerics())
    switched = board.forward(board.plan(FOUR[family]))(inputs[:16])
    twin = floated(ready, FOUR[family], numerics=numerics())
    with torch.no_grad():
        assert quantize.sqnr_db(wanted(inputs[:16])[0], switched) >= EQUAL_DB
        assert quantize.sqnr_db(twin(inputs[:16])[0], switched) >= EQUAL_DB
        # and it is not what all of int8 computes
        assert quantize.sqnr_db(ready(inputs[:16])[0], switched) < EQUAL_DB - 20
    assert len(list(quantizers(twin))) == len(list(quantizers(wanted))) < len(list(quantizers(ready)))
    if family == "resnet":
        _same_programs(twin, wanted, inputs)


def _same_programs(twin: GraphModule, wanted: GraphModule, inputs: Tensor) -> None:
    programs = [quantize.convert(one, inputs[:2], numerics=numerics()) for one in (twin, wanted)]
    assert quantize.sqnr_db(programs[0](inputs[:16]), programs[1](inputs[:16])) >= EQUAL_DB


@pytest.mark.parametrize("target", [X86, TENSORRT])
@pytest.mark.parametrize("name", ODD)
def test_all_of_int8_and_all_of_float_equal_their_graphs(name: str, target: str) -> None:
    float_network, inputs = odd_network(name), images(8, 1)
    ready = prepared(float_network, images(32), target)
    board = Switchboard(ready, numerics=numerics(target))
    with torch.no_grad():
        assert quantize.sqnr_db(ready(inputs)[0], board.forward(board.base)(inputs)) >= EQUAL_DB
        in_float = board.forward(board.plan(["*"]))(inputs)
        assert quantize.sqnr_db(float_network(inputs), in_float) >= EQUAL_DB
        assert quantize.sqnr_db(ready(inputs)[0], in_float) < EQUAL_DB - 20
    assert board.plan(["*"]) == board.in_float
    # the target's rules, asked again, want what is there
    assert board.plan([]) == board.base == board._marked(())


def test_one_group_in_float_equals_preparing_when_its_output_has_two_kinds_of_readers() -> None:
    # behind the float group, convolutions read codes of its output and the addition beside them reads floats
    float_network = odd_network("Branches")
    ready, inputs = prepared(float_network, images(32)), images(8, 1)
    board = Switchboard(ready, numerics=numerics())
    for name in board.base.int8:
        wanted = prepared(float_network, images(32), float_layers=(name,))
        with torch.no_grad():
            assert quantize.sqnr_db(wanted(inputs)[0], board.forward(board.plan([name]))(inputs)) >= EQUAL_DB


def test_partial_run_equals_whole_run() -> None:
    ready, inputs = calibrated("resnet"), int8_models.images(8, 1)[0]
    board = Switchboard(ready, numerics=numerics())
    for start in (board.in_float, board.base):
        known = board.values(inputs, start, keep=board.borders)
        for name in board.base.int8:
            for plan in (board.only(name), board.plan([name]), board.without_output(name)):
                whole = board.forward(plan)(inputs)
                part = board.changed(known, (start, plan), keep=(board.logits,)).get(board.logits, known[board.logits])
                assert torch.equal(whole, part)


def test_group_follows_into_float_when_nobody_takes_its_codes() -> None:
    board = Switchboard(calibrated("resnet"), numerics=numerics())
    left = board.plan(["avgpool"]).int8
    assert [name for name in board.base.int8 if name not in left] == ["layer3.0.add", "avgpool"]


def test_readers_are_found_through_operators_that_move_values() -> None:
    board = Switchboard(calibrated("resnet"), numerics=numerics())
    assert board.readers("avgpool") == ("fc",)  # a flatten stands between
    assert board.readers("layer1.0.add") == ("layer2.0.conv1", "layer2.0.downsample.0")
    assert board.readers("fc") == ()  # its result is float


def test_conversions_are_counted_at_the_borders() -> None:
    board = Switchboard(graph("fine"), numerics=numerics())
    image, values = 8 * 4 * 4, 8 * 4 * 4
    assert board.conversions(board.base) == (image, 0)
    assert board.conversions(board.plan(["b"])) == (image + values, values)
    assert board.conversions(board.plan(["a"])) == (values, 0)
    assert board.conversions(board.plan(["b", "c"])) == (image + values, values)
    assert board.conversions(board.plan(["c"])) == (image + values, values)
    assert board.conversions(board.plan(["head"])) == (image, 8)
    assert board.conversions(board.in_float) == (0, 0)


def test_graph_is_unchanged_by_switching() -> None:
    ready, inputs = graph("fine"), samples("fine")[0]
    state = copy.deepcopy(ready.state_dict())
    set_phase(ready, "track")
    before = [str(node.format_node()) for node in ready.graph.nodes]
    board = Switchboard(ready, numerics=numerics())
    board.forward(board.plan(["b"]))(inputs)
    floated(ready, ["b"], numerics=numerics())
    assert {quantizer.phase for _, quantizer in quantizers(ready)} == {"track"}
    assert all(torch.equal(value, state[name]) for name, value in ready.state_dict().items())
    assert [str(node.format_node()) for node in ready.graph.nodes] == before


def test_floated_graph_keeps_names_so_that_its_state_is_a_part() -> None:
    ready = graph("fine")
    twin = floated(ready, ["b"], numerics=numerics())
    assert set(twin.state_dict()) < set(ready.state_dict())
    twin.load_state_dict({name: value for name, value in ready.state_dict().items() if name in twin.state_dict()})
    assert floated(twin, ["a"], numerics=numerics()) is not twin


def test_floated_twice_equals_floated_at_once() -> None:
    ready, inputs = graph("fine"), samples("fine")[0]
    twice = floated(floated(ready, ["b"], numerics=numerics()), ["head"], numerics=numerics())
    once = floated(ready, ["b", "head"], numerics=numerics())
    assert torch.equal(twice(inputs)[0], once(inputs)[0])
    assert set(twice.state_dict()) == set(once.state_dict())


def test_floated_graph_keeps_its_taps() -> None:
    inputs = samples("fine")[0]
    ready = quantize.prepare(
        network("fine"),
        inputs[:4],
        numerics=numerics(),
        calibrator=int8_models._calibrator("mse"),
        reduce_range=False,
        taps=["a", "b"],
    )
    quantize.calibrate(ready, [inputs])
    wanted = network("fine")
    with torch.no_grad():
        logits, a, b = floated(ready, ["*"], numerics=numerics())(inputs)
        assert quantize.sqnr_db(wanted.a(inputs), a) >= EQUAL_DB
        assert quantize.sqnr_db(wanted.b(torch.relu(wanted.a(inputs))), b) >= EQUAL_DB
        assert quantize.sqnr_db(wanted(inputs), logits) >= EQUAL_DB


def test_float_twin_equals_the_float_network_and_keeps_operator_names() -> None:
    ready, inputs = graph("fine"), samples("fine")[0]
    twin = float_twin(ready, numerics=numerics())
    with torch.no_grad():
        assert quantize.sqnr_db(network("fine")(inputs), twin(inputs)) >= EQUAL_DB
    names = [node.name for node in ready.graph.nodes if node.op == "call_function"]
    assert [node.name for node in twin.graph.nodes if node.op == "call_function"] == names


def test_unknown_layer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no layer 'haed'. Did you mean 'head'\?"):
        floated(graph("fine"), ["haed"], numerics=numerics())


def test_uncalibrated_graph_is_refused() -> None:
    ready = graph("fine")
    for _, quantizer in quantizers(ready):
        for value in quantizer.buffers():
            value.zero_()
    with pytest.raises(UsageError, match="never calibrated"):
        Switchboard(ready, numerics=numerics())


def test_graph_without_int8_is_refused() -> None:
    ready = prepared(network("fine"), samples("fine")[0], float_layers=("head", "a", "b", "c", "global_average_pool"))
    with pytest.raises(UsageError, match="no int8 layer"):
        Switchboard(ready, numerics=numerics())
