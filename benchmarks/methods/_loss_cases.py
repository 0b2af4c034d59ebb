"""Seeded random tensors for each compared loss, and edgekd's value on them.

A case's tensors are drawn here and handed over as a file, so every side computes on the same numbers. Names that start
with `student` are what gradients are taken of. Connectors and memories are drawn too and copied into both sides.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.losses._base import Outputs, Split, Step
from edgekd.losses.ab import ab
from edgekd.losses.attention import attention
from edgekd.losses.correlation_congruence import correlation_congruence
from edgekd.losses.crd import CRD
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.dist import dist
from edgekd.losses.fsp import fsp
from edgekd.losses.kd import kd
from edgekd.losses.nst import nst
from edgekd.losses.pkt import pkt
from edgekd.losses.rkd_angle import rkd_angle
from edgekd.losses.rkd_distance import rkd_distance
from edgekd.losses.similarity_preserving import similarity_preserving
from edgekd.losses.vid import VID

__all__ = ["EDGEKD", "Case", "Formula", "Options", "Tensors", "cases", "value_and_gradient"]

Tensors = Mapping[str, Tensor]
Options = Mapping[str, Any]
Formula = Callable[[Tensors, Options], Tensor]

_LOGITS = 3.0  # standard deviation; a trained network's are about as large
_DRAWS = 20240229  # seed of crd's negatives


@dataclass(frozen=True)
class Case:
    """One loss on one set of tensors.

    Args:
        loss: as edgekd's catalog names it.
        name: what distinguishes it from the loss's other cases.
        options: the same for every side.
        tensors: by name; float32, or int64 for indices.
    """

    loss: str
    name: str
    options: Options
    tensors: Mapping[str, NDArray[Any]]

    @property
    def key(self) -> str:
        """Names the case among all."""
        return f"{self.loss}/{self.name}"

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of every tensor."""
        return {name: list(values.shape) for name, values in self.tensors.items()}


def cases(seed: int) -> list[Case]:
    """Every case, each from a stream of random numbers of its own."""
    return [*_drawn(seed), *_vid_cases(seed), *_crd_cases(seed)]


def value_and_gradient(formula: Formula, case: Case, dtype: torch.dtype) -> tuple[float, NDArray[np.float64]]:
    """The value, and its gradient to the student's tensors behind each other.

    Args:
        formula: of the case's loss.
        dtype: that floating tensors are given in.
    """
    tensors = {name: torch.from_numpy(values) for name, values in case.tensors.items()}
    tensors = {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}
    students = [one.requires_grad_() for name, one in tensors.items() if name.startswith("student")]
    value = formula(tensors, case.options)
    gradients = torch.autograd.grad(value, students)
    return value.item(), torch.cat([one.flatten() for one in gradients]).double().numpy()


_Draw = tuple[str, str, Mapping[str, tuple[int, ...]], Options]


def _pair(*shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"student": shapes[0], "teacher": shapes[-1]}


