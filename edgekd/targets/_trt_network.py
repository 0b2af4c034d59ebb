"""An ONNX file as TensorRT's own parser understands it: the layers, what feeds them, and their types."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.errors import BackendMissing, GateFailed
from edgekd.spec import TensorSpec
from edgekd.targets._modelfile import model_from_bytes, read_model
from edgekd.targets._trt_library import NO_DRIVER, messages, trt_library, trt_logger
from edgekd.targets._trt_rules import refusals

__all__ = ["Layer", "ParsedNetwork", "parse"]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network.

    Args:
        name: as the parser named it, from the ONNX node.
        kind: TensorRT's layer type, "CONVOLUTION".
        inputs: names of its input tensors.
        outputs: names of its output tensors.
        dtype: element type of its first output.
        scale_size: number of scales of a QUANTIZE or DEQUANTIZE; 1 is per tensor.
        axis: channel axis of those scales; -1 when there is one scale.
        operation: of an ELEMENTWISE ("SUM") or POOLING ("MAX") layer.
        transposed: for each operand of a MATRIX_MULTIPLY, whether it is transposed.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: str = "float32"
    scale_size: int = 1
    axis: int = -1
    operation: str = ""
    transposed: tuple[bool, ...] = ()


@dataclass(frozen=True)
class ParsedNetwork:
    """An ONNX file as TensorRT understands it.

    Args:
        layers: in execution order.
        inputs: of the network; a dynamic dimension is "B" in front and "axis1", ... elsewhere.
        outputs: of the network.
        warnings: what the parser said.
        handle: the live (builder, network, parser), which must outlive each other.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...] = ()
    handle: tuple[Any, Any, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of layers by type."""
        return dict(Counter(layer.kind for layer in self.layers))

    @property
    def precision(self) -> str:
        """Element types the layers compute in, "int8+float16"."""
        quantized = any(layer.kind == "DEQUANTIZE" for layer in self.layers)
        computed = [layer.dtype for layer in self.layers if layer.kind in ("CONVOLUTION", "MATRIX_MULTIPLY")]
        common = Counter(computed or ["float32"]).most_common(1)[0][0]
        return f"int8+{common}" if quantized else common


def parse(source: Path | bytes) -> ParsedNetwork:
    """Read an ONNX file through TensorRT's parser into a strongly typed network.

    Args:
        source: the file, or the serialized model.

    Raises:
        BackendMissing: no TensorRT, or one too old for explicit types.
        ModelFileError: the file is corrupt or reaches outside its folder.
        GateFailed: TensorRT refuses the graph; every refused node is named with its cause.
    """
    trt = trt_library()[0]
    model = model_from_bytes(source) if isinstance(source, bytes) else read_model(source)
    where = "model in memory" if isinstance(source, bytes) else str(source)
    if refused := refusals(model):
        lines = "\n".join(f"  {item.name} ({item.op}): {item.cause}. {item.remedy}" for item in refused)
        raise GateFailed(f"{where}: TensorRT refuses the graph:\n{lines}")
    with messages() as said:
        builder = trt.Builder(trt_logger())
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, trt_logger())
        # the path only matters for tensors in files beside the model, which `read_model` has checked
        parsed = parser.parse(source) if isinstance(source, bytes) else parser.parse_from_file(str(source))
        problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    if not parsed or problems:
        lines = "\n".join(f"  {problem}" for problem in problems) or f"  {said.text()}"
        raise GateFailed(f"{where}: TensorRT refuses the graph:\n{lines}\nExport it for the target tensorrt.")
    layers = tuple(_layer(trt, network.get_layer(index)) for index in range(network.num_layers))
    inputs = tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))
    return ParsedNetwork(layers, inputs, outputs, tuple(said.warnings), (builder, network, parser))


def _network_flags(trt: Any) -> int:
    """Strong typing wherever it is a choice; TensorRT 11 knows nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is not None:
        return 1 << int(flag)
    if int(str(trt.__version__).split(".")[0]) < 11:
        raise BackendMissing(
            f"TensorRT {trt.__version__} has no strongly typed networks. Install TensorRT 10 or newer."
        )
    return 0


def _problem(error: Any) -> str:
    lines = [line for line in str(error.desc()).split("\n") if line.strip() and NO_DRIVER not in line]
    return f"{error.node_name() or 'model'} ({error.node_operator() or 'graph'}): {' '.join(lines)}"


def _layer(trt: Any, layer: Any) -> Layer:
    kind = layer.type.name
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    facts: dict[str, Any] = {}
    if kind in ("QUANTIZE", "DEQUANTIZE"):
        # the binding hands out the base class; its own field is only visible through the derived one
        layer.__class__ = trt.IQuantizeLayer if kind == "QUANTIZE" else trt.IDequantizeLayer
        facts = {"scale_size": _size(inputs[1].shape), "axis": int(layer.axis)}
    elif kind == "ELEMENTWISE":
        layer.__class__ = trt.IElementWiseLayer
        facts = {"operation": layer.op.name}
    elif kind == "POOLING":
        layer.__class__ = trt.IPoolingLayer
        facts = {"operation": layer.type.name}
    elif kind == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        facts = {"transposed": (layer.op0.name == "TRANSPOSE", layer.op1.name == "TRANSPOSE")}
    return Layer(
        name=layer.name,
        kind=kind,
        inputs=tuple(tensor.name for tensor in inputs if tensor is not None),
        outputs=tuple(tensor.name for tensor in outputs if tensor is not None),
        dtype=_dtype(outputs[0].dtype) if outputs and outputs[0] is not None else "float32",
        **facts,
    )


def _size(shape: Any) -> int:
    size = 1
    for dimension in shape:
        size *= int(dimension)
    return size


def _dtype(dtype: Any) -> str:
    name = str(dtype.name)
    return _DTYPES.get(name, name.lower())


def _tensor(tensor: Any) -> TensorSpec:
    shape: list[int | str] = [
        int(size) if size >= 0 else ("B" if axis == 0 else f"axis{axis}") for axis, size in enumerate(tensor.shape)
    ]
    return TensorSpec(name=tensor.name, dtype=_dtype(tensor.dtype), shape=shape)
