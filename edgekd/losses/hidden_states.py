"""Match a transformer's token vectors, layer by layer (TinyBERT, DistilBERT)."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.errors import MismatchError
from edgekd.losses._base import Loss, Outputs, Step, float32
from edgekd.losses._layer_map import LayerPairs

__all__ = ["HiddenStates", "hidden_states"]

SHORTEST = 1e-5  # vectors below it count as this long: the gradient of a direction is one over the length


def hidden_states(guided: Tensor, target: Tensor, *, distance: Literal["mse", "cosine"] = "mse") -> Tensor:
    """Distance of two layers' token vectors, mean over the batch and the tokens.

    Args:
        guided: the student's, after the connector, shape (B, N, D) or (B, D).
        target: the teacher's, same shape; no gradient flows into it.
        distance: "mse" is the mean over the D features of the squared difference, which fits directions and lengths;
            "cosine" is 1 - cos of the angle, which fits directions only.

    Returns:
        Scalar, float32, >= 0; at most 2 for "cosine".

    Reference: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language
    Understanding", 2019, arXiv:1909.10351, equation 8; cosine: Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled
    version of BERT", 2019, arXiv:1910.01108, section 2.

    >>> import torch
    >>> s, t = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 0.0]]])
    >>> hidden_states(s, t).item(), round(hidden_states(s, t, distance="cosine").item(), 4)  # 16 / 2 and 1 - 3/5
    (8.0, 0.4)
    """
    ours, theirs = float32(guided), float32(target.detach())
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    ours, theirs = (F.normalize(one, dim=-1, eps=SHORTEST) for one in (ours, theirs))
    return (1 - (ours * theirs).sum(dim=-1)).mean()


class HiddenStates(Loss):
    """Learn the teacher's token vectors of mapped layers; the sum over the layer pairs.

    The student's vectors go through a linear connector without bias, W_h of equation 8: as in the paper one matrix
    serves every pair of the same two widths. It starts as the identity where the widths agree, is trained with the
    student, and is never exported. The paper's weight is 1. DistilBERT pairs layers of one width by their cosine, with
    weight 1 against 5 for the softened classes.

    With timm's vision transformers tap `blocks.{}`, and `patch_embed` for the paper's embedding layer (equation 9).
    """

    class Options(LayerPairs):
        """Options of `hidden_states`."""

        distance: Literal["mse", "cosine"] = Field("mse", description="mse fits lengths too, cosine only directions")

    family = "feature"
    connectors: nn.ModuleDict

    def student_taps(self) -> tuple[str, ...]:
        """The student's layers."""
        return tuple(ours for ours, _ in self._options.pairs())

    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's layers, in the same order."""
        return tuple(theirs for _, theirs in self._options.pairs())

    def connect(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build one connector for each pair of widths.

        Raises:
            MismatchError: taps that are not token vectors, or other numbers of tokens on the two sides.
        """
        assert teacher is not None
        self.connectors = nn.ModuleDict()
        for ours, theirs in self._options.pairs():
            one, other = student.taps[ours], teacher.taps[theirs]
            if one.dim() not in (2, 3) or one.shape[1:-1] != other.shape[1:-1] or one.dim() != other.dim():
                raise MismatchError(
                    f"hidden_states cannot join student tap '{ours}' of shape {tuple(one.shape)} and teacher tap"
                    f" '{theirs}' of shape {tuple(other.shape)}. Tap layers with (B, N, D) and as many tokens N, or"
                    " with (B, D); for feature maps (B, C, H, W) use the loss 'hint'."
                )
            name = _name(one, other)
            if name not in self.connectors:
                self.connectors[name] = _connector(one.shape[-1], other.shape[-1])

    def forward(self, step: Step) -> Tensor:
        """The sum over the layer pairs of one step."""
        terms = []
        for ours, theirs in self._options.pairs():
            one, other = step.student.taps[ours], step.teacher.taps[theirs]
            # half precision would overflow in the connector's sums, and round differences that are to be squared
            with torch.autocast(one.device.type, enabled=False):
                guided = self.connectors[_name(one, other)](float32(one))
                terms.append(hidden_states(guided, other, distance=self._options.distance))
        return torch.stack(terms).sum()

    @property
    def _options(self) -> Options:
        return cast(HiddenStates.Options, self.options)


def _name(student: Tensor, teacher: Tensor) -> str:
    return f"{student.shape[-1]}_to_{teacher.shape[-1]}"


def _connector(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    if inputs == outputs:
        nn.init.eye_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer
