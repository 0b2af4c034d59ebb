"""The papers' equations, written out in double precision with no care for speed, to judge both sides by.

Sums over the batch are means. Other constants that depend on shapes only (a sum where the paper has one and code has a
mean) stay as the paper has them: a side follows an equation when it is a constant multiple of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from _loss_cases import Formula, Options, Tensors
from torch import Tensor

__all__ = ["EQUATIONS", "VARIANTS"]


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def _huber(difference: Tensor) -> Tensor:
    size = difference.abs()
    return torch.where(size <= 1, 0.5 * size**2, size - 0.5)


def _kd(tensors: Tensors, options: Options) -> Tensor:
    """tau^2 KL, and the labels' share beside it (Hinton et al. 2015, section 2)."""
    tau, alpha = float(options["tau"]), float(options["alpha"])
    p, q = (tensors[side].div(tau).softmax(dim=1) for side in ("teacher", "student"))
    soft = tau**2 * (p * (p / q).log()).sum() / len(p)
    if not alpha:
        return soft
    own = tensors["student"].softmax(dim=1)[torch.arange(len(p)), tensors["labels"]]
    return (1 - alpha) * soft - alpha * own.log().mean()


def _attention(tensors: Tensors, options: Options) -> Tensor:
    """The norm of the difference of two maps (Zagoruyko, Komodakis 2016, equation 2)."""
    ours, theirs = (_unit((tensors[side] ** 2).sum(dim=1).flatten(1)) for side in ("student", "teacher"))
    norms: Tensor = torch.linalg.vector_norm(ours - theirs, dim=1)
    return norms.mean()


def _similarities(tensors: Tensors, *, norm: float) -> Tensor:
    sides: list[Tensor] = []
    for side in ("student", "teacher"):
        rows = tensors[side].flatten(1)
        gram = rows @ rows.T
        sides.append(gram / torch.linalg.vector_norm(gram, norm, dim=1, keepdim=True))
    return (sides[0] - sides[1]).square().sum() / len(sides[0]) ** 2


def _kernels(tensors: Tensors, options: Options) -> Tensor:
    """The squared distance of two kernel matrices over n^2 (Peng et al. 2019, sections 3.2 and 3.3)."""
    gamma, sides = options["gamma"], []
    for side in ("student", "teacher"):
        products = _unit(tensors[side]) @ _unit(tensors[side]).T
        series = [(2 * gamma * products) ** power / math.factorial(power) for power in range(options["order"] + 1)]
        sides.append(math.exp(-2 * gamma) * torch.stack(series).sum(dim=0))
    return (sides[0] - sides[1]).square().sum() / len(sides[0]) ** 2


def _distances(tensors: Tensors, options: Options) -> Tensor:
    """Over all pairs of two samples (Park et al. 2019, equations 4 and 5)."""
    sides = []
    for side in ("student", "teacher"):
        first, second = torch.combinations(torch.arange(len(tensors[side]))).T
        between = torch.linalg.vector_norm(tensors[side][first] - tensors[side][second], dim=1)
        sides.append(between / between.mean())
    return 2 * _huber(sides[0] - sides[1]).sum()


def _angles(tensors: Tensors, options: Options) -> Tensor:
    """Over all triplets of three samples (Park et al. 2019, equations 7 and 8)."""
    size, sides = len(tensors["student"]), []
    i, j, k = torch.cartesian_prod(*3 * (torch.arange(size),)).T
    three = (i != j) & (j != k) & (i != k)
    for side in ("student", "teacher"):
        one, vertex, other = (tensors[side][index[three]] for index in (i, j, k))
        sides.append((_unit(one - vertex) * _unit(other - vertex)).sum(dim=1))
    return _huber(sides[0] - sides[1]).sum()


def _neighbours(tensors: Tensors, *, itself: bool) -> Tensor:
    sides = []
    for side in ("student", "teacher"):
        kernel = (_unit(tensors[side]) @ _unit(tensors[side]).T + 1) / 2
        if not itself:
            kernel = kernel[~torch.eye(len(kernel), dtype=torch.bool)].view(len(kernel), -1)
        sides.append(kernel / kernel.sum(dim=1, keepdim=True))
    return (sides[1] * (sides[1] / sides[0]).log()).sum()


def _vid(tensors: Tensors, options: Options) -> Tensor:
    """Over channels and positions: log sigma_c + (t - mu)^2 / 2 sigma_c^2 (Ahn et al. 2019, section 2)."""
    mean = tensors["student"]
    for layer in range(3):
        mean = torch.einsum("oi,bihw->bohw", tensors[f"weight{layer}"].flatten(1), mean)
        mean = mean.clamp_min(0) if layer < 2 else mean
    variance = ((1 + tensors["spread"].exp()).log() + options["floor"])[:, None, None]
    each: Tensor = variance.sqrt().log() + (tensors["teacher"] - mean).square() / (2 * variance)
    return each.sum() / len(mean)


