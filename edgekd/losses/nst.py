"""Match the distribution of a teacher's channel activation patterns (neuron selectivity transfer)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from edgekd.losses._base import Step, float32
from edgekd.losses._pairs import PairedLoss, PairOptions

__all__ = ["NST", "Kernel", "nst"]

Kernel = Literal["polynomial", "linear", "gaussian"]


def nst(student: Tensor, teacher: Tensor, *, kernel: Kernel = "polynomial") -> Tensor:
    """Squared maximum mean discrepancy (MMD) between the two sides' channels.

    A channel's pattern is its map as a vector of length one over the positions; a channel that is 0 everywhere stays
    0. The patterns of one sample are a set of C vectors on each side, and the MMD compares the two sets: it needs
    neither equal numbers of channels nor a pairing of them.

    The kernels of two patterns x and y: polynomial (x'y)^2, linear x'y, gaussian exp(-|x - y|^2 / (2 sigma^2)) with
    sigma^2 the mean of |x - y|^2 over the sample's pairs of a student's and a teacher's pattern, a constant for the
    gradient.

    Memory: polynomial the smaller of H*W x H*W and C x C for each sample, linear H*W, gaussian C x C.

    Args:
        student: features, shape (B, C, H, W).
        teacher: features, any C, same H and W; no gradient flows into it.
        kernel: see above.

    Returns:
        Scalar, float32, >= 0 up to rounding, at most 4: mean over the batch.

    Reference: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
    arXiv:1707.01219, section 4.

    >>> import torch
    >>> s, t = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 5.0]]]])  # patterns (0.6, 0.8) and (0, 1)
    >>> round(nst(s, t).item(), 4), round(nst(s, t, kernel="linear").item(), 4)  # 1 + 1 - 2 0.8^2, 1 + 1 - 2 0.8
    (0.72, 0.4)
    """
    # autocast would run the products in half precision
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = _patterns(student), _patterns(teacher.detach())
        return _DISCREPANCIES[kernel](ours, theirs).mean()


class NST(PairedLoss):
    """Learn the teacher's channel activation patterns, layer pair by layer pair; no connector is needed.

    Recommended weight: 50 with the polynomial kernel. That is RepDistiller's, which multiplies the squared MMD as it
    is here; the paper's lambda multiplies half of it.
    """

    class Options(PairOptions):
        """Options of `nst`."""

        kernel: Kernel = Field("polynomial", description="how patterns are compared")

    family = "feature"
    takes_vectors = False

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        kernel = cast(NST.Options, self.options).kernel
        return torch.stack([nst(ours, theirs, kernel=kernel) for ours, theirs in self._maps(step)]).sum()


def _patterns(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H*W), each vector of length one or 0."""
    values = float32(features).flatten(2)
    length = torch.linalg.vector_norm(values, dim=2, keepdim=True)
    # a small number in place of a length of 0 would be a huge factor in the gradient
    return values / torch.where(length > 0, length, 1.0)


def _polynomial(ours: Tensor, theirs: Tensor) -> Tensor:
    first, second, places = ours.shape[1], theirs.shape[1], ours.shape[2]
    if (first + second) * places < first**2 + second**2 + first * second:
        # (x'y)^2 is the product of the matrices xx' and yy', so the MMD is the distance of their two means
        return (_second_moment(ours) - _second_moment(theirs)).square().sum(dim=(1, 2))
    grams = [one @ another.mT for one, another in ((ours, ours), (theirs, theirs), (ours, theirs))]
    own, other, cross = (gram.square().mean(dim=(1, 2)) for gram in grams)
    return own + other - 2 * cross


def _second_moment(patterns: Tensor) -> Tensor:
    return patterns.mT @ patterns / patterns.shape[1]


def _linear(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.mean(dim=1) - theirs.mean(dim=1)).square().sum(dim=1)


def _gaussian(ours: Tensor, theirs: Tensor) -> Tensor:
    cross = _distances(ours, theirs)
    # all patterns are one: their distances are rounding, which nothing should be divided by
    doubled = 2 * cross.detach().mean(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    distances = (_distances(ours, ours), _distances(theirs, theirs), cross)
    own, other, between = (torch.exp(-one / doubled).mean(dim=(1, 2)) for one in distances)
    return own + other - 2 * between


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """|x - y|^2 of every pair, shape (B, C, C')."""
    squares = first.square().sum(dim=2)[:, :, None] + second.square().sum(dim=2)[:, None, :]
    return (squares - 2 * first @ second.mT).clamp_min(0.0)


_DISCREPANCIES = {"polynomial": _polynomial, "linear": _linear, "gaussian": _gaussian}
