"""ONNX Runtime on 64-bit Arm processors: int8 activations, int8 weights per channel, int32 bias."""

from __future__ import annotations

from edgekd.targets._base import Numerics
from edgekd.targets._qdq import OnnxRuntimeTarget

__all__ = ["OnnxRuntimeArm"]


class OnnxRuntimeArm(OnnxRuntimeTarget):
    """s8 * s8 kernels (dot product, i8mm); zero-point -128 after a ReLU, so that the kernel absorbs it."""

    machines = ("aarch64", "arm64")
    numerics = Numerics(activation="int8", symmetric_activations=False, bias="int32", quantize_outputs=True)
