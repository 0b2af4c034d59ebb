"""XNNPACK through ExecuTorch .pte files: int8 activations, int8 weights per channel, a Q on every result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from edgekd.errors import BackendMissing
from edgekd.spec import Runner
from edgekd.targets._base import Audit, Numerics, Target
from edgekd.targets._profile import OperatorTime
from edgekd.targets._rules import USUAL
from edgekd.targets._xnnpack_audit import audit_pte, ran_as_int8
from edgekd.targets._xnnpack_file import Program, read_pte
from edgekd.targets._xnnpack_library import BACKEND, PORTABLE, runtime
from edgekd.targets._xnnpack_runner import PteRunner

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Xnnpack"]

_WARMUP_RUNS = 3


class Xnnpack(Target):
    """The grid of onnxruntime_arm and codes for the logits too, since no int8 kernel here gives floats.

    Products of codes are summed in 32 bits on every processor, so nothing saturates and weights keep their 8 bits. A
    file is for one batch size, 1. Measured on x86 it says how that processor would do, not an Arm one.
    """

    runtime = "executorch"
    suffix = ".pte"
    numerics = Numerics(
        activation="int8",
        symmetric_activations=False,
        bias="int32",
        quantize_outputs=True,
        # ExecuTorch hands the delegate average pooling over a window in float only
        operators=USUAL - {"average_pool"},
        float_results=False,
    )

    def write(
        self,
        program: nn.Module,
        example: Tensor,
        path: Path,
        *,
        int8: bool,
        metadata: Mapping[str, str],
        opset: int = 20,
    ) -> Path:
        # here, since both import torch and a target is also loaded to be listed
        from edgekd.targets._onnx_export import INPUT, OUTPUT
        from edgekd.targets._xnnpack_lowering import write_pte

        return write_pte(program, example, path, names=(INPUT, OUTPUT), metadata=metadata)

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        return model

    def is_int8(self, path: Path) -> bool:
        return read_pte(path).int8

    def audit(self, path: Path) -> Audit:
        return audit_pte(path, target=self.name)

    def missing(self) -> str | None:
        try:
            runtime()
        except BackendMissing as error:
            return str(error)
        return None

    def runner(self, path: Path, *, threads: int = 1) -> Runner:
        return PteRunner(path, threads=threads)

    def operator_times(
        self, path: Path, feeds: Mapping[str, np.ndarray], *, runs: int = 20, threads: int = 1
    ) -> list[OperatorTime]:
        program = read_pte(path)
        with PteRunner(path, threads=threads, profile=True) as runner:
            for _ in range(_WARMUP_RUNS + runs):
                runner.run(feeds)
            recorded = [run for run in runner.events() if run][_WARMUP_RUNS:]
        taken: dict[str, list[float]] = {}
        for run in recorded:
            for name, took_us in run:
                taken.setdefault(name, []).append(took_us)
        means = {name: statistics.fmean(times) for name, times in taken.items()}
        total = sum(means.values())
        found = [_operator_time(name, mean, total, program) for name, mean in means.items()]
        return sorted(found, key=lambda one: -one.mean_us)

    def absent_here(self) -> str | None:
        return "needs ExecuTorch; run `pip install edgekd[executorch]`" if self.missing() else None


def _operator_time(name: str, mean_us: float, total_us: float, program: Program) -> OperatorTime:
    kind, _, rank = name.partition(" #")
    return OperatorTime(
        name=f"{kind}_{rank}" if rank else name,
        op=kind,
        # what a delegate runs carries its place in it
        provider=BACKEND if rank else PORTABLE,
        mean_us=mean_us,
        share=mean_us / total_us if total_us else 0.0,
        int8=ran_as_int8(kind, program),
    )
