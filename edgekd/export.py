"""From a torch program to the file that a target runs fast, and what is shipped beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from edgekd.spec import ModelSpec, Preprocessing, TensorSpec
from edgekd.targets._onnx_export import INPUT, OUTPUT, onnx_from_torch, save_onnx

__all__ = [
    "INPUT",
    "OUTPUT",
    "golden_vectors",
    "metadata",
    "model_spec",
    "onnx_from_torch",
    "save_onnx",
]


def model_spec(preprocessing: Preprocessing, labels: Iterable[str]) -> ModelSpec:
    """What an exported classifier takes and gives; its batch is dynamic."""
    names = list(labels)
    return ModelSpec(
        inputs=[TensorSpec(name=INPUT, shape=["batch", *preprocessing.input_shape])],
        outputs=[TensorSpec(name=OUTPUT, shape=["batch", len(names)])],
        labels=names,
        preprocessing=preprocessing,
    )


def metadata(spec: ModelSpec, ids: Mapping[str, str]) -> dict[str, str]:
    """What a shipped model says about itself: labels, preprocessing and lineage, as JSON strings."""
    return {
        "edgekd.labels": json.dumps(spec.labels),
        "edgekd.preprocessing": spec.preprocessing.model_dump_json(),
        **{f"edgekd.{name}": value for name, value in sorted(ids.items())},
    }


def golden_vectors(inputs: np.ndarray, logits: np.ndarray, path: Path) -> Path:
    """Store inputs and the outputs they must give, to be replayed on any device.

    Args:
        inputs: (B, C, H, W), normalised, float32.
        logits: (B, K), what the exported file gives for them here.
    """
    np.savez_compressed(path, image=inputs, logits=logits)
    return path
