"""What is compared: every loss with and without kd, every method, each with the weight its own page gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASELINE", "PLAIN_KD", "ROWS", "TRANSFORMER_ROWS", "Row"]

BASELINE, PLAIN_KD = "student_alone", "kd"

_LABELS = ("cross_entropy", 1.0, {})
_KD = ("kd", 0.9, {"tau": 4.0})
_LESS_LABELS = ("cross_entropy", 0.1, {})
_PAIRS = {"student_taps": ["layer1", "layer2"], "teacher_taps": ["layer2", "layer3"]}
_LAST = {"student_tap": "layer2", "teacher_tap": "layer3"}

LossRow = tuple[str, float, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One way to train the student.

    Args:
        group: where it stands in the table.
        losses: name, weight and options of each term.
        method: who learns from whom.
        options: of the method.
        teachers: how many of the trained teachers it is given.
        assistant: a network between teacher and student is trained first.
    """

    group: str
    losses: tuple[LossRow, ...]
    method: str = "offline"
    options: Mapping[str, Any] = field(default_factory=dict)
    teachers: int = 1
    assistant: bool = False


# the terms that stand beside the labels, each with the weight of its docstring, scaled where that says so
_SINGLE: dict[str, LossRow] = {
    "hint": ("hint", 100.0, _LAST),
    "attention": ("attention", 1000.0, _PAIRS),
    "review_kd": ("review_kd", 1.0, _PAIRS),
    "ofd": ("ofd", 1e-3, _PAIRS),
    "ab": ("ab", 3e-3, _PAIRS),
    "nst": ("nst", 50.0, _PAIRS),
    "vid": ("vid", 1.0, _PAIRS),
    "mgd": ("mgd", 7e-5, {"student_taps": ["layer2"], "teacher_taps": ["layer3"]}),
    "crd": ("crd", 0.8, {**_LAST, "negatives": 2048}),
    "rkd_distance": ("rkd_distance", 25.0, _LAST),
    "rkd_angle": ("rkd_angle", 50.0, _LAST),
    "similarity_preserving": ("similarity_preserving", 3000.0, _PAIRS),
    "correlation_congruence": ("correlation_congruence", 100.0, _LAST),
    "pkt": ("pkt", 30000.0, _LAST),
    "fsp": ("fsp", 50.0, {"student_taps": ["layer1", "layer2"], "teacher_taps": ["layer1", "layer2"]}),
    "multi_head_graph": ("multi_head_graph", 1.0, _PAIRS),
}
_LOGITS: dict[str, tuple[LossRow, ...]] = {
    PLAIN_KD: (_LESS_LABELS, _KD),
    "kd, 3 temperatures": (_LESS_LABELS, ("kd", 0.9, {"tau": 2.0, "more_taus": [4.0, 8.0]})),
    "kd, standardized": (_LESS_LABELS, ("kd", 9.0, {"tau": 2.0, "standardize": True})),
    "kd without labels": (("kd", 1.0, {"tau": 4.0}),),
    "dkd": (_LABELS, ("dkd", 1.0, {"warmup_epochs": 2})),
    "dist": (_LABELS, ("dist", 1.0, {})),
    "mse_logits": (("mse_logits", 1.0, {}),),
    "binary_kd": (_LESS_LABELS, ("binary_kd", 0.9, {})),
}
_BOTH = (_LESS_LABELS, _KD)
_METHODS: dict[str, Row] = {
    "offline, 3 teachers": Row("method", _BOTH, teachers=3),
    "offline, 3 teachers by confidence": Row("method", _BOTH, options={"weighting": "confidence"}, teachers=3),
    "hydra, 3 teachers": Row("method", _BOTH, "hydra", {"student_tap": "flatten"}, teachers=3),
    "assistant": Row("method", _BOTH, "assistant", assistant=True),
    "assistant, dense": Row("method", _BOTH, "assistant", {"dense": True}, assistant=True),
    "mutual": Row("method", (_LABELS, ("kd", 1.0, {"tau": 1.0})), "mutual"),
    "native_ensemble": Row(
        "method", (_LABELS, ("kd", 1.0, {"tau": 3.0})), "native_ensemble", {"student_tap": "layer1"}
    ),
    "collaborative, heads": Row(
        "method",
        (("cross_entropy", 0.5, {}), ("kd", 0.5, {"tau": 2.0})),
        "collaborative",
        {"students": "heads", "student_tap": "layer1"},
    ),
    "collaborative, peers": Row("method", (_LABELS, ("kd", 1.0, {"tau": 2.0})), "collaborative", {"students": "peers"}),
    "own_teacher": Row(
        "method",
        (_LABELS, ("kd", 1.0, {"tau": 3.0})),
        "own_teacher",
        {"taps": ["stem", "layer1"], "deepest_tap": "layer2"},
    ),
    "last_batch": Row("method", (_LABELS, ("kd", 1.0, {"tau": 3.0})), "last_batch"),
    "progressive": Row("method", (_LABELS, ("kd", 1.0, {"tau": 1.0})), "progressive"),
    "class_pairs": Row("method", (_LABELS, ("kd", 1.0, {"tau": 4.0})), "class_pairs"),
    "two_views": Row("method", (_LABELS, ("kd", 1.0, {"tau": 3.0})), "two_views"),
}

ROWS: dict[str, Row] = {
    BASELINE: Row("baseline", (_LABELS,), "alone", teachers=0),
    **{name: Row("logits", losses) for name, losses in _LOGITS.items()},
    **{name: Row("features", (_LABELS, loss)) for name, loss in _SINGLE.items()},
    **{f"{name} + kd": Row("features with kd", (_LESS_LABELS, _KD, loss)) for name, loss in _SINGLE.items()},
    **_METHODS,
}

_LAYERS = {"student_layers": 2, "teacher_layers": 4}
_TOKENS: dict[str, LossRow] = {
    "hidden_states": ("hidden_states", 1.0, {"student_taps": ["layers.{}"], "teacher_taps": ["layers.{}"], **_LAYERS}),
    "attention_maps": (
        "attention_maps",
        1.0,
        # the squared difference of probabilities is tiny beside the labels; the published weight is of raw scores
        {
            "student_taps": ["layers.{}.attention"],
            "teacher_taps": ["layers.{}.attention"],
            "distance": "kl",
            **_LAYERS,
        },
    ),
    "minilm": ("minilm", 1.0, {"student_taps": ["layers.1.qkv"], "teacher_taps": ["layers.3.qkv"], "heads": 2}),
}
TRANSFORMER_ROWS: dict[str, Row] = {
    BASELINE: Row("baseline", (_LABELS,), "alone", teachers=0),
    PLAIN_KD: Row("logits", (_LESS_LABELS, _KD)),
    **{name: Row("transformer", (_LABELS, loss)) for name, loss in _TOKENS.items()},
    **{f"{name} + kd": Row("transformer with kd", (_LESS_LABELS, _KD, loss)) for name, loss in _TOKENS.items()},
}
"""The losses that only transformers have layers for."""
