"""The deepest layers of a network teach classifiers that are put on its shallower ones (BYOT); those can exit early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, float32
from edgekd.methods._base import Batch, Term
from edgekd.methods._observe import observe
from edgekd.methods._self_taught import SelfTaught, even_shares, pooled
from edgekd.taps import Tapped, TupleOutputs, named_outputs, tapped

__all__ = ["OwnTeacher", "feature_distance"]


def feature_distance(branch: Tensor, deepest: Tensor) -> Tensor:
    """Squared length of the difference of two feature vectors, mean over the batch.

    Args:
        branch: shape (B, D).
        deepest: same shape; no gradient flows into it.

    Returns:
        Scalar, float32.

    Reference: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher", 2019, arXiv:1905.08094, section 3.1.

    >>> import torch
    >>> feature_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])).item()  # 2^2 + 1^2
    5.0
    """
    return (float32(branch) - float32(deepest.detach())).square().sum(dim=1).mean()


class OwnTeacher(SelfTaught):
    """Give shallow layers classifiers of their own, and let the network's last one teach them.

    Every classifier learns (1 - alpha) labels + alpha (the deepest classifier's answers), and features like the
    deepest ones; the deepest learns the labels. The two groups of the recipe's losses count by alpha: within each,
    their weights are scaled to sum to one. With `cross_entropy` and `kd` these are the paper's equations. A loss that
    needs a teacher sees a branch as the student and the deepest logits, without gradient, as the teacher.

    A branch is three convolutions (1x1 to a quarter of the deepest channels, 3x3 with stride 2, 1x1 to the deepest
    channels), the mean over height and width, and a linear layer. It is not in the exported student; `exits` gives
    each with the layers before it, as a classifier that needs a part of the network only.

    Reference: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
    Networks via Self Distillation", 2019, arXiv:1905.08094, section 3.1: alpha 0.3, lambda 0.03.
    """

    class Options(spec.Options):
        """Options of `own_teacher`."""

        taps: list[str] = Field(
            min_length=1, description="the student's modules that get a classifier, from shallow to deep"
        )
        deepest_tap: str = Field(description="the student's module before its own classifier: its features teach")
        alpha: float = Field(0.3, ge=0.0, le=1.0, description="share of the deepest answers in what a branch learns")
        hint_weight: float = Field(
            0.03,
            ge=0.0,
            allow_inf_nan=False,
            description="lambda of the paper: weight of the branches' distance from the deepest features",
        )

        @model_validator(mode="after")
        def _apart(self) -> Self:
            if len({*self.taps, self.deepest_tap}) != len(self.taps) + 1:
                raise ValueError("taps and deepest_tap must name different modules, each once")
            return self

    branches: nn.ModuleList

    @classmethod
    def student_taps(cls, options: spec.Options) -> tuple[str, ...]:
        """The layers that get a branch, and the deepest features."""
        chosen = cast(OwnTeacher.Options, options)
        return (*chosen.taps, chosen.deepest_tap)

    def prepare(self, example: Tensor) -> None:
        """See `SelfTaught.prepare`; also builds the branches.

        Raises:
            MismatchError: a tap that gives no map, or deepest features that are neither vectors nor maps.
        """
        super().prepare(example)
        outputs = self._example
        size, classes = self._deepest(outputs).shape[1], outputs.logits.shape[1]
        for tap in self._options.taps:
            if outputs.taps[tap].dim() != 4:
                raise MismatchError(
                    f"own_teacher puts convolutions on maps of shape (B, C, H, W), but tap '{tap}' gives"
                    f" {tuple(outputs.taps[tap].shape)}. Tap a convolutional block."
                )
        self.branches = nn.ModuleList(_Branch(outputs.taps[tap].shape[1], size, classes) for tap in self._options.taps)
        self.branches.to(example.device)

    def terms(self, batch: Batch) -> Mapping[str, Term]:
        """The deepest classifier's terms by the losses' names, and those of each branch by `name@tap`."""
        outputs, chosen = observe(self._networks[0], batch.inputs), self._options
        labels, answers = even_shares(self.label_losses), even_shares(self.answer_losses)
        step = self._step(batch, outputs)
        terms = {term.name: Term(term.loss(step), term.weight) for term in labels}
        for tap, branch in zip(chosen.taps, self.branches, strict=True):
            logits, features = branch(outputs.taps[tap])
            step = self._step(batch, Outputs(logits, outputs.taps), outputs)
            for share, losses in ((1 - chosen.alpha, labels), (chosen.alpha, answers)):
                terms |= {f"{term.name}@{tap}": Term(term.loss(step), share * term.weight) for term in losses}
            distance = feature_distance(features, self._deepest(outputs))
            terms[f"features@{tap}"] = Term(distance, chosen.hint_weight)
        return terms

    def trained(self) -> tuple[nn.Module, ...]:
        """The student, the losses' connectors and the branches."""
        return (self.student, self.connectors, self.branches)

    def exits(self) -> Mapping[str, nn.Module]:
        """Every branch as a network of its own, by its tap: inputs (B, C, H, W) to logits (B, K).

        It shares its layers with the student and runs all of them; a program that is exported from it holds only
        those that its logits depend on.
        """
        return {
            tap: _Exit(tapped(self.student, [tap]), tap, branch)
            for tap, branch in zip(self._options.taps, self.branches, strict=True)
        }

    def _deepest(self, outputs: Outputs) -> Tensor:
        tap = self._options.deepest_tap
        return pooled(outputs.taps[tap], method=self.name, tap=tap)

    @property
    def _options(self) -> Options:
        return cast(OwnTeacher.Options, self.options)


class _Branch(nn.Module):
    """Maps (B, C, H, W) to logits (B, K) and features (B, D)."""

    def __init__(self, channels: int, features: int, classes: int) -> None:
        super().__init__()
        middle = max(1, features // 4)
        self.bottleneck = nn.Sequential(
            *_convolution(channels, middle, 1),
            *_convolution(middle, middle, 3, stride=2),
            *_convolution(middle, features, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(features, classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        features = self.bottleneck(maps)
        return self.classifier(features), features


class _Exit(nn.Module):
    """A network up to one of its layers, and the branch on it."""

    def __init__(self, network: Tapped | TupleOutputs, tap: str, branch: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.tap = tap
        self.branch = branch

    def forward(self, inputs: Tensor) -> Tensor:
        _, taps = named_outputs(self.network, self.network(inputs))
        logits: Tensor = self.branch(taps[self.tap])[0]
        return logits


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, nn.BatchNorm2d(outputs), nn.ReLU()
