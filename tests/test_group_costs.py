"""group_costs: every operator of both files goes to its group, and what has lost its name is spread and said."""

from __future__ import annotations

from functools import cache

import int8_models
import numpy as np
import onnx
import pytest
from blamed_networks import graph, numerics, samples
from onnx import TensorProto, helper
from torch.fx import GraphModule

from edgekd import mixed, quantize
from edgekd._group_costs import _by_name, _shared_out, grouped
from edgekd._sensitivity_model import GroupCosts
from edgekd.errors import ModelFileError
from edgekd.export import onnx_from_torch
from edgekd.targets._groups import groups
from edgekd.targets._profile import OperatorTime

X86 = "onnxruntime_x86"
FAMILIES = ("resnet", pytest.param("mobilenet_v2", marks=pytest.mark.slow))


@cache
def prepared(family: str) -> GraphModule:
    return int8_models.calibrated(family, X86)


@cache
def files(name: str) -> tuple[bytes, bytes]:
    """The float twin and the int8 file of a network of `blamed_networks`."""
    ready, inputs = graph(name), samples(name)[0][:2]
    modules = (mixed.float_twin(ready, numerics=numerics()), quantize.convert(ready, inputs, numerics=numerics()))
    target = int8_models.target(X86)
    made = (
        onnx_from_torch(one, inputs, target=target, opset=20, int8=int8, metadata={}).SerializeToString()
        for one, int8 in zip(modules, (False, True), strict=True)
    )
    float_model, int8_model = made
    return float_model, int8_model


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_finds_its_operator_in_the_file(family: str, int8: bool) -> None:
    ready = prepared(family)
    found = groups(ready)
    file = grouped(int8_models.exported(family, X86, int8=int8).SerializeToString(), found)
    assert file.lost == {}
    assert {file.names[number] for number in file.made_by.values()} == {group.name for group in found}
    # what order tells, names tell too: weights are called after their layer, int8 convolutions after the graph's
    model = onnx.load_model_from_string(file.content)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    by_node = {group.node.name: group.name for group in found}
    named = [by_node[node.output[0]] if int8 else node.input[1].removesuffix(".weight") for node in convolutions]
    assert [file.names[file.made_by[node.output[0]]] for node in convolutions] == named
    assert len(named) >= 8


@pytest.mark.parametrize("family", FAMILIES)
def test_all_time_is_told_and_all_groups_have_a_cost(family: str) -> None:
    inputs = int8_models.images(1, 0)[0].numpy()
    found = mixed.group_costs(
        prepared(family),
        {"image": inputs},
        float_model=int8_models.exported(family, X86, int8=False).SerializeToString(),
        int8_model=int8_models.exported(family, X86).SerializeToString(),
        repeats=3,
        runs=1,
    )
    assert list(found.ms) == [group.name for group in groups(prepared(family))]
    assert found.spread == []
    assert found.assigned > 0.99
    assert found.int8_ms > 0.0
    assert found.float_ms > 0.0
    # the groups' differences are the whole difference, but for the conversions
    assert abs(found.float_ms - found.int8_ms - sum(found.ms.values())) < 0.2 * (found.float_ms + found.int8_ms)
    assert found.quantize_ns > 0.0
    assert found.dequantize_ns > 0.0
    assert found.batch == 1
    assert GroupCosts.model_validate_json(found.model_dump_json()) == found


def test_float_twin_and_int8_file_have_the_same_operators() -> None:
    found = groups(graph("fine"))
    both = [grouped(file, found) for file in files("fine")]
    assert both[0].lost == both[1].lost == {}
    told = [{file.names[number] for number in file.made_by.values()} for file in both]
    assert told[0] == told[1] == {"a", "b", "c", "global_average_pool", "head"}


def test_activation_belongs_to_the_group_in_front_of_it() -> None:
    found = groups(graph("fine"))
    file = grouped(files("fine")[0], found)
    model = onnx.load_model_from_string(file.content)
    marks = [file.number(node.name) for node in model.graph.node if node.op_type == "Relu"]
    assert [file.names[mark] for mark in marks if mark is not None] == ["a", "b", "c"]


