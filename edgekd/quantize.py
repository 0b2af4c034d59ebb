"""Float student to int8 program: prepare, calibrate, train further (by the engine), convert; with checks between.

The student is exported once with its taps as outputs, batch normalisation is folded into the convolutions, and
torchao's PT2E flow puts our quantizers where the target wants them. One prepared graph serves calibration,
quantization-aware training and conversion, so that the ranges of post-training quantization are where
quantization-aware training starts.

    post-training                prepare, calibrate; or both with corrections and a report: post_training
    quantization-aware training  set_phase "track", or learn_ranges and set_phase "learn"; OscillationGuard; then
                                 settle_ranges and set_phase "frozen"
    int8                         convert
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule

from edgekd._converting import convert
from edgekd._oscillation import OscillationGuard, OscillationOptions
from edgekd._post_training import Corrected, PostTraining, calibrate, post_training
from edgekd._preparing import MIN_FAITHFUL_DB, NotFaithful, capture, faithful_db, folded, prepare, sqnr_db
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers, set_phase
from edgekd.calibration._learning import learn_ranges, match_scales, settle_ranges, settled_state
from edgekd.errors import MismatchError

__all__ = [
    "MIN_FAITHFUL_DB",
    "Corrected",
    "NotFaithful",
    "OscillationGuard",
    "OscillationOptions",
    "PostTraining",
    "calibrate",
    "capture",
    "convert",
    "faithful_db",
    "folded",
    "learn_ranges",
    "post_training",
    "prepare",
    "ranges",
    "restore",
    "set_phase",
    "settle_ranges",
    "sqnr_db",
]


def ranges(graph: GraphModule) -> Mapping[str, tuple[float, float]]:
    """The range of every activation quantizer, by name; what was learned included."""
    found = {}
    for name, quantizer in quantizers(graph):
        if isinstance(quantizer, ActivationQuantizer):
            low, high = quantizer.ends()
            found[name] = (float(low), float(high))
    return found


def restore(graph: GraphModule, state: Mapping[str, Tensor]) -> None:
    """Load weights and ranges that were saved from an equally prepared graph; its ranges do not learn afterwards.

    Args:
        graph: from `prepare`, whatever has been done with it since.
        state: of a graph whose ranges were tracked, learned or neither.

    Raises:
        MismatchError: the graphs differ; names the first keys that do.
    """
    settled = settled_state(graph, state)
    own = settled_state(graph, graph.state_dict())
    learned = {name for name in (*own, *settled) if name.endswith(".scale") and "activation_post_process" in name}
    # names of the network first: they tell more than the numbers of quantizers
    odd = sorted((set(own) ^ set(settled)) - learned, key=lambda name: ("activation_post_process" in name, name))
    if odd:
        raise MismatchError(f"The saved quantized student has another graph: {', '.join(odd[:4])} on one side only.")
    unlike = [name for name in own if name not in learned and own[name].shape != settled[name].shape]
    if unlike:
        pairs = [f"{name} is {list(settled[name].shape)}, here {list(own[name].shape)}" for name in unlike[:4]]
        raise MismatchError(f"The saved quantized student has other shapes: {'; '.join(pairs)}.")
    settle_ranges(graph)
    match_scales(graph, settled)
    graph.load_state_dict(settled)
    set_phase(graph, "frozen")
