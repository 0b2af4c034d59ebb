"""OpenVINO on x86-64 processors: uint8 activations, int8 weights per channel, additions fused into convolutions."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekd.errors import BackendMissing, ModelFileError
from edgekd.recipe import ExportSettings
from edgekd.spec import Runner
from edgekd.targets._base import Audit, Built, Numerics, Target
from edgekd.targets._openvino_audit import audit_openvino
from edgekd.targets._openvino_executed import is_int8_kernel
from edgekd.targets._openvino_library import DEVICE, core, openvino_errors, openvino_library, reason
from edgekd.targets._openvino_runner import IR_SUFFIX, OpenVinoRunner
from edgekd.targets._processor_graph import finished
from edgekd.targets._profile import OperatorTime

__all__ = ["OpenVino"]

_MACHINES = ("x86_64", "AMD64")
_WARMUP_RUNS = 3


class OpenVino(Target):
    """The grid of onnxruntime_x86, so that one trained student serves both; the CPU plugin takes the ONNX file itself.

    The plugin adds a skip to a convolution's unrounded result whatever the file says, so the program that is trained
    and compared does it too.
    """

    runtime = "openvino"
    sums_in_16_bits = True
    numerics = Numerics(
        activation="uint8", symmetric_activations=False, bias="int32", quantize_outputs=True, fused_adds=True
    )

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        return finished(model, int8=int8)

    def audit(self, path: Path) -> Audit:
        return audit_openvino(path, target=self.name)

    def build(self, path: Path, *, settings: ExportSettings) -> list[Built]:
        """Write the IR of an ONNX file beside it, .xml and .bin: the runtime's own form, loaded without a parser."""
        library = openvino_library()
        out = path.with_suffix(IR_SUFFIX)
        try:
            # weights stay as they are: the library's default would round float ones to float16
            library.save_model(core().read_model(str(path)), str(out), compress_to_fp16=False)
        except openvino_errors() as error:
            raise ModelFileError(f"{path}: OpenVINO makes no IR of it: {reason(error)}.") from error
        return [Built(path=out, fingerprint={"library": "openvino", "version": str(library.__version__)})]

    def missing(self) -> str | None:
        try:
            core()
        except BackendMissing as error:
            return str(error)
        return None

    def is_int8(self, path: Path) -> bool:
        if path.suffix != IR_SUFFIX:
            return super().is_int8(path)
        with OpenVinoRunner(path, exact_threads=False) as runner:
            layers = runner.compiled.get_runtime_model().get_ops()
            return any(is_int8_kernel(one.get_rt_info()["primitiveType"].astype(str)) for one in layers)

    def reference(self, path: Path, *, threads: int = 1) -> Runner:
        return OpenVinoRunner(path, threads=threads, exact_threads=False)

    def runner(self, path: Path, *, threads: int = 1) -> Runner:
        return OpenVinoRunner(path, threads=threads)

    def operator_times(
        self, path: Path, feeds: Mapping[str, np.ndarray], *, runs: int = 20, threads: int = 1
    ) -> list[OperatorTime]:
        taken: dict[str, list[float]] = {}
        kinds: dict[str, Any] = {}
        with OpenVinoRunner(path, threads=threads, exact_threads=False, profile=True) as runner:
            for run in range(_WARMUP_RUNS + runs):
                runner.run(feeds)
                for layer in runner.layer_times() if run >= _WARMUP_RUNS else []:
                    if str(layer.status).endswith(".EXECUTED"):
                        taken.setdefault(layer.node_name, []).append(layer.real_time.total_seconds() * 1e6)
                        kinds[layer.node_name] = layer
        means = {name: statistics.fmean(times) for name, times in taken.items()}
        total = sum(means.values())
        found = [_operator_time(kinds[name], mean, total) for name, mean in means.items()]
        return sorted(found, key=lambda one: -one.mean_us)

    def absent_here(self) -> str | None:
        here = platform.machine()
        if here not in _MACHINES:
            return f"is for {_MACHINES[0]} processors; this one is {here}"
        return "needs OpenVINO; run `pip install edgekd[openvino]`" if self.missing() else None


def _operator_time(layer: Any, mean_us: float, total_us: float) -> OperatorTime:
    return OperatorTime(
        name=layer.node_name,
        op=layer.node_type,
        provider=DEVICE,
        mean_us=mean_us,
        share=mean_us / total_us if total_us else 0.0,
        int8=is_int8_kernel(layer.exec_type),
    )
