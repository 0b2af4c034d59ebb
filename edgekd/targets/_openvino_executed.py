"""The graph that OpenVINO's CPU plugin really executes, and which of its layers stand for which operator of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx

from edgekd.targets._openvino_runner import OpenVinoRunner

__all__ = ["Executed", "Layer", "is_int8_kernel"]

_MARK = re.compile(r"edgekd(\d+)_")
_NO_LAYER = frozenset({"Const", "Input", "Output"})
_EIGHT_BIT = frozenset({"u8", "i8"})


@dataclass(frozen=True)
class Layer:
    """One layer of the executed graph.

    Args:
        kind: its type there, "Convolution".
        precision: element type that it computes on, "u8" or "f32".
        kernel: the primitive, "jit_avx2_I8".
        names: of the operators that were fused into it.
    """

    kind: str
    precision: str
    kernel: str
    names: tuple[str, ...]

    @property
    def int8(self) -> bool:
        """Whether it reads 8-bit codes."""
        return self.precision in _EIGHT_BIT


class Executed:
    """The executed graph of a marked ONNX model, at batch 1.

    Args:
        model: whose node names are the nodes' numbers, see `_audit.marked`.

    Raises:
        ModelFileError: OpenVINO refuses the model.
        BackendMissing: no OpenVINO.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        with OpenVinoRunner(model.SerializeToString()) as runner:
            found = [_layer(node) for node in runner.compiled.get_runtime_model().get_ordered_ops()]
        self.layers = [layer for layer in found if layer.kind not in _NO_LAYER]
        made = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
        results = {value.name: made[value.name] for value in model.graph.output if value.name in made}
        self._int8: dict[int, bool] = {}
        for layer in self.layers:
            for number in _numbers(layer.names, results):
                self._int8[number] = self._int8.get(number, False) or layer.int8

    @property
    def operators(self) -> dict[str, int]:
        """How often each type of layer runs."""
        return dict(Counter(layer.kind for layer in self.layers))

    def kind(self, number: int) -> bool | None:
        """Whether the layer that a node of the file became part of is int8; None when nothing is left of the node."""
        return self._int8.get(number)


def is_int8_kernel(kernel: str) -> bool:
    """Whether a primitive's name says that it computes on 8-bit data.

    >>> is_int8_kernel("jit_avx2_1x1_I8"), is_int8_kernel("brgconv_avx2_f32")
    (True, False)
    """
    return kernel.endswith(("_I8", "_i8", "_u8"))


def _layer(node: Any) -> Layer:
    said = {key: value.astype(str) for key, value in node.get_rt_info().items()}
    names = tuple(name for name in said.get("originalLayersNames", "").split(",") if name)
    return Layer(said.get("layerType", ""), said.get("runtimePrecision", ""), said.get("primitiveType", ""), names)


def _numbers(names: Iterable[str], results: dict[str, int]) -> set[int]:
    """The nodes that a layer's names stand for; what makes an output of the model is called after that output."""
    found = set()
    for name in names:
        marked = _MARK.match(name)
        if marked:
            found.add(int(marked.group(1)))
        else:
            found.update(
                number for result, number in results.items() if name == result or name.startswith(f"{result}/")
            )
    return found
