"""The networks that published latencies are about, built without weights and counted operator by operator.

Only counts are kept, in `networks.json`: nothing that a check needs is downloaded, and it runs without timm.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from edgekd._estimate_graph import count_operators
from edgekd._roofline import KINDS, ElementType, Operator

__all__ = ["FILE", "NETWORKS", "Network", "built", "compact", "kept", "onnx_of", "write_all"]

FILE = Path(__file__).parent / "networks.json"


@dataclass(frozen=True)
class Network:
    """A network of timm, or of this folder: its name there and the size of its images."""

    model: str
    size: int


NETWORKS = {
    **{
        f"efficientnet_lite{number}": Network(f"efficientnet_lite{number}", size)
        for number, size in enumerate((224, 240, 260, 280, 300))
    },
    "mobilenet_v1": Network("mobilenetv1_100", 224),
    "mobilenet_v2": Network("mobilenetv2_100", 224),
    "mobilenet_v3_large": Network("mobilenetv3_large_100", 224),
    "mobilenet_v3_small": Network("mobilenetv3_small_100", 224),
    "resnet18": Network("resnet18", 224),
    "resnet50": Network("resnet50", 224),
    "wide_resnet50_2": Network("wide_resnet50_2", 224),
    "googlenet": Network("torchvision:googlenet", 224),
    "inception_v3": Network("inception_v3", 299),
    "inception_v4": Network("inception_v4", 299),
    "inception_resnet_v2": Network("inception_resnet_v2", 299),
    "yolov8n": Network("yolov8:n", 640),
    "yolov8s": Network("yolov8:s", 640),
    "yolov8m": Network("yolov8:m", 640),
}


def import_timm() -> None:
    """Import timm also where the installed torchvision was built for another torch.

    torchvision's operators for detection are then missing and it does not import; declaring them is enough, since
    nothing here calls them.
    """
    try:
        import timm
    except RuntimeError:
        for name in [one for one in sys.modules if one.partition(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import timm  # noqa: F401


def module_of(network: Network) -> torch.nn.Module:
    """The network with random weights, in evaluation mode."""
    torch.manual_seed(0)
    place, _, name = network.model.rpartition(":")
    if place == "yolov8":
        from _yolov8 import yolov8

        return yolov8(name).eval()
    import_timm()
    if place == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, aux_logits=False, init_weights=False).eval()
    import timm

    return timm.create_model(name, pretrained=False).eval()


def onnx_of(network: Network) -> onnx.ModelProto:
    """The network as a float ONNX model for one image."""
    file = io.BytesIO()
    image = torch.zeros(1, 3, network.size, network.size)
    torch.onnx.export(module_of(network), (image,), file, dynamo=False, input_names=["input"], output_names=["output"])
    return onnx.load_from_string(file.getvalue())


def built(name: str) -> list[Operator]:
    """The operators of a network, in float32."""
    return list(count_operators(onnx_of(NETWORKS[name])).operators)


def compact(operators: Sequence[Operator]) -> list[list[int]]:
    """One row an operator: index of its kind, MACs, work, stored elements, elements read, elements written."""
    return [[KINDS.index(o.kind), o.macs, o.work, o.weights, o.reads, o.writes] for o in operators]


def kept(name: str, element_type: ElementType) -> list[Operator]:
    """The operators of a network from the file, all in one element type."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))[name]["operators"]
    return [
        Operator(str(i), "", KINDS[kind], "float32", macs, work, weights, reads, writes, 0, 0, 0).as_type(element_type)
        for i, (kind, macs, work, weights, reads, writes) in enumerate(rows)
    ]


def write_all() -> Path:
    """Build every network and write the file."""
    found = {}
    for name, network in NETWORKS.items():
        operators = built(name)
        found[name] = {
            "model": network.model,
            "size": network.size,
            "macs": sum(one.macs for one in operators),
            "operators": compact(operators),
        }
        print(f"{name}: {found[name]['macs'] / 1e6:.1f} M MACs, {len(operators)} operators")
    lines = [f'"{name}": {json.dumps(one, separators=(",", ":"))}' for name, one in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return FILE


if __name__ == "__main__":
    write_all()
