"""Operators counted from ONNX graphs: multiply-accumulates by hand, types that really run, what is inside what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd._estimate_graph import Counted, count_operators
from edgekd._estimate_models import check_networks, probe_models
from edgekd.errors import MismatchError, ModelFileError


def graph_of(nodes, inputs, outputs, stored=(), *, opset=20) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(stored)),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )


def floats(name: str, *shape, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


def stored(name: str, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def one_of(counted: Counted, op: str):
    found = [one for one in counted.operators if one.op == op]
    assert len(found) == 1, [one.op for one in counted.operators]
    return found[0]


def test_convolution_by_hand() -> None:
    model = graph_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        [floats("x", 1, 3, 8, 8)],
        [floats("y", 1, 16, 4, 4)],
        [stored("w", 16, 3, 3, 3), stored("b", 16)],
    )
    found = one_of(count_operators(model), "Conv")
    assert found.kind == "conv"
    assert found.macs == 16 * 4 * 4 * 3 * 3 * 3 == 6912
    assert (found.weights, found.reads, found.writes) == (432, 192, 256)
    assert (found.weight_bytes, found.read_bytes, found.write_bytes) == (1728, 768, 1024)


@pytest.mark.parametrize(
    ("group", "kind", "macs"),
    [(8, "depthwise", 8 * 16 * 9), (2, "conv", 8 * 16 * 4 * 9), (1, "conv", 8 * 16 * 8 * 9)],
)
def test_groups(group: int, kind: str, macs: int) -> None:
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=group)],
        [floats("x", 1, 8, 4, 4)],
        [floats("y", 1, 8, 4, 4)],
        [stored("w", 8, 8 // group, 3, 3)],
    )
    found = one_of(count_operators(model), "Conv")
    assert (found.kind, found.macs) == (kind, macs)


@pytest.mark.parametrize(("transposed", "shape"), [(0, (5, 7)), (1, (7, 5))])
def test_matrix_product(transposed: int, shape: tuple[int, int]) -> None:
    model = graph_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)],
        [floats("x", "n", 5)],
        [floats("y", "n", 7)],
        [stored("w", *shape), stored("b", 7)],
    )
    found = one_of(count_operators(model, batch=3), "Gemm")
    assert (found.kind, found.macs, found.weights) == ("gemm", 3 * 5 * 7, 35)


def test_attention_as_one_operator() -> None:
    # 2 heads, 4 queries, 6 keys of 8: a product with the keys and one with the values
    model = graph_of(
        [helper.make_node("Attention", ["q", "k", "v"], ["y"])],
        [floats("q", 1, 2, 4, 8), floats("k", 1, 2, 6, 8), floats("v", 1, 2, 6, 8)],
        [floats("y", 1, 2, 4, 8)],
        opset=23,
    )
    assert one_of(count_operators(model), "Attention").macs == 2 * (2 * 4 * 6 * 8)


def test_einsum_counts_every_combination_of_indices() -> None:
    model = graph_of(
        [helper.make_node("Einsum", ["a", "b"], ["y"], equation="bij,bjk->bik")],
        [floats("a", 2, 3, 4), floats("b", 2, 4, 5)],
        [floats("y", 2, 3, 5)],
    )
    assert one_of(count_operators(model), "Einsum").macs == 2 * 3 * 4 * 5


def test_lstm() -> None:
    # 6 steps of 1 sample: (4*8 x 5) and (4*8 x 8) in each
    model = graph_of(
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)],
        [floats("x", 6, 1, 5)],
        [floats("y", 6, 1, 1, 8)],
        [stored("w", 1, 32, 5), stored("r", 1, 32, 8)],
    )
    found = one_of(count_operators(model), "LSTM")
    assert (found.macs, found.weights) == (6 * (160 + 256), 416)


def test_a_first_output_that_is_left_out() -> None:
    model = graph_of(
        [helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=8)],
        [floats("x", 6, 1, 5)],
        [floats("h", 1, 1, 8)],
        [stored("w", 1, 32, 5), stored("r", 1, 32, 8)],
    )
    assert one_of(count_operators(model), "LSTM").writes == 8


def test_transposed_convolution() -> None:
    model = graph_of(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=[2, 2], strides=[2, 2])],
        [floats("x", 1, 3, 4, 4)],
        [floats("y", 1, 5, 8, 8)],
        [stored("w", 3, 5, 2, 2)],
    )
    assert one_of(count_operators(model), "ConvTranspose").macs == 3 * 4 * 4 * 5 * 2 * 2


def test_what_a_kernel_computes_along_is_not_counted_again() -> None:
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
            helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Reshape", ["c", "shape"], ["d"]),
            helper.make_node("MatMul", ["d", "v"], ["e"]),
            helper.make_node("Add", ["e", "bias"], ["y"]),
        ],
        [floats("x", 1, 4, 2, 2)],
        [floats("y", 1, 3)],
        [stored("w", 4, 4, 1, 1), stored("s", 4), stored("v", 16, 3), stored("bias", 3),
         numpy_helper.from_array(np.array([1, 16]), "shape")],
    )  # fmt: skip
    counted = count_operators(model)
    assert [one.op for one in counted.operators] == ["Conv", "MatMul"]
    assert counted.macs == 4 * 4 * 4 + 16 * 3
    assert counted.notes == ()


def test_a_relu_that_others_read_around_is_counted() -> None:
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        [floats("x", 1, 4, 2, 2)],
        [floats("y", 1, 4, 2, 2)],
        [stored("w", 4, 4, 1, 1)],
    )
    assert [one.op for one in count_operators(model).operators] == ["Conv", "Relu", "Add"]


def quantized_convolution(behind: str) -> onnx.ModelProto:
    """Q, DQ, Conv, and behind it a Q/DQ pair, nothing, or a function and then a pair."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c" if behind != "nothing" else "y"], kernel_shape=[1, 1]),
    ]
    if behind == "function":
        nodes.append(helper.make_node("HardSwish", ["c"], ["h"]))
    if behind != "nothing":
        nodes += [
            helper.make_node("QuantizeLinear", ["h" if behind == "function" else "c", "s", "z"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
        ]
    values = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(128, np.uint8), "z"),
        numpy_helper.from_array(np.array(0, np.int8), "wz"),
        stored("w", 4, 4, 1, 1, dtype=np.int8),
    ]
    return graph_of(nodes, [floats("x", 1, 4, 2, 2)], [floats("y", 1, 4, 2, 2)], values)


