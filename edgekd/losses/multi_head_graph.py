"""Match attention graphs between the samples of a batch, whose heads learn from the teacher (MHGD)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._gather import gathered
from edgekd.losses._pairs import PairOptions

__all__ = ["MultiHeadGraph", "dominant", "multi_head_graph"]

Vectors = tuple[Tensor, Tensor]  # of the front tap, (B, C_front), and of the back tap, (B, C_back)
ROUNDS = 10  # of the power iteration; the dominant direction of feature maps after a ReLU settles in a few


def multi_head_graph(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(G_student || G_teacher) of softened attention graphs, summed over the heads, mean over the samples.

    A graph is the softmax over j of tanh(S[a, i, j]): how much of sample j head a looks at for sample i. The tanh
    keeps a sharp graph of the teacher from asking too much. The paper sums over the samples too; the mean does not
    depend on the size of the batch.

    Args:
        student: similarities S, shape (A, B, B).
        teacher: same shape; no gradient flows into it.

    Returns:
        Scalar in nats, float32, in [0, 2 * A).

    Reference: Lee, Song, "Graph-based Knowledge Distillation by Multi-head Attention Network", 2019,
    arXiv:1907.02226, section 3.2.

    >>> import torch
    >>> s, t = torch.zeros(1, 1, 2), torch.tensor([[[100.0, -100.0]]])  # one row: (1/2, 1/2) and softmax(1, -1)
    >>> round(multi_head_graph(s, t).item(), 4)  # ln cosh 1
    0.4338
    """
    log_student, log_teacher = (F.log_softmax(float32(one).tanh(), dim=-1) for one in (student, teacher.detach()))
    return F.kl_div(log_teacher, log_student, reduction="none", log_target=True).sum(dim=(0, 2)).mean()


def dominant(features: Tensor) -> Tensor:
    """The direction in channel space that holds most of each sample's features: its first right singular vector.

    It comes from ten rounds of a power iteration that starts at the mean feature, not from an SVD: the SVD's gradient
    is infinite where two singular values meet, that of a fixed number of rounds is not. Where they are close the
    vector stays between their directions. The start also settles the sign in the same way for every sample and both
    networks.

    Args:
        features: shape (B, C, H, W), tokens (B, N, C), or vectors (B, C), which are their own direction.

    Returns:
        Shape (B, C), float32, of length one; zero where the features, or their mean over the positions, are.
    """
    rows = float32(features)
    rows = rows.flatten(2).transpose(1, 2) if rows.dim() == 4 else rows.reshape(len(rows), -1, rows.shape[-1])
    # a direction has no scale, so it is taken out first and half precision's extremes stay in range when squared
    largest = rows.detach().abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    rows = rows / largest
    vector = F.normalize(rows.detach().mean(dim=1), dim=-1, eps=1e-6)
    for _ in range(ROUNDS):
        along = torch.einsum("bnc,bc->bn", rows, vector)
        vector = F.normalize(torch.einsum("bnc,bn->bc", rows, along), dim=-1, eps=1e-6)
    return vector


