"""From a torch program to an ExecuTorch .pte file whose operators XNNPACK computes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd.errors import MismatchError
from edgekd.targets._xnnpack_file import METHOD, NOTES
from edgekd.targets._xnnpack_library import et_module, quiet
from edgekd.targets._xnnpack_partition import partitioner
from edgekd.targets._xnnpack_program import prepared

__all__ = ["write_pte"]


def write_pte(
    program: nn.Module, example: Tensor, path: Path, *, names: tuple[str, str], metadata: Mapping[str, str]
) -> Path:
    """Lower a float module or an int8 program for batch 1 and write the file; gives the path.

    The batch is fixed: a symbolic one would keep every reshape out of the delegate and cut it in two, and memory is
    planned for the largest batch anyway.

    Args:
        program: from (B, C, H, W) to logits (B, K); an int8 one comes from `quantize.convert`.
        example: inputs, shape (B, C, H, W); only its shape is used.
        path: the file.
        names: of the input and of the output; the format itself has none.
        metadata: text by name.

    Raises:
        MismatchError: an operator that ExecuTorch cannot express, or a quantized weight that it leaves outside the
            delegate; says which.
        BackendMissing: no ExecuTorch.
    """
    # a converted program has no train and eval mode of its own and refuses the call
    module = prepared(program) if isinstance(program, GraphModule) else copy.deepcopy(program).eval()
    notes: dict[str, Any] = {"inputs": [names[0]], "outputs": [names[1]], "metadata": dict(metadata)}
    exir, parts = et_module("exir"), [partitioner()]
    # kernels for what of a quantized graph stays outside the delegate
    et_module("kernels.quantized")
    with quiet():
        try:
            exported = torch.export.export(module, (example[:1],))
            lowered = exir.to_edge_transform_and_lower(exported, partitioner=parts).exported_program()
            notes["operators"] = _names(lowered.graph_module)
            left = _loose_weights(lowered)
            made: Any = exir.EdgeProgramManager(
                {METHOD: lowered}, {NOTES: json.dumps(notes)}, exir.EdgeCompileConfig(_check_ir_validity=False)
            ).to_executorch()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MismatchError(f"ExecuTorch cannot lower the model: {reason}") from error
    if left:
        raise MismatchError(
            f"ExecuTorch leaves quantized weights outside the XNNPACK delegate, where the result is wrong: {left}. Keep"
            " their layers in float: quantize.float_layers."
        )
    with path.open("wb") as file:
        made.write_to_file(file)
    return path


def _names(lowered: Any) -> dict[str, str]:
    """The module that each operator inside a delegate comes from, by the number that the file calls it."""
    found: dict[str, str] = {}
    for _, child in lowered.named_children():
        for node in child.original_module.graph.nodes if hasattr(child, "original_module") else ():
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack and "debug_handle" in node.meta:
                path = str(stack[-1][0])
                # a student is wrapped while it is exported for quantization
                if str(stack[0][1]).endswith("taps.Tapped"):
                    path = path.removeprefix("model").removeprefix(".")
                if path:
                    found.setdefault(str(node.meta["debug_handle"]), path)
    return found


def _loose_weights(lowered: Any) -> str:
    """Names of the quantized weights that are dequantized outside every delegate."""
    stored = {**lowered.graph_signature.inputs_to_parameters, **lowered.graph_signature.inputs_to_buffers}
    nodes = (node for node in lowered.graph.nodes if "dequantize_per_channel" in str(node.target))
    return ", ".join(str(stored.get(node.args[0].name, node.args[0].name)) for node in nodes)
