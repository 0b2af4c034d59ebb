"""What joins edgekd's losses and torchdistill's, and who follows the paper where the two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LOSSES", "Side"]


@dataclass(frozen=True)
class Side:
    """What the record says in words about one loss.

    Args:
        peer: torchdistill's class; None where it has none.
        source: the equation that both are held against.
        joins: what makes edgekd's value of torchdistill's.
        differs: where a side leaves the paper, which one and why; empty where both follow it.
    """

    peer: str | None
    source: str
    joins: str
    differs: str = ""


LOSSES: Mapping[str, Side] = {
    "kd": Side(
        "KDLoss",
        "Hinton et al. 2015, section 2",
        "same beside labels; times tau^2 without them, which torchdistill leaves out when alpha is 0",
    ),
    "attention": Side(
        "ATLoss",
        "Zagoruyko and Komodakis 2016, equation 2",
        "same as its mode 'code', which needs equal H and W; its mode 'paper' squared, over H W, for one sample",
        "The equation has the norm of the difference of two maps. edgekd takes its square as a mean over positions, as"
        " the authors' code does, because the published weight of 1000 belongs to that; torchdistill has both, and its"
        " mode 'paper' follows the equation.",
    ),
    "similarity_preserving": Side(
        "SPKDLoss",
        "Tung and Mori 2019, equations 1 to 4",
        "nothing: torchdistill's rows have length one in another norm",
        "edgekd follows the paper, whose rows of the similarity matrix have length one in the L2 norm. torchdistill"
        " passes 1 to normalize in the place of p, so the absolute values of a row sum to 1, and values are smaller.",
    ),
    "correlation_congruence": Side(
        "CCKDLoss",
        "Peng et al. 2019, sections 3.2 and 3.3",
        "its square times B^2, on embeddings of length one",
        "edgekd follows the paper, which has the squared distance of two matrices over B^2; torchdistill has the"
        " distance, not squared, over B^2. The kernel's series holds for embeddings of length one, which edgekd makes"
        " and torchdistill leaves to the caller. The paper's linear layers edgekd leaves out.",
    ),
    "rkd_distance": Side(
        "RKDLoss", "Park et al. 2019, equations 4 to 6", "times B / (B - 1): its mean counts the zeros of the diagonal"
    ),
    "rkd_angle": Side(
        "RKDLoss",
        "Park et al. 2019, equations 6 to 8",
        "times B^2 / ((B - 1)(B - 2)): its mean counts triplets that name a sample twice",
    ),
    "pkt": Side(
        "PKTLoss",
        "Passalis and Tefas 2018, section 3",
        "nothing: torchdistill counts each sample as its own neighbour, so every probability differs",
        "edgekd follows the paper, whose probabilities are over the other samples. torchdistill follows the authors'"
        " code, where each sample is its own neighbour too.",
    ),
    "vid": Side("VIDLoss", "Ahn et al. 2019, section 2", "same, on the same connector and variances"),
    "crd": Side(
        "CRDLoss",
        "Tian et al. 2020, equations 17 to 19",
        "same heads, memories and negatives; the memory holds the batch's embeddings, from which torchdistill takes a"
        " sample's partner and edgekd does not",
        "The paper's partner is the current embedding of the same sample: edgekd's. torchdistill takes it from the"
        " memory, as the authors' code does. Neither term of the paper has a Z: both sides estimate one from the first"
        " batch, as the authors' code does, because the published weight belongs to it. With Z = 1 both follow the"
        " equations.",
    ),
    "nst": Side(
        None,
        "Huang and Wang 2017, section 4",
        "nothing: torchdistill has no such loss",
        "edgekd follows the paper; it is held against the paper's equation alone, for each of the three kernels.",
    ),
    "fsp": Side(
        "FSPLoss",
        "Yim et al. 2017, equations 1 and 2",
        "its squared values for one sample and one later channel at a time, as a mean over the matrix's entries",
        "edgekd follows the paper, which squares the differences of the matrices. torchdistill adds up the norms of"
        " their columns, not squared.",
    ),
    "ab": Side("AltActTransferLoss", "Heo et al. 2018, the alternative loss", "same with reduction 'mean'"),
    "dist": Side("DISTLoss", "Huang et al. 2022, section 4", "same"),
}
"""Every compared loss."""
