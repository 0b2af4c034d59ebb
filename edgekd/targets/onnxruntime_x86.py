"""ONNX Runtime on x86-64 processors: uint8 activations, int8 weights per channel, int32 bias."""

from __future__ import annotations

from edgekd.targets._base import Numerics
from edgekd.targets._qdq import OnnxRuntimeTarget

__all__ = ["OnnxRuntimeX86"]


class OnnxRuntimeX86(OnnxRuntimeTarget):
    """u8 * s8 kernels (VNNI where there is one); zero-point 0 after a ReLU, so that the kernel absorbs it."""

    machines = ("x86_64", "AMD64")
    sums_in_16_bits = True
    numerics = Numerics(activation="uint8", symmetric_activations=False, bias="int32", quantize_outputs=True)
