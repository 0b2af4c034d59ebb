"""torchdistill's losses on given tensors: values and gradients to the student's tensors.

This file imports nothing but torch, numpy and torchdistill, whose loss modules are used as they are. `joined` is what
edgekd should give: the module's values, called once or on slices, and arithmetic on them that the record names.
torchdistill's connectors need torchvision to be imported, so those of VID and CRD are written out with torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchdistill.losses import mid_level

Tensors = Mapping[str, Tensor]
Options = Mapping[str, Any]


def outputs(**tensors: Tensor) -> dict[str, dict[str, Any]]:
    """One network's modules as torchdistill hands them to a loss."""
    return {name: {"output": values} for name, values in tensors.items()}


def of_one_layer(module: Any, tensors: Tensors, *more: Tensor) -> Tensor:
    value: Tensor = module(outputs(layer=tensors["student"]), outputs(layer=tensors["teacher"]), *more)
    return value


def pairs(**names: str) -> dict[str, dict[str, dict[str, str]]]:
    return {"pair": {key: {"io": "output", "path": path} for key, path in names.items()}}


ONE_LAYER = ("layer", "output", "layer", "output")
BOTH = {"student": "layer", "teacher": "layer"}


def kd(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    module = mid_level.KDLoss(*ONE_LAYER, temperature=options["tau"], alpha=options["alpha"])
    if options["alpha"]:
        value = of_one_layer(module, tensors, tensors["labels"])
        return value, value
    value = of_one_layer(module, tensors)
    return value, options["tau"] ** 2 * value


def attention(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    value = of_one_layer(mid_level.ATLoss(pairs(**BOTH), mode=options["mode"]), tensors)
    positions = tensors["student"].shape[2] * tensors["student"].shape[3]
    return value, value if options["mode"] == "code" else value**2 / positions


def similarity_preserving(tensors: Tensors, options: Options) -> tuple[Tensor, None]:
    return of_one_layer(mid_level.SPKDLoss("layer", "layer", reduction="batchmean"), tensors), None


def correlation_congruence(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    kernel = {"type": "gaussian", "gamma": options["gamma"], "max_p": options["order"]}
    module = mid_level.CCKDLoss("layer", "layer", kernel, reduction="batchmean")
    value = of_one_layer(module, {side: F.normalize(values, dim=1) for side, values in tensors.items()})
    return value, value**2 * len(tensors["student"]) ** 2


def rkd_distance(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    value, size = of_one_layer(mid_level.RKDLoss("layer", "layer", 1.0, 0.0, "mean"), tensors), len(tensors["student"])
    return value, value * size / (size - 1)


def rkd_angle(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    value, size = of_one_layer(mid_level.RKDLoss("layer", "layer", 0.0, 1.0, "mean"), tensors), len(tensors["student"])
    return value, value * size**2 / ((size - 1) * (size - 2))


def pkt(tensors: Tensors, options: Options) -> tuple[Tensor, None]:
    return of_one_layer(mid_level.PKTLoss(*ONE_LAYER), tensors), None


def vid(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    mean = tensors["student"]
    for layer in range(3):
        mean = F.conv2d(F.relu(mean) if layer else mean, tensors[f"weight{layer}"])
    variance = (F.softplus(tensors["spread"]) + options["floor"]).view(1, -1, 1, 1)
    module = mid_level.VIDLoss(pairs(**BOTH))
    value = module({"layer": {"output": (mean, variance)}}, outputs(layer=tensors["teacher"]))
    return value, value


def crd(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    ids, size = tensors["ids"], len(tensors["split_labels"])
    module = mid_level.CRDLoss(
        "layer", "empty", "layer", options["dim"], size, options["negatives"], size, temperature=options["tau"]
    )
    given = {}
    for side, memory in (("student", module.memory_v1), ("teacher", module.memory_v2)):
        head = F.linear(tensors[side], tensors[f"head_weight_{side}"], tensors[f"head_bias_{side}"])
        given[side] = F.normalize(head, dim=1)
        memory.copy_(tensors[f"memory_{side}"])
    if not options["estimate"]:
        module.params[2:4] = 1.0
    student = outputs(layer=given["student"])
    drawn = torch.cat([ids[:, None], tensors["negatives"]], dim=1)
    student["empty"] = {"input": {"pos_idx": ids, "contrast_idx": drawn}}
    value = module(student, outputs(layer=given["teacher"])).sum()
    return value, value


def fsp(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    names = [f"{side}_{place}" for side in ("student", "teacher") for place in ("first", "second")]
    module = mid_level.FSPLoss(pairs(**{name: name.partition("_")[2] for name in names}))

    def called(samples: slice, channels: slice) -> Tensor:
        student, teacher = (
            outputs(first=tensors[side][samples], second=tensors[f"{side}_later"][samples, channels])
            for side in ("student", "teacher")
        )
        value: Tensor = module(student, teacher)
        return value

    batch, columns = tensors["student_later"].shape[:2]
    norms = [called(slice(i, i + 1), slice(j, j + 1)) for i in range(batch) for j in range(columns)]
    mean = torch.stack(norms).square().sum() / (batch * tensors["student"].shape[1] * columns)
    return called(slice(None), slice(None)), mean


def ab(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    module = mid_level.AltActTransferLoss(pairs(**BOTH), margin=options["margin"], reduction="mean")
    value = of_one_layer(module, tensors)
    return value, value


def dist(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    module = mid_level.DISTLoss(*ONE_LAYER, beta=options["beta"], gamma=options["gamma"], tau=options["tau"])
    value = of_one_layer(module, tensors)
    return value, value


LOSSES: Mapping[str, Callable[[Tensors, Options], tuple[Tensor, Tensor | None]]] = {
    "kd": kd,
    "attention": attention,
    "similarity_preserving": similarity_preserving,
    "correlation_congruence": correlation_congruence,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "pkt": pkt,
    "vid": vid,
    "crd": crd,
    "fsp": fsp,
    "ab": ab,
    "dist": dist,
}


def computed(loss: str, arrays: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The module's value and the joined one, each with its gradient, flat and behind each other."""
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    students = [one.requires_grad_() for name, one in tensors.items() if name.startswith("student")]
    found = {}
    for kind, value in zip(("value", "joined"), LOSSES[loss](tensors, options), strict=True):
        if value is not None:
            gradients = torch.autograd.grad(value, students, retain_graph=True)
            found[kind] = value.detach().numpy()
            found[f"{kind}_gradient"] = torch.cat([one.flatten() for one in gradients]).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="with cases.json and inputs.npz")
    folder: Path = parser.parse_args().folder
    torch.set_num_threads(1)
    inputs, answers = np.load(folder / "inputs.npz"), {}
    for key, case in json.loads((folder / "cases.json").read_text(encoding="utf-8")).items():
        if case["loss"] in LOSSES:
            arrays = {name: inputs[f"{key}/{name}"] for name in case["tensors"]}
            found = computed(case["loss"], arrays, case["options"])
            answers.update({f"{key}/{name}": values for name, values in found.items()})
    np.savez(folder / "answers.npz", **answers)
    versions = {name: importlib.metadata.version(name) for name in ("torchdistill", "torch", "numpy")}
    record = {"python": platform.python_version(), **versions}
    (folder / "versions.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
