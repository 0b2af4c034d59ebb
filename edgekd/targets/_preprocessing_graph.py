"""The preprocessing as the first nodes of an ONNX file, so that a device gives it the pixels as they are.

The nodes compute in float32 what the Python preprocessing computes, operation by operation, so that both give the same
bits: nothing is folded that would round elsewhere. Resizing stays outside: ONNX's antialiased Resize is no match for
the library that the data sets resize with, and the runtimes of many devices do not have it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekd.errors import MismatchError
from edgekd.spec import ModelSpec, Preprocessing, TensorSpec

__all__ = ["PREPROCESSING_NODE", "inside_spec", "pixels_of", "put_inside", "rewrite_inside"]

PREPROCESSING_NODE = "preprocessing"
"""What the names of the added nodes start with."""


def put_inside(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """A copy of a model with the normalisation in front: uint8 (B, H, W, C) in, what it took before inside.

    Raises:
        MismatchError: its input is not one float32 tensor (B, C, H, W) of that size.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    image = _image(graph, preprocessing)
    inner = f"{PREPROCESSING_NODE}.{image.name}"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == image.name:
                node.input[place] = inner
    nodes = _nodes(graph, image.name, inner, preprocessing)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    batch = image.type.tensor_type.shape.dim[0]
    height, width = preprocessing.size
    shape = [batch.dim_param or batch.dim_value, height, width, preprocessing.channels]
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.UINT8, shape))
    onnx.checker.check_model(made)
    return made


def rewrite_inside(path: Path, preprocessing: Preprocessing) -> None:
    """`put_inside` for a file that holds all of its tensors itself, in its place."""
    made = put_inside(onnx.load(path), preprocessing)
    made.metadata_props.add(key="edgekd.preprocessing_inside", value="true")
    path.write_bytes(made.SerializeToString())


def inside_spec(spec: ModelSpec) -> ModelSpec:
    """What a model takes and gives whose preprocessing is inside."""
    [image] = spec.inputs
    height, width = spec.preprocessing.size
    shape = [image.shape[0], height, width, spec.preprocessing.channels]
    return spec.model_copy(update={"inputs": [TensorSpec(name=image.name, dtype="uint8", shape=shape)]})


def pixels_of(inputs: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The images that normalised inputs came from.

    Args:
        inputs: float32, shape (B, C, H, W).
        preprocessing: that made them.

    Returns:
        uint8, shape (B, H, W, C); values that no level of 8 bits has are rounded to the nearest.
    """
    shape = (1, -1, 1, 1)
    low, high = preprocessing.value_range
    mean, std = (
        np.asarray(value, dtype=np.float64).reshape(shape) for value in (preprocessing.mean, preprocessing.std)
    )
    levels = (inputs.astype(np.float64) * std + mean - low) * (255.0 / (high - low))
    return np.ascontiguousarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _image(graph: onnx.GraphProto, preprocessing: Preprocessing) -> onnx.ValueInfoProto:
    defaults = {tensor.name for tensor in graph.initializer}
    taken = [value for value in graph.input if value.name not in defaults]
    wanted = list(preprocessing.input_shape)
    value: onnx.ValueInfoProto
    for value in taken:
        kind = value.type.tensor_type
        sizes = [one.dim_value for one in kind.shape.dim]
        if len(taken) == 1 and kind.elem_type == TensorProto.FLOAT and sizes[1:] == wanted:
            return value
    told = ", ".join(f"'{value.name}'" for value in taken)
    raise MismatchError(
        f"export.preprocessing = 'inside' needs a model with one float32 input (B, {', '.join(map(str, wanted))});"
        f" this one takes {told}. Leave it 'outside'."
    )


def _nodes(graph: onnx.GraphProto, image: str, inner: str, preprocessing: Preprocessing) -> list[NodeProto]:
    """uint8 (B, H, W, C) to float32 (B, C, H, W): turned while a value is one byte, then the steps in their order."""
    low, high = preprocessing.value_range
    steps: list[tuple[str, np.ndarray]] = [("Div", np.asarray(255.0, np.float32))]
    if (low, high) != (0.0, 1.0):
        steps += [("Mul", np.asarray(high - low, np.float32)), ("Add", np.asarray(low, np.float32))]
    per_channel = (1, preprocessing.channels, 1, 1)
    steps += [
        ("Sub", np.asarray(preprocessing.mean, np.float32).reshape(per_channel)),
        ("Div", np.asarray(preprocessing.std, np.float32).reshape(per_channel)),
    ]
    base = PREPROCESSING_NODE
    nodes = [
        helper.make_node("Transpose", [image], [f"{base}.turned"], name=f"{base}.Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{base}.turned"], [f"{base}.0"], name=f"{base}.Cast", to=TensorProto.FLOAT),
    ]
    for place, (op, value) in enumerate(steps):
        constant = f"{base}.constant{place}"
        graph.initializer.append(numpy_helper.from_array(value, constant))
        last = place == len(steps) - 1
        output = inner if last else f"{base}.{place + 1}"
        nodes.append(helper.make_node(op, [f"{base}.{place}", constant], [output], name=f"{base}.{op}{place}"))
    return nodes
