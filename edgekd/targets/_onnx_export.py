"""From a torch program to the ONNX graph of a target: the usual way in which a target writes its files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd._quiet import quiet
from edgekd.errors import MismatchError

if TYPE_CHECKING:
    from edgekd.targets._base import Target

__all__ = ["INPUT", "OUTPUT", "onnx_from_torch", "save_onnx"]

INPUT, OUTPUT = "image", "logits"
"""Names of the exported model's input and output."""

# The IR version that came with opset 20; newer ones are refused by the runtimes on many devices.
_IR_VERSION = 9


def onnx_from_torch(
    module: nn.Module, example: Tensor, *, target: Target, opset: int, int8: bool, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Export a float module or an int8 program with a dynamic batch, and finish the graph for a target.

    Args:
        module: from (B, C, H, W) to logits (B, K); an int8 program comes from `quantize.convert`.
        example: inputs, shape (B, C, H, W).
        target: its graph passes are applied.
        opset: 18 to 20.
        int8: whether the module is an int8 program.
        metadata: goes into the file's metadata_props.

    Raises:
        MismatchError: the exporter cannot express an operator; says which.
        GateFailed: a graph pass found a value that the target cannot hold.
    """
    # a converted program has no train and eval mode of its own and refuses the call
    module = module if isinstance(module, GraphModule) else copy.deepcopy(module).eval()
    example = example[:1].expand(2, *example.shape[1:]).contiguous() if len(example) < 2 else example
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with quiet("torch.onnx"):
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MismatchError(f"The ONNX exporter refused the model: {reason}") from error
    if program is None:
        raise MismatchError("The ONNX exporter gave nothing back for this model.")
    model = target.finish(program.model_proto, int8=int8)
    _strip(model)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.producer_name = "edgekd"
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model as one file, weights inside; gives the path."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the source: it holds paths of the machine that exported."""
    model.ClearField("metadata_props")
    model.doc_string = ""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
        value.doc_string = ""
    model.graph.ClearField("metadata_props")
    model.graph.doc_string = ""
