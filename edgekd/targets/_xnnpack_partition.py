"""Which operators go into the XNNPACK delegate: ExecuTorch's own list, put right where it is too strict or too lax.

Found with ExecuTorch 1.5.1. Its list lets padding run in float only, although the delegate pads codes and even takes
the padding into the convolution behind it; it lets a sum or product take in a ReLU but no ReLU6, although the
delegate clamps by any two numbers. And it hands the delegate concatenations and other moves of codes whose grids before
and behind differ, with which the file does not load.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from edgekd.targets._xnnpack_library import et_module

__all__ = ["partitioner"]

_CLAMPS = ["relu.default", "hardtanh.default"]
_CLAMPED = ("add.Tensor", "mul.Tensor")
_PADDING = "constant_pad_nd.default"
_MOVES = (
    "cat.default",
    _PADDING,
    "hardtanh.default",
    "max_pool2d.default",
    "permute_copy.default",
    "relu.default",
    "unsqueeze_copy.default",
    "view_copy.default",
)
_DEQUANTIZE, _QUANTIZE = "dequantize_per_tensor", "quantize_per_tensor"


def partitioner() -> Any:
    """A new partitioner for `to_edge_transform_and_lower`.

    Raises:
        BackendMissing: no ExecuTorch.
    """
    made = et_module("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    return made(configs=list(_configs()))


@cache
def _configs() -> tuple[Any, ...]:
    return tuple(_own(config) for config in et_module("backends.xnnpack.partition.config").ALL_PARTITIONER_CONFIGS)


def _own(config: Any) -> Any:
    """One rule of ExecuTorch, or ours in its place."""
    name = getattr(config, "target_name", "")
    if name in _MOVES:
        return _on_one_grid(config, padding=name == _PADDING)
    return _clamped(config) if name in _CLAMPED else config


def _on_one_grid(base: Any, *, padding: bool) -> Any:
    """The rule of an operator that moves values: on codes only if they mean the same before and behind it."""
    precision = et_module("backends.xnnpack.partition.config.xnnpack_config").ConfigPrecisionType

    def get_node_and_deps(self: Any, node: Any, ep: Any) -> list[Any]:
        fits = _keeps_grid(node) and (not padding or _adds_zeros(node))
        found: list[Any] = base.get_node_and_deps(self, node, ep) if fits else [node]
        return found

    def supported_precision_types(self: Any) -> list[Any]:
        return [precision.FP32, precision.STATIC_QUANT]

    members = {"get_node_and_deps": get_node_and_deps, "supported_precision_types": supported_precision_types}
    return type(f"OneGrid{base.__name__}", (base,), members)


def _keeps_grid(node: Any) -> bool:
    """Whether every input comes from a DQ and the one reader is a Q, all of the same parameters."""
    sources, users = node.all_input_nodes, list(node.users)
    if len(users) != 1 or not all(_DEQUANTIZE in str(one.target) for one in sources):
        return False
    reader = users[0]
    is_quantizer = _QUANTIZE in str(reader.target) and _DEQUANTIZE not in str(reader.target)
    return is_quantizer and all(one.args[1:] == reader.args[1:] for one in sources)


def _adds_zeros(node: Any) -> bool:
    return len(node.args) < 3 or node.args[2] in (0, 0.0)


def _clamped(base: Any) -> Any:
    """The rule of a sum or product, which takes in a clamp behind it."""

    def _init(self: Any, **options: Any) -> None:
        base.__init__(self, **options)
        self.fused_acts = _CLAMPS

    return type(f"Clamped{base.__name__}", (base,), {"__init__": _init})