def _crd(tensors: Tensors, options: Options) -> Tensor:
    """Both directions of -log h of the own pair, -log(1 - h) of the others (Tian et al. 2020, equations 17 to 19)."""
    vectors = {
        side: _unit(tensors[side] @ tensors[f"head_weight_{side}"].T + tensors[f"head_bias_{side}"])
        for side in ("student", "teacher")
    }
    noise = options["negatives"] / len(tensors["split_labels"])
    total = tensors["student"].new_zeros(())
    for anchor, partner in (("student", "teacher"), ("teacher", "student")):
        others = tensors[f"memory_{partner}"][tensors["negatives"]]
        own = (vectors[anchor] * vectors[partner].detach()).sum(dim=1).div(options["tau"]).exp()
        other = torch.einsum("bd,bnd->bn", vectors[anchor], others).div(options["tau"]).exp()
        total = total - (own / (own + noise)).log().mean() - (1 - other / (other + noise)).log().sum(dim=1).mean()
    return total


def _discrepancy(tensors: Tensors, options: Options) -> Tensor:
    """The squared maximum mean discrepancy of the channels' maps (Huang, Wang 2017, section 4)."""
    total = []
    for maps in zip(tensors["student"], tensors["teacher"], strict=True):
        ours, theirs = (_unit(one.flatten(1)) for one in maps)
        width = _squares(ours, theirs).mean().detach()
        kernels: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "linear": lambda x, y: x @ y.T,
            "polynomial": lambda x, y: (x @ y.T).square(),
            "gaussian": lambda x, y, s=width: (-_squares(x, y) / (2 * s)).exp(),  # type: ignore[misc]
        }
        kernel = kernels[options["kernel"]]
        total.append(kernel(ours, ours).mean() + kernel(theirs, theirs).mean() - 2 * kernel(ours, theirs).mean())
    return torch.stack(total).mean()


def _squares(first: Tensor, second: Tensor) -> Tensor:
    """|x - y|^2 of every two rows."""
    return (first[:, None] - second[None]).square().sum(dim=2)


def _flows(tensors: Tensors, *, power: int) -> Tensor:
    sides = []
    for side in ("student", "teacher"):
        first, second = tensors[side], tensors[f"{side}_later"]
        height, width = second.shape[2:]
        first = F.adaptive_max_pool2d(first, (height, width))
        sides.append(torch.einsum("bmhw,bnhw->bmn", first, second) / (height * width))
    norms: Tensor = torch.linalg.vector_norm(sides[0] - sides[1], dim=1)
    return norms.pow(power).sum() / len(norms)


def _boundaries(tensors: Tensors, options: Options) -> Tensor:
    """The alternative loss (Heo et al. 2018)."""
    fires = (tensors["teacher"] > 0).to(tensors["student"].dtype)
    above = (options["margin"] - tensors["student"]).clamp_min(0)
    below = (options["margin"] + tensors["student"]).clamp_min(0)
    hinge: Tensor = fires * above + (1 - fires) * below
    return hinge.square().sum() / len(hinge)


def _dist(tensors: Tensors, options: Options) -> Tensor:
    """Pearson's distance of rows and of columns (Huang et al. 2022, section 4), times tau^2 as in their code."""
    sides = [tensors[side].div(options["tau"]).softmax(dim=1) for side in ("student", "teacher")]
    tau, total = float(options["tau"]), tensors["student"].new_zeros(())
    for weight, (ours, theirs) in (("beta", sides), ("gamma", [one.T for one in sides])):
        centred = [_unit(one - one.mean(dim=1, keepdim=True)) for one in (ours, theirs)]
        total = total + options[weight] * (1 - (centred[0] * centred[1]).sum(dim=1)).mean()
    return tau**2 * total


EQUATIONS: Mapping[str, Formula] = {
    "kd": _kd,
    "attention": _attention,
    "similarity_preserving": lambda tensors, _: _similarities(tensors, norm=2),
    "correlation_congruence": _kernels,
    "rkd_distance": _distances,
    "rkd_angle": _angles,
    "pkt": lambda tensors, _: _neighbours(tensors, itself=False),
    "vid": _vid,
    "crd": _crd,
    "nst": _discrepancy,
    "fsp": lambda tensors, _: _flows(tensors, power=2),
    "ab": _boundaries,
    "dist": _dist,
}
"""What each paper says."""

VARIANTS: Mapping[str, Formula] = {
    "similarity_preserving": lambda tensors, _: _similarities(tensors, norm=1),
    "pkt": lambda tensors, _: _neighbours(tensors, itself=True) / len(tensors["student"]) ** 2,
}
"""What torchdistill computes instead, where no arithmetic on its value gives edgekd's: nothing else differs."""
