"""What the ONNX Runtime targets share: the graph clean-up, the audit and the runner."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import ClassVar

import onnx

from edgekd.spec import Runner
from edgekd.targets._audit import audit_onnxruntime
from edgekd.targets._base import Audit, Target
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._processor_graph import finished

__all__ = ["OnnxRuntimeTarget"]


class OnnxRuntimeTarget(Target):
    """A processor that ONNX Runtime's CPU provider runs on.

    Subclasses name in `machines` what `platform.machine()` says on such a processor.
    """

    machines: ClassVar[tuple[str, ...]]

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        return finished(model, int8=int8)

    def audit(self, path: Path) -> Audit:
        return audit_onnxruntime(path, target=self.name, asked_int8=True, int8_activations=self._signed)

    def reference(self, path: Path, *, threads: int = 1) -> Runner:
        # On x86 the runtime rewrites signed activations to unsigned ones, whose products with 8-bit weights saturate
        # where there is no VNNI: that would say nothing about Arm. Kept signed, the codes are those of Arm.
        return OnnxRuntimeRunner(path, threads=threads, int8_activations=True if self._signed else None)

    @property
    def _signed(self) -> bool:
        return self.numerics.activation == "int8"

    def runner(self, path: Path, *, threads: int = 1) -> Runner:
        return OnnxRuntimeRunner(path, threads=threads)

    def absent_here(self) -> str | None:
        here = platform.machine()
        return None if here in self.machines else f"is for {self.machines[0]} processors; this one is {here}"
