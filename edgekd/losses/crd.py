"""Tell a sample's own pair of embeddings from pairs with other classes (contrastive distillation)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.augment import uniforms
from edgekd.errors import UsageError
from edgekd.losses._base import Loss, Outputs, Split, Step
from edgekd.losses._gather import gathered
from edgekd.losses._relations import check_taps, embedding, full_precision, unit

__all__ = ["CRD", "crd"]


def crd(similar: Tensor, others: Tensor, *, size: int, log_z: float | Tensor = 0.0) -> Tensor:
    """Noise-contrastive estimation: is this pair of embeddings one sample's, or two samples'?

    With N negatives and g = <T, S> / tau, a pair is believed to be one sample's with probability
    h = e^g / Z / (e^g / Z + N / size). The loss is -log h of the sample's pair minus the sum of log(1 - h) over its
    negatives, mean over the batch. It is computed from logarithms, so no e^g is ever formed.

    Args:
        similar: g of each sample's own pair, shape (B,).
        others: g of its negatives, shape (B, N).
        size: samples in the training split, M in the paper.
        log_z: logarithm of Z; 0 is the paper's equation 19.

    Returns:
        Scalar, float32, > 0.

    Reference: Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020, arXiv:1910.10699,
    equations 14 to 19.

    >>> import torch
    >>> round(crd(torch.zeros(1), torch.zeros(1, 2), size=2).item(), 4)  # h = 1 / (1 + 2/2): -3 ln 0.5
    2.0794
    """
    noise = math.log(others.shape[1] / size) + log_z
    return -(F.logsigmoid(similar - noise) + F.logsigmoid(noise - others).sum(dim=1)).mean()


class CRD(Loss):
    """Learn embeddings in which student and teacher agree on a sample and differ between classes; weight 0.8.

    Each side has a trained linear head whose output has length one; the teacher's head is trained too, the teacher is
    not. Two memories hold the last embeddings of every training sample; negatives come from the other side's memory.
    Both directions are summed: the student's embedding against the teacher's memory, and the other way round.

    As in the authors' code, to which the weight belongs, Z is estimated once from the first batch (size times the mean
    of e^g); the paper leaves it out. As in the paper, a sample's own pair is made of the two current embeddings; the
    authors' code takes the partner from the memory, which is random during the first epoch.

    A sample's negatives are drawn with replacement from the samples of other classes and depend on its id and the
    epoch only. The memories need size * dim * 8 bytes (51 MB for CIFAR). Mixed labels do not count: a sample has
    the class that the split gives it.
    """

    class Options(spec.Options):
        """Options of `crd`."""

        student_tap: str = Field(description="the student's module whose output is embedded")
        teacher_tap: str = Field(description="the teacher's module whose output is embedded")
        pool: bool = Field(True, description="average over positions or tokens; false flattens them")
        dim: int = Field(128, ge=2, description="size of the common embedding")
        negatives: int = Field(16384, ge=1, description="negatives of a sample, at most the split's samples")
        tau: float = Field(0.07, gt=0.0, allow_inf_nan=False, description="temperature of the similarities")
        momentum: float = Field(0.5, ge=0.0, lt=1.0, description="share of the old embedding kept in the memory")

    family = "feature"
    needs_labels = True
    zero_at_teacher = False
    student_head: nn.Linear
    teacher_head: nn.Linear
    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor
    draws: Tensor

    def student_taps(self) -> tuple[str, ...]:
        """The embedded layer."""
        return (self._options.student_tap,)

    def teacher_taps(self) -> tuple[str, ...]:
        """The embedded layer."""
        return (self._options.teacher_tap,)

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build the heads and the memories.

        Raises:
            UsageError: the training split is not known, not labelled, or of one class.
            MismatchError: a tap that is not (B, D), (B, N, D) or (B, C, H, W).
        """
        assert teacher is not None
        options = self._options
        check_taps("crd", (options.student_tap, student), (options.teacher_tap, teacher))
        self._others = _Others(_labels(self.split))
        ours = embedding(student.taps[options.student_tap], pool=options.pool)
        theirs = embedding(teacher.taps[options.teacher_tap], pool=options.pool)
        self.student_head = nn.Linear(ours.shape[1], options.dim)
        self.teacher_head = nn.Linear(theirs.shape[1], options.dim)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, unit(torch.randn(self._others.size, options.dim)))
        self.register_buffer("log_z", torch.full((2,), torch.nan))  # of the two directions; NaN before the first batch
        self.register_buffer("draws", torch.randint(2**62, ()))  # seed of the negatives

    def forward(self, step: Step) -> Tensor:
        """Both directions' terms of one step; in training mode the memories take the batch in."""
        options = self._options
        ours = self._embedded(self.student_head, step.student.taps[options.student_tap])
        theirs = self._embedded(self.teacher_head, step.teacher.taps[options.teacher_tap].detach())
        count = min(options.negatives, self._others.size)
        chosen = self._others.draw(step.ids, count, seed=int(self.draws), epoch=step.epoch).to(ours.device)
        scores = [
            self._scores(ours, theirs, self.teacher_memory, chosen),
            self._scores(theirs, ours, self.student_memory, chosen),
        ]
        log_z = self._normalisers(scores)
        if self.training:
            self._remember(step.ids, ours, theirs, log_z)
        terms = [
            crd(one[:, 0], one[:, 1:], size=self._others.size, log_z=z) for one, z in zip(scores, log_z, strict=True)
        ]
        return terms[0] + terms[1]

    def _embedded(self, head: nn.Linear, tap: Tensor) -> Tensor:
        with full_precision(tap):
            return unit(head(embedding(tap, pool=self._options.pool)))

    def _scores(self, anchor: Tensor, partner: Tensor, memory: Tensor, chosen: Tensor) -> Tensor:
        """g of the anchor with its partner, then with the chosen rows of the memory, shape (B, 1 + N)."""
        similar = (anchor * partner.detach()).sum(dim=1, keepdim=True)
        with full_precision(anchor):
            # against every row: one product of matrices takes less memory than N copied rows for each sample. The
            # backward pass needs the memory as it is now, and it changes before
            others = (anchor @ memory.clone().T).gather(1, chosen)
        return torch.cat([similar, others], dim=1) / self._options.tau

    @torch.no_grad()
    def _normalisers(self, scores: list[Tensor]) -> Tensor:
        """log Z of the two directions, estimated from the first batch of all processes."""
        if not bool(self.log_z.isnan().any()):
            return self.log_z.clone()
        rows = gathered(torch.stack([one.logsumexp(dim=1) for one in scores], dim=1))
        pairs = len(rows) * scores[0].shape[1]
        return rows.logsumexp(dim=0) + math.log(self._others.size / pairs)

    @torch.no_grad()
    def _remember(self, ids: Tensor, ours: Tensor, theirs: Tensor, log_z: Tensor) -> None:
        self.log_z.copy_(log_z)
        ids, kept = gathered(ids), self._options.momentum
        for memory, fresh in ((self.student_memory, ours), (self.teacher_memory, theirs)):
            memory[ids] = unit(kept * memory[ids] + (1 - kept) * gathered(fresh.detach()))

    @property
    def _options(self) -> Options:
        return cast(CRD.Options, self.options)


