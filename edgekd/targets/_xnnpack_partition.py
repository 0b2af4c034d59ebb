"""Which operators go into the XNNPACK delegate: ExecuTorch's own list, with three rules that it is too strict about.

Found with ExecuTorch 1.5.1. Its list lets padding by zeros run in float only, although the delegate pads codes and even
takes the padding into the convolution behind it; and it lets a sum or product take in a ReLU but no ReLU6, although the
delegate clamps by any two numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from edgekd.targets._xnnpack_library import et_module

__all__ = ["partitioner"]

_CLAMPS = ["relu.default", "hardtanh.default"]


def partitioner() -> Any:
    """A new partitioner for `to_edge_transform_and_lower`.

    Raises:
        BackendMissing: no ExecuTorch.
    """
    made = et_module("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    return made(configs=list(_configs()))


@cache
def _configs() -> tuple[Any, ...]:
    own = {config.target_name: config for config in (_padding(), *_with_clamps())}
    listed = et_module("backends.xnnpack.partition.config").ALL_PARTITIONER_CONFIGS
    return tuple(own.get(getattr(config, "target_name", ""), config) for config in listed)


def _padding() -> Any:
    """Padding by zeros between a DQ and a Q of the same parameters, on the codes themselves."""
    generic = et_module("backends.xnnpack.partition.config.generic_node_configs")
    precision = et_module("backends.xnnpack.partition.config.xnnpack_config").ConfigPrecisionType

    def supported_precision_types(self: Any) -> list[Any]:
        return [precision.FP32, precision.STATIC_QUANT]

    def get_node_and_deps(self: Any, node: Any, ep: Any) -> list[Any]:
        found: list[Any] = base.get_node_and_deps(self, node, ep) if _keeps_grid(node) else [node]
        return found

    base = generic.ConstantPadConfig
    members = {"supported_precision_types": supported_precision_types, "get_node_and_deps": get_node_and_deps}
    return type("CodePaddingConfig", (base,), members)


def _keeps_grid(node: Any) -> bool:
    """Whether padding adds zeros and its result has the grid of its input."""
    source, users = node.args[0], list(node.users)
    value = node.args[2] if len(node.args) > 2 else 0.0
    pair = "dequantize_per_tensor" in str(source.target) and len(users) == 1
    return (
        pair and value == 0.0 and "quantize_per_tensor" in str(users[0].target) and source.args[1:] == users[0].args[1:]
    )


def _with_clamps() -> list[Any]:
    generic = et_module("backends.xnnpack.partition.config.generic_node_configs")
    return [_clamped(generic.AddConfig, "ClampedAddConfig"), _clamped(generic.MulConfig, "ClampedMulConfig")]


def _clamped(base: Any, name: str) -> Any:
    """The rule of a sum or product, which takes in a clamp behind it."""

    def _init(self: Any, **options: Any) -> None:
        base.__init__(self, **options)
        self.fused_acts = _CLAMPS

    return type(name, (base,), {"__init__": _init})