def _flows(*shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return dict(zip(("student", "student_later", "teacher", "teacher_later"), shapes, strict=True))


_EMBEDDINGS = {"equal sizes": _pair((16, 24)), "other sizes": _pair((12, 8), (12, 40))}
_PLAIN: tuple[_Draw, ...] = (
    ("kd", "alone, tau 4", _pair((32, 10)), {"tau": 4.0, "alpha": 0.0}),
    ("kd", "alone, tau 1", _pair((8, 100)), {"tau": 1.0, "alpha": 0.0}),
    ("kd", "beside labels", {**_pair((32, 10)), "labels": (32,)}, {"tau": 4.0, "alpha": 0.1}),
    ("attention", "equal sizes", _pair((8, 16, 6, 6)), {"mode": "code"}),
    ("attention", "other channels", _pair((4, 8, 7, 5), (4, 24, 7, 5)), {"mode": "code"}),
    ("attention", "the paper's norm, one sample", _pair((1, 8, 7, 5), (1, 24, 7, 5)), {"mode": "paper"}),
    ("similarity_preserving", "equal sizes", _pair((16, 8, 4, 4)), {}),
    ("similarity_preserving", "other sizes", _pair((12, 6, 5, 5), (12, 20, 3, 3)), {}),
    *(
        ("correlation_congruence", f"{name}, order {order}", shapes, {"gamma": gamma, "order": order})
        for (name, shapes), gamma, order in zip(_EMBEDDINGS.items(), (0.4, 1.0), (2, 4), strict=True)
    ),
    *((loss, *one, {}) for loss in ("rkd_distance", "rkd_angle", "pkt") for one in _EMBEDDINGS.items()),
    *(
        ("nst", f"{kernel}, {name}", shapes, {"kernel": kernel})
        for kernel in ("polynomial", "linear", "gaussian")
        for name, shapes in {
            "equal sizes": _pair((4, 12, 5, 5)),
            "other channels": _pair((4, 24, 3, 3), (4, 40, 3, 3)),
        }.items()
    ),
    ("fsp", "equal sizes", _flows(*2 * ((4, 6, 8, 8), (4, 10, 8, 8))), {}),
    ("fsp", "pooled", _flows((4, 6, 8, 8), (4, 10, 4, 4), (4, 6, 12, 12), (4, 10, 6, 6)), {}),
    ("ab", "margin 1", _pair((8, 16, 4, 4)), {"margin": 1.0}),
    ("ab", "margin 0.5", _pair((4, 10, 7, 7)), {"margin": 0.5}),
    ("dist", "tau 1", _pair((32, 10)), {"beta": 2.0, "gamma": 2.0, "tau": 1.0}),
    ("dist", "tau 4", _pair((64, 10)), {"beta": 1.0, "gamma": 2.0, "tau": 4.0}),
    ("dist", "100 classes", _pair((64, 100)), {"beta": 2.0, "gamma": 2.0, "tau": 4.0}),
    ("dist", "1000 classes", _pair((64, 1000)), {"beta": 2.0, "gamma": 2.0, "tau": 1.0}),
)


def _random(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def _normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * random.standard_normal(shape)).astype(np.float32)


def _drawn(seed: int) -> Iterator[Case]:
    for loss, name, shapes, options in _PLAIN:
        random = _random(seed, f"{loss}/{name}")
        scale = _LOGITS if loss in ("kd", "dist") else 1.0
        tensors: dict[str, NDArray[Any]] = {
            tensor: random.integers(shapes["student"][1], size=shape)
            if tensor == "labels"
            else _normal(random, *shape, scale=scale)
            for tensor, shape in shapes.items()
        }
        yield Case(loss, name, options, tensors)


def _vid_cases(seed: int) -> Iterator[Case]:
    for name, ours, theirs in (("equal channels", 8, 8), ("other channels", 6, 12)):
        random = _random(seed, f"vid/{name}")
        tensors = {
            "student": _normal(random, 4, ours, 5, 5),
            "teacher": _normal(random, 4, theirs, 5, 5),
            "spread": _normal(random, theirs),
        }
        for layer, width in enumerate((ours, theirs, theirs)):
            tensors[f"weight{layer}"] = _normal(random, theirs, width, 1, 1, scale=width**-0.5)
        yield Case("vid", name, {"floor": 1e-5}, tensors)


def _crd_cases(seed: int) -> Iterator[Case]:
    size, classes, batch = 60, 5, 8
    for name, negatives, estimate in (("Z estimated", 32, True), ("Z of 1, as in the paper", 24, False)):
        random = _random(seed, f"crd/{name}")
        ours, theirs, dim = 12, 20, 16
        tensors: dict[str, NDArray[Any]] = {
            "student": _normal(random, batch, ours),
            "teacher": _normal(random, batch, theirs),
            "split_labels": np.arange(size) % classes,
            "ids": random.permutation(size)[:batch],
        }
        for side, width in (("student", ours), ("teacher", theirs)):
            weight, bias = _normal(random, dim, width, scale=width**-0.5), _normal(random, dim, scale=0.1)
            memory = _normal(random, size, dim)
            # a sample's partner is its current embedding in edgekd, and what the memory holds in torchdistill: the same
            memory[tensors["ids"]] = tensors[side] @ weight.T + bias
            tensors[f"head_weight_{side}"], tensors[f"head_bias_{side}"] = weight, bias
            tensors[f"memory_{side}"] = memory / np.linalg.norm(memory, axis=1, keepdims=True)
        options = {"dim": dim, "negatives": negatives, "tau": 0.5, "classes": classes, "estimate": estimate}
        loss = _crd_loss({key: torch.from_numpy(values) for key, values in tensors.items()}, options)
        # which negatives edgekd draws; the other sides are told
        chosen = loss._others.draw(torch.from_numpy(tensors["ids"]), negatives, seed=_DRAWS, epoch=0)
        yield Case("crd", name, options, {**tensors, "negatives": chosen.numpy()})


def _crd_loss(tensors: Tensors, options: Options) -> CRD:
    loss = CRD(
        CRD.Options(
            student_tap="s", teacher_tap="t", dim=options["dim"], negatives=options["negatives"], tau=options["tau"]
        )
    )
    loss.split = Split(tensors["split_labels"], options["classes"])
    loss.connect(*_outputs(tensors))
    with torch.no_grad():
        for side in ("student", "teacher"):
            head = getattr(loss, f"{side}_head")
            head.weight.copy_(tensors[f"head_weight_{side}"])
            head.bias.copy_(tensors[f"head_bias_{side}"])
            getattr(loss, f"{side}_memory").copy_(tensors[f"memory_{side}"])
        loss.draws.fill_(_DRAWS)
        if not options["estimate"]:
            loss.log_z.zero_()
    return loss


def _outputs(tensors: Tensors) -> tuple[Outputs, Outputs]:
    logits = torch.zeros(len(tensors["student"]), 2)
    return Outputs(logits, {"s": tensors["student"]}), Outputs(logits, {"t": tensors["teacher"]})


def _crd(tensors: Tensors, options: Options) -> Tensor:
    student, teacher = _outputs(tensors)
    step = Step(student, [teacher], student.logits, tensors["ids"], epoch=0, progress=0.0)
    value: Tensor = _crd_loss(tensors, options)(step)
    return value


def _vid(tensors: Tensors, options: Options) -> Tensor:
    loss = VID(VID.Options(student_taps=["s"], teacher_taps=["t"]))
    student, teacher = _outputs(tensors)
    loss.connect(student, teacher)
    with torch.no_grad():
        layers = [one for one in loss.predictors.modules() if isinstance(one, torch.nn.Conv2d)]
        for index, layer in enumerate(layers):
            layer.weight.copy_(tensors[f"weight{index}"])
        loss.spreads[0].copy_(tensors["spread"])
    value: Tensor = loss(Step(student, [teacher], student.logits, torch.zeros(0), epoch=0, progress=0.0))
    return value


def _kd(tensors: Tensors, options: Options) -> Tensor:
    soft = kd(tensors["student"], tensors["teacher"], tau=options["tau"])
    alpha = float(options["alpha"])
    if not alpha:
        return soft
    labels = torch.nn.functional.one_hot(tensors["labels"], tensors["student"].shape[1])
    return alpha * cross_entropy(tensors["student"], labels) + (1 - alpha) * soft


def _both(formula: Callable[..., Tensor], *names: str) -> Formula:
    """The formula of one tensor of each side, with these of the case's options."""
    return lambda tensors, options: formula(
        tensors["student"], tensors["teacher"], **{name: options[name] for name in names}
    )


EDGEKD: Mapping[str, Formula] = {
    "kd": _kd,
    "attention": _both(attention),
    "similarity_preserving": _both(similarity_preserving),
    "correlation_congruence": _both(correlation_congruence, "gamma", "order"),
    "rkd_distance": _both(rkd_distance),
    "rkd_angle": _both(rkd_angle),
    "pkt": _both(pkt),
    "vid": _vid,
    "crd": _crd,
    "nst": _both(nst, "kernel"),
    "fsp": lambda tensors, options: fsp(
        (tensors["student"], tensors["student_later"]), (tensors["teacher"], tensors["teacher_later"])
    ),
    "ab": _both(ab, "margin"),
    "dist": _both(dist, "beta", "gamma", "tau"),
}
"""edgekd's side of every compared loss."""
