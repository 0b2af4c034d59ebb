"""TensorRT on NVIDIA GPUs: symmetric int8 Q/DQ on inputs, float16 for the rest, an engine per GPU generation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edgekd.errors import BackendMissing
from edgekd.recipe import ExportSettings
from edgekd.spec import Runner
from edgekd.targets._base import Audit, Built, Numerics, Target
from edgekd.targets._engine import build_engine
from edgekd.targets._float16 import to_float16
from edgekd.targets._graph import Graph
from edgekd.targets._graph_passes import fold_pads, remove_dead, remove_identities, restore_global_pool
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._trt_audit import trt_audit
from edgekd.targets._trt_library import trt_library
from edgekd.targets._trt_runner import TensorRTRunner, cuda_capability

__all__ = ["TensorRT"]


class TensorRT(Target):
    """Explicit Q/DQ, strongly typed: what the file says is what the engine computes."""

    runtime = "tensorrt"
    runs_on = "cuda"
    numerics = Numerics(
        activation="int8", symmetric_activations=True, bias="float", quantize_outputs=False, half_scales=True
    )

    def finish(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        graph = Graph(model)
        remove_identities(graph)
        restore_global_pool(graph)
        fold_pads(graph)
        remove_dead(graph)
        return to_float16(model) if int8 else model

    def audit(self, path: Path) -> Audit:
        return trt_audit(path)

    def build(self, path: Path, *, settings: ExportSettings) -> list[Built]:
        low, usual, high = settings.tensorrt.batch
        return [
            build_engine(path, compute_capability=capability, batch=(low, usual, high), out=path.parent)
            for capability in settings.tensorrt.compute_capability
        ]

    def missing(self) -> str | None:
        try:
            trt_library()
        except BackendMissing as error:
            return str(error)
        return None

    def reference(self, path: Path, *, threads: int = 1) -> Runner:
        # Any runtime that follows ONNX computes the file's meaning; the engine itself needs a GPU. The optimizer that
        # is left out quantizes float biases with a scale in float16, which underflows (seen in ONNX Runtime 1.31).
        return OnnxRuntimeRunner(path, threads=threads, without_optimizers=["WeightBiasQuantization"])

    def runner(self, path: Path, *, threads: int = 1) -> Runner:
        """Build an engine for this machine's GPU from an ONNX file, or take a built engine, and run it."""
        if path.suffix == ".engine":
            return TensorRTRunner(path)
        capability = cuda_capability()
        if capability is None:
            raise BackendMissing("Running a TensorRT engine needs an NVIDIA GPU; this machine has none.")
        with tempfile.TemporaryDirectory(prefix="edgekd-engine-") as folder:
            built = build_engine(path, compute_capability=capability, batch=(1, 1, 8), out=Path(folder))
            return TensorRTRunner(built.path)

    def absent_here(self) -> str | None:
        return None if cuda_capability() else "needs an NVIDIA GPU; this machine has none"
