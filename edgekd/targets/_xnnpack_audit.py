"""Which operators of a .pte file XNNPACK computes on int8, and why the others are float or outside the delegate."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from edgekd.errors import ModelFileError
from edgekd.targets._base import Audit, Island
from edgekd.targets._xnnpack_file import Delegate, DelegatedOperator, Program, read_pte
from edgekd.targets._xnnpack_runner import PteRunner

__all__ = ["audit_pte", "ran_as_int8"]

_WEIGHTED = frozenset({"Conv2d", "ConvTranspose2d", "DepthwiseConv2d", "FullyConnected"})
_ELEMENTWISE = frozenset(
    {
        "Add", "Clamp", "Concatenate2", "Concatenate3", "Concatenate4", "Concatenate5", "GlobalAvgPooling2d",
        "MaxPooling2d", "Multiply", "StaticConstantPad", "StaticSlice", "Subtract",
    }
)  # fmt: skip
"""What has an int8 kernel; asked to use it only where codes come in and could go out."""
_ONE_GRID = frozenset(kind for kind in _ELEMENTWISE if kind.startswith(("Concatenate", "MaxPooling", "Static")))
_MOVES = frozenset({"Copy", "StaticReshape", "StaticTranspose"})
_WEIGHTED_OUTSIDE = ("aten::addmm", "aten::convolution", "aten::linear", "aten::mm.")
_OUTSIDE_MOVES = ("aten::view_copy", "aten::clone", "dim_order_ops::", "quantized_decomposed::", "executorch_prim::")
_RANK = re.compile(r" #\d+$")
_INT8_KERNEL = re.compile(r"\b(QS8|QC8|QC8W|S8|X8)\b")
_UNTYPED = {
    "Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "GlobalAvgPooling2d": "Mean", "Clamp": "Clamp",
    "StaticReshape": "Static Reshape",
}  # fmt: skip
"""Kernels whose name does not tell what they compute on, by the operator in the file."""


def audit_pte(path: Path, *, target: str) -> Audit:
    """Audit an ExecuTorch file: the graphs inside its delegates, what stays outside, and the kernels that really ran.

    Counted as quantizable: every convolution and fully connected layer; sums, products, concatenations, paddings,
    clamps and poolings with an int8 kernel that take codes and could give some.

    Args:
        path: the file; it is run once, on zeros.
        target: name put into the result.

    Raises:
        ModelFileError: the file is damaged, of another version, or does not run.
        BackendMissing: no ExecuTorch.
    """
    program = read_pte(path)
    islands: list[Island] = []
    legitimate: Counter[str] = Counter()
    int8 = 0
    for delegate in program.delegates:
        found = _Delegate(delegate, quantized=program.int8)
        int8 += found.int8
        islands += found.islands
        legitimate += found.legitimate
    for kernel in program.outside:
        if kernel.startswith(_WEIGHTED_OUTSIDE):
            islands.append(_outside(kernel, program))
        elif not kernel.startswith(_OUTSIDE_MOVES):
            legitimate[kernel] += 1
    return Audit(
        target=target,
        quantizable=int8 + len(islands),
        int8=int8,
        islands=tuple(islands),
        legitimate=dict(legitimate),
        operators=dict(_ran(path)),
    )


def ran_as_int8(kernel: str, program: Program) -> bool:
    """Whether a kernel that ran computes on 8-bit codes, or moves them.

    Args:
        kernel: its name, "Convolution (NHWC, QC8) IGEMM"; of some it does not tell, and the file does.
        program: the file that it belongs to.
    """
    if _INT8_KERNEL.search(kernel) is not None:
        return True
    inside = [(one, graph) for graph in program.delegates for one in graph.operators]
    same = [pair for pair in inside if kernel.startswith(f"{_UNTYPED.get(pair[0].kind, '?')} (")]
    return bool(same) and all(graph.values[number].int8 for one, graph in same for number in (*one.data, *one.results))


def _ran(path: Path) -> Counter[str]:
    """Kernels of one run, the rank that XNNPACK gives each left out."""
    with PteRunner(path, profile=True) as runner:
        feeds = {spec.name: np.zeros([int(size) for size in spec.shape], spec.dtype) for spec in runner.inputs}
        runner.run(feeds)
        runs = [run for run in runner.events() if run]
    if not runs:
        raise ModelFileError(f"{path}: this build of ExecuTorch records no operators, so nothing says what ran.")
    return Counter(_RANK.sub("", name) for name, _ in runs[-1])


class _Delegate:
    """One graph inside a file, sorted into int8, islands and right in float."""

    def __init__(self, delegate: Delegate, *, quantized: bool) -> None:
        self._values = delegate.values
        self._quantized = quantized
        self._maker = {result: one for one in delegate.operators for result in one.results}
        self._operators = delegate.operators
        self._from_codes, self._to_codes = self._sources(), self._sinks()
        self.int8 = 0
        self.islands: list[Island] = []
        self.legitimate: Counter[str] = Counter()
        for one in delegate.operators:
            self._sort(one)

    def _sort(self, one: DelegatedOperator) -> None:
        if one.kind not in _WEIGHTED | _ELEMENTWISE:
            if one.kind not in _MOVES | {"Convert"} and not self._is_int8(one):
                self.legitimate[one.kind] += 1
        elif self._is_int8(one):
            self.int8 += 1
        elif one.kind in _WEIGHTED or self._pays(one):
            self.islands.append(Island(one.name, one.kind, *self._finding(one)))
        else:
            self.legitimate[one.kind] += 1

    def _is_int8(self, one: DelegatedOperator) -> bool:
        weights = () if one.weight is None else (one.weight,)
        return all(self._values[number].int8 for number in (*one.data, *weights, *one.results))

    def _pays(self, one: DelegatedOperator) -> bool:
        return not self._from_codes.isdisjoint(one.data) and not self._to_codes.isdisjoint(one.results)

    def _sources(self) -> set[int]:
        """Float tensors that were codes: behind a conversion, through operators with int8 kernels."""
        found: set[int] = set()
        for one in self._operators:
            converted = one.kind == "Convert" and all(self._values[number].int8 for number in one.data)
            passed = one.kind in _ELEMENTWISE | _MOVES and not found.isdisjoint(one.data)
            if converted or passed:
                found.update(number for number in one.results if not self._values[number].int8)
        return found

    def _sinks(self) -> set[int]:
        """Float tensors that become codes."""
        found: set[int] = set()
        for one in reversed(self._operators):
            converts = one.kind == "Convert" and all(self._values[number].int8 for number in one.results)
            passes = one.kind in _ELEMENTWISE | _MOVES and not found.isdisjoint(one.results)
            if converts or passes:
                found.update(number for number in one.data if not self._values[number].int8)
        return found

    def _finding(self, one: DelegatedOperator) -> tuple[str, str]:
        """Cause and remedy of a float operator."""
        if not self._quantized:
            return "the file holds nothing quantized", "quantize the model before exporting it (edgekd quantize)"
        if one.weight is not None and not self._values[one.weight].int8:
            return (
                "its weight is float in the file",
                "quantize it, with a Q on its result: XNNPACK's int8 kernels give codes only",
            )
        for number in one.data:
            maker = self._maker.get(number)
            if not self._values[number].int8 and number not in self._from_codes:
                where = f"{maker.kind} '{maker.name}'" if maker is not None else "an input of the delegate"
                return f"its input comes in float from {where}", "put a Q/DQ pair on that tensor"
        return self._grids(one)

    def _grids(self, one: DelegatedOperator) -> tuple[str, str]:
        """Codes on both sides of an operator that ExecuTorch still computes in float."""
        before = {self._values[n].grid for d in one.data if (m := self._maker.get(d)) for n in m.data}
        readers = [other for other in self._operators if not set(one.results).isdisjoint(other.data)]
        behind = {self._values[n].grid for other in readers for n in other.results}
        if one.kind in _ONE_GRID and len(before | behind) > 1:
            return (
                "its Q/DQ parameters before and behind it differ",
                "give all its inputs and its result the same scale and zero-point",
            )
        if len(readers) > 1:
            return (
                f"its result is read {len(readers)} times in float",
                "let all readers take the result of one Q/DQ pair",
            )
        return (
            "no rule of the audit explains it: ExecuTorch did not take it with its Q and DQ",
            "compare it with an operator of the same type that runs as int8, or leave it out of quantization",
        )


def _outside(kernel: str, program: Program) -> Island:
    name = kernel.partition("::")[2]
    if not program.int8:
        return Island(
            name, kernel, "the file holds nothing quantized", "quantize the model before exporting it (edgekd quantize)"
        )
    return Island(
        name,
        kernel,
        "ExecuTorch left it outside the XNNPACK delegate, so a portable kernel computes it in float",
        "use a form that XNNPACK has (a constant weight, two spatial dimensions, one group or one channel a group)",
    )