def test_between_pairs_a_convolution_is_int8_and_the_pairs_are_inside() -> None:
    counted = count_operators(quantized_convolution("pair"))
    assert [one.op for one in counted.operators] == ["QuantizeLinear", "Conv", "DequantizeLinear"]
    found = one_of(counted, "Conv")
    assert found.element_type == "int8"
    assert (found.weight_bytes, found.read_bytes, found.write_bytes) == (16, 16, 16)
    # what is left of the conversions: from the float input, and to the float output
    assert [(one.read_bytes, one.write_bytes) for one in counted.operators if one.op != "Conv"] == [(64, 16), (16, 64)]


@pytest.mark.parametrize("behind", ["nothing", "function"])
def test_without_a_pair_behind_it_a_convolution_is_float_with_its_conversions(behind: str) -> None:
    counted = count_operators(quantized_convolution(behind))
    found = one_of(counted, "Conv")
    assert found.element_type == "float32"
    assert (found.weight_bytes, found.read_bytes) == (64, 64)
    expected = ["QuantizeLinear", "DequantizeLinear", "Conv"]
    expected += ["HardSwish", "QuantizeLinear", "DequantizeLinear"] if behind == "function" else []
    assert [one.op for one in counted.operators] == expected


@pytest.mark.parametrize(("zero", "element_type"), [(0, "int8"), (128, "float32")])
def test_a_relu_is_part_of_an_int8_operator_where_codes_begin_at_zero(zero: int, element_type: str) -> None:
    model = quantized_convolution("pair")
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    behind = [node for node in model.graph.node if node.input[0] in ("c", "cq")]
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), "z2"))
    for node in behind:
        node.input[2] = "z2"
    behind[0].input[0] = "r"
    model.graph.node.insert(4, helper.make_node("Relu", ["c"], ["r"]))
    onnx.checker.check_model(model)
    assert convolution.output[0] == "c"
    assert one_of(count_operators(model), "Conv").element_type == element_type