class MultiHeadGraph(Loss):
    """Learn how the teacher relates the samples of a batch between two of its layers.

    Each tap is compressed to one vector a sample. Between a tap (front) and the next (back), attention heads relate
    every sample's back vector to the front vectors of the batch, and an estimator rebuilds the teacher's back vectors
    from its front ones through that graph. Heads and estimator learn from the teacher alone, by the cosine of what
    they rebuild (the paper's L_MHAN); the student's graph then follows the teacher's. The value is the sum of the two
    terms, so it does not reach zero.

    Followed: the heads, the estimator, both terms, the tanh and the direction of the KL, 8 heads, embeddings as wide
    as the mean of the two taps, no 1/sqrt(d). Simplified, and why:
    - a power iteration in place of the SVD, for a finite gradient (`dominant`), and its sign in place of an alignment
      of the student's vectors with the teacher's;
    - the heads learn while the student does; `start` holds the student's term back as the paper's first phase does;
    - batch norm takes each network's statistics of the batch, not running ones of the teacher: a student whose vectors
      have another mean or spread would only meet the flat ends of the tanh;
    - taps with another number of channels than the teacher's pass through a trained linear connector.
    The paper clips this term's gradient to the size of the task's; there is no published weight to carry over, and 1
    is a start.
    """

    class Options(PairOptions):
        """Options of `multi_head_graph`."""

        student_taps: list[str] = Field(min_length=2, description="the student's layers, from front to back")
        teacher_taps: list[str] = Field(min_length=2, description="the teacher's layers, in the same order")
        heads: int = Field(8, ge=1, description="attention heads of each graph; the paper found 8 best of 1 to 16")
        start: float = Field(
            0.0,
            ge=0.0,
            le=1.0,
            description="fraction of training in which only the heads learn; the published code has 40 of 140 epochs",
        )

    family = "graph"
    batchwise = True
    zero_at_teacher = False
    connectors: nn.ModuleList
    graphs: nn.ModuleList

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers, from front to back."""
        return tuple(self._options.student_taps)

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers, in the same order."""
        return tuple(self._options.teacher_taps)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build a graph for each two neighbouring taps, and connectors where channels differ.

        Raises:
            MismatchError: a tap that is none of (B, C, H, W), (B, N, C) and (B, C).
        """
        assert teacher is not None
        ours = [_channels("student", tap, student.taps[tap]) for tap in self._options.student_taps]
        theirs = [_channels("teacher", tap, teacher.taps[tap]) for tap in self._options.teacher_taps]
        self.connectors = nn.ModuleList(
            nn.Identity() if one == other else nn.Linear(one, other, bias=False)
            for one, other in zip(ours, theirs, strict=True)
        )
        self.graphs = nn.ModuleList(_Graph(front, back, self._options.heads) for front, back in pairwise(theirs))

    def forward(self, step: Step) -> Tensor:
        """The student's term and the heads' own of one step."""
        with torch.autocast(step.student.logits.device.type, enabled=False):
            found = step.student.taps
            ours = [
                F.normalize(connector(gathered(dominant(found[tap]))), dim=-1, eps=1e-6)
                for connector, tap in zip(self.connectors, self._options.student_taps, strict=True)
            ]
            theirs = [gathered(dominant(step.teacher.taps[tap].detach())) for tap in self._options.teacher_taps]
            graphs = [cast(_Graph, graph) for graph in self.graphs]
            pairs = list(zip(graphs, pairwise(ours), pairwise(theirs), strict=True))
            transfer = torch.stack([graph.divergence(one, other) for graph, one, other in pairs]).sum()
            estimation = torch.stack([graph.estimation(other) for graph, _, other in pairs]).sum()
        # a factor, not a branch: connectors get a gradient, if of zero, in every step
        return float(step.progress >= self._options.start) * transfer + estimation

    @property
    def _options(self) -> Options:
        return cast(MultiHeadGraph.Options, self.options)


class _Graph(nn.Module):
    """Attention heads between the samples' vectors of two taps, and the estimator that gives them a task."""

    def __init__(self, front: int, back: int, heads: int) -> None:
        super().__init__()
        width = max(1, (front + back) // 2)
        self.heads = heads
        self.query = nn.Linear(back, width * heads, bias=False)  # theta
        self.key = nn.Linear(front, width * heads, bias=False)  # phi
        self.value = nn.Linear(front, width, bias=False)  # f_1
        self.rebuild = nn.Linear(width * heads, back)  # f_2

    def divergence(self, student: Vectors, teacher: Vectors) -> Tensor:
        """How far the student's graph is from the teacher's under the heads as they are.

        No gradient flows into the heads: if they could yield to the student, they would agree best by telling no two
        samples apart.
        """
        weights = (self.query.weight.detach(), self.key.weight.detach())
        return multi_head_graph(*(_similarities(one, weights, self.heads) for one in (student, teacher)))

    def estimation(self, teacher: Vectors) -> Tensor:
        """1 - cos of the back vectors and what the graph rebuilds of them, mean over the samples."""
        front, back = teacher
        graph = _similarities(teacher, (self.query.weight, self.key.weight), self.heads).softmax(dim=-1)
        seen = torch.einsum("aij,jd->iad", graph, _normed(self.value(front)).relu())
        rebuilt = F.normalize(self.rebuild(seen.flatten(1)), dim=-1, eps=1e-6)
        return (1 - (rebuilt * back).sum(dim=-1)).mean()


def _similarities(vectors: Vectors, weights: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """S[a, i, j] = theta(back_i) . phi(front_j), shape (A, B, B)."""
    (front, back), (query, key) = vectors, weights
    queries, keys = (_normed(F.linear(back, query)), _normed(F.linear(front, key)))
    queries, keys = (one.reshape(len(one), heads, -1) for one in (queries, keys))
    return torch.einsum("iad,jad->aij", queries, keys)


def _normed(values: Tensor) -> Tensor:
    """Batch norm of (B, C) without running statistics, scale or shift."""
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    return (values - mean) * torch.rsqrt(variance + 1e-5)


def _channels(side: str, tap: str, features: Tensor) -> int:
    if features.dim() not in (2, 3, 4):
        raise MismatchError(
            f"multi_head_graph cannot compress {side} tap '{tap}' of shape {tuple(features.shape)}. Tap layers with"
            " (B, C, H, W), (B, N, C) or (B, C)."
        )
    return features.shape[1] if features.dim() == 4 else features.shape[-1]