def test_operators_that_lost_their_place_are_spread_by_kind() -> None:
    found = groups(graph("fine"))
    model = onnx.load_model_from_string(files("fine")[0])
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    copy = onnx.NodeProto()
    copy.CopyFrom(conv)
    copy.name, copy.output[0] = "one_too_many", "nobody_reads_this"
    model.graph.node.append(copy)
    file = grouped(model.SerializeToString(), found)
    assert sorted(file.lost) == ["a", "b", "c"]
    shares = _shared_out({("edgekdother9", "Conv"): 6.0, ("y", "FusedConv"): 3.0, ("z", "Softmax"): 1.0}, file)
    assert shares.us == {"a": 3.0, "b": 3.0, "c": 3.0, "global_average_pool": 0.0, "head": 0.0}
    assert (shares.total_us, shares.told_us) == (10.0, 0.0)


def test_spread_groups_are_named() -> None:
    float_model, int8_model = files("fine")
    model = onnx.load_model_from_string(float_model)
    for node in model.graph.node:
        if node.op_type == "Gemm":
            # x + x: one more matrix product than the graph has
            extra = helper.make_node("Gemm", list(node.input), ["again"], name="again")
            extra.attribute.extend(node.attribute)
            end, node.output[0] = node.output[0], "once"
            model.graph.node.extend([extra, helper.make_node("Add", ["once", "again"], [end], name="sum")])
            break
    image = samples("fine")[0][:1].numpy()
    found = mixed.group_costs(
        graph("fine"),
        {"image": image},
        float_model=model.SerializeToString(),
        int8_model=int8_model,
        repeats=1,
        runs=1,
    )
    assert found.spread == ["head"]
    assert found.assigned < 1.0


def test_shares_are_the_ones_worked_by_hand() -> None:
    file = grouped(files("fine")[1], groups(graph("fine")))
    order = list(file.names)
    times = {
        (f"edgekdgroup{order.index('a')}_7", "QLinearConv"): 5.0,
        (f"{next(name for name, one in file.made_by.items() if order[one] == 'b')}_nchwc", "Conv"): 2.0,
        ("quantize", "QuantizeLinear"): 3.0,
    }
    shares = _shared_out(times, file)
    assert shares.us == {"a": 5.0, "b": 2.0, "c": 0.0, "global_average_pool": 0.0, "head": 0.0}
    assert (shares.total_us, shares.told_us) == (10.0, 10.0)


def test_nodes_of_one_name_and_kind_add_up() -> None:
    times = [OperatorTime("n", "Transpose", "cpu", us, 0.1, False) for us in (1.0, 2.5)]
    assert _by_name(times) == {("n", "Transpose"): 3.5}


def test_sums_with_constants_are_not_taken_for_residual_sums() -> None:
    found = [group for group in groups(prepared("resnet")) if group.operator.name == "add"]
    model = int8_models.exported("resnet", X86, int8=False)
    model.graph.initializer.append(helper.make_tensor("shift", TensorProto.FLOAT, [1], [0.5]))
    first = next(node for node in model.graph.node if node.op_type == "Add")
    model.graph.node.insert(0, helper.make_node("Add", ["image", "shift"], ["shifted"], name="with_constant"))
    file = grouped(model.SerializeToString(), found)
    assert file.lost == {}
    assert file.names[file.made_by[first.output[0]]] == "layer1.0.add"
    assert "shifted" not in file.made_by


def test_bias_of_a_matrix_product_belongs_to_it_and_shapes_to_nobody() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["linear"]),
        helper.make_node("MatMul", ["linear", "x"], ["attention"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Concat", ["shape", "shape"], ["shapes"], axis=0),
    ]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 5])]
    made = [helper.make_tensor_value_info("attention", TensorProto.FLOAT, [5, 5])]
    made.append(helper.make_tensor_value_info("shapes", TensorProto.INT64, [4]))
    stored = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * int(np.prod(shape)))
        for name, shape in (("weight", [5, 5]), ("bias", [5]))
    ]
    body = helper.make_graph(nodes, "attention", values, made, stored)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    head = [group for group in groups(graph("fine")) if group.name == "head"]
    file = grouped(model.SerializeToString(), head)
    assert file.lost == {}
    assert file.made_by == {"product": 0, "linear": 0}


def test_broken_file_is_refused() -> None:
    with pytest.raises(ModelFileError):
        mixed.group_costs(
            graph("fine"), {"image": np.zeros((1, 8, 4, 4), np.float32)}, float_model=b"none", int8_model=b"none"
        )