def test_float16_is_told() -> None:
    half = TensorProto.FLOAT16
    model = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [floats("x", 2, 4, kind=half)],
        [floats("y", 2, 3, kind=half)],
        [stored("w", 4, 3, dtype=np.float16)],
    )
    found = one_of(count_operators(model), "MatMul")
    assert (found.element_type, found.weight_bytes, found.read_bytes, found.write_bytes) == ("float16", 24, 16, 12)


def test_batch_scales_the_work_and_not_the_weights(tmp_path: Path) -> None:
    model = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])],
        [floats("x", "n", 4, 3, 3)],
        [floats("y", "n", 4, 3, 3)],
        [stored("w", 4, 4, 1, 1)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    one, eight = count_operators(path), count_operators(path, batch=8)
    assert eight.macs == 8 * one.macs == 8 * 144
    assert eight.operators[0].reads == 8 * one.operators[0].reads
    assert eight.operators[0].weights == one.operators[0].weights


def test_a_fixed_batch_is_not_changed() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 2, 9)], [floats("y", 2, 9)])
    assert count_operators(model).operators[0].writes == 18
    with pytest.raises(MismatchError, match="fixed first dimension of 2; a batch of 4 does not fit"):
        count_operators(model, batch=4)


def test_dynamic_dimensions_must_be_given() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], [floats("x", 1, "height")], [floats("y", 1, "height")])
    with pytest.raises(ModelFileError, match=r"dimension 1 \('height'\) is dynamic.*--size height=224"):
        count_operators(model)
    assert count_operators(model, sizes={"height": 7}).operators[0].writes == 7


def test_sizes_of_shapes_are_free() -> None:
    model = graph_of(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"]),
            helper.make_node("Relu", ["x"], ["y"]),
        ],
        [floats("x", 2, 3)],
        [floats("y", 2, 3), floats("n", kind=TensorProto.INT64)],
        [numpy_helper.from_array(np.array(0), "zero")],
    )
    assert [one.op for one in count_operators(model).operators] == ["Relu"]


def test_what_cannot_be_counted_is_named() -> None:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "b", [], [floats("o", 2, 3)])
    model = graph_of(
        [
            helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
            helper.make_node("Mystery", ["x"], ["m"], domain="somewhere"),
            helper.make_node("Det", ["q"], ["d"]),
        ],
        [floats("x", 2, 3), floats("q", 4, 3, 3), floats("c", kind=TensorProto.BOOL)],
        [floats("y", 2, 3), floats("m", 2, 3), floats("d", 4)],
    )
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    counted = count_operators(model)
    assert [one.op for one in counted.operators] == ["Det"]
    assert counted.notes[0].endswith("cannot be told: 1 If, 1 Mystery.")
    assert counted.notes[1].endswith("nothing is known of them: 1 Det.")


def test_a_model_without_anything_to_count_is_refused() -> None:
    model = graph_of([helper.make_node("Identity", ["x"], ["y"])], [floats("x", 2)], [floats("y", 2)])
    with pytest.raises(ModelFileError, match="no operator whose shapes can be told"):
        count_operators(model)


def test_files_of_others_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x01nothing")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        count_operators(path)


def test_float_and_int8_forms_of_a_network_count_the_same_work() -> None:
    models = {one.name: one for one in (*probe_models("uint8", 0), *check_networks("uint8", 0))}
    pairs = [name.removesuffix("_int8") for name in models if name.endswith("_int8")]
    assert len(pairs) >= 12
    for name in pairs:
        float_, int8 = (count_operators(models[f"{name}_{kind}"].model) for kind in ("float32", "int8"))
        assert float_.macs == int8.macs, name
        products = [one for one in int8.operators if one.macs]
        assert all(one.element_type == "int8" for one in products), name
        left = [one.op for one in int8.operators if one.op.endswith("Linear")]
        # one on the way in and one on the way out, and around the flattening of a classifier
        assert len(left) <= 4, (name, left)