class _Others:
    """The samples of the training split, to be drawn from every class but one's own.

    Args:
        labels: class indices, int64, shape (size,), on the CPU.
    """

    def __init__(self, labels: Tensor) -> None:
        self.size = len(labels)
        self._labels = labels
        self._by_class = torch.argsort(labels, stable=True)
        self._counts = torch.bincount(labels)
        self._firsts = self._counts.cumsum(0) - self._counts

    def draw(self, ids: Tensor, count: int, *, seed: int, epoch: int) -> Tensor:
        """`count` samples of other classes for each id, a pure function of the arguments, shape (B, count)."""
        ids = ids.cpu()
        keys = ids[:, None] * count + torch.arange(count)
        chances = uniforms(keys.flatten(), seed=seed, epoch=epoch, stream="crd negatives").view(keys.shape)
        own = self._labels[ids]
        same, first = self._counts[own][:, None], self._firsts[own][:, None]
        places = (chances * (self.size - same)).to(torch.int64)
        # the own class is one block of the order: places from there on lie behind it
        return self._by_class[torch.where(places < first, places, places + same)]


def _labels(split: Split | None) -> Tensor:
    if split is None:
        raise UsageError(
            "crd draws negatives from other classes of the training split, which is not known here. Set the loss's"
            " `split` before `connect`, or train with a recipe."
        )
    if not split.labelled or bool((split.labels == split.labels[:1]).all()):
        raise UsageError(
            "crd draws negatives from other classes, but the training split has"
            f" {'samples without a label' if not split.labelled else 'one class only'}. Use rkd_distance or"
            " similarity_preserving, which need no labels."
        )
    return split.labels
