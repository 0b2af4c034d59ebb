"""Carry weights and ranges from one prepared graph of a network to another one that is annotated differently.

Quantizers are numbered in the order of preparation, so their names say nothing once a layer stays float; the
operator whose result a quantizer stands on keeps its name in every graph of the same export.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekd.calibration._fake_quantize import quantizers

__all__ = ["transfer", "transfer_weights"]


def transfer(source: GraphModule, target: GraphModule) -> list[str]:
    """Copy weights, and the state of every quantizer that both graphs have on the same tensor.

    Args:
        source: calibrated or trained.
        target: prepared from the same network; changed in place.

    Returns:
        Tensors that the target quantizes and the source does not: their ranges must be calibrated.
    """
    transfer_weights(source, target)
    known = _by_tensor(source)
    unknown = []
    for tensor, name in _by_tensor(target).items():
        if tensor not in known:
            unknown.append(tensor)
            continue
        state = source.get_submodule(known[tensor]).state_dict()
        _load(target.get_submodule(name), state)
    return unknown


def transfer_weights(source: GraphModule, target: GraphModule) -> None:
    """Copy what is no quantizer's, by name."""
    inside = tuple(f"{name}." for name, _ in (*quantizers(source), *quantizers(target)))
    state = {name: value for name, value in source.state_dict().items() if not name.startswith(inside)}
    own = target.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name in own:
                own[name].copy_(value)


def _by_tensor(graph: GraphModule) -> dict[str, str]:
    """Name of the operator that a quantizer reads -> name of the quantizer."""
    modules = {name for name, _ in quantizers(graph)}
    return {
        str(node.args[0]): str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_module" and str(node.target) in modules
    }


def _load(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name in own and own[name].shape == value.shape:
                own[name].copy_(value)
