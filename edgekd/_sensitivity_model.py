"""What sensitivity and mixed precision find out, as records of plain numbers; read and drawn without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from edgekd.spec import Frozen

__all__ = [
    "EQUAL_DB",
    "OUTPUT_DB",
    "WEIGHT_DB",
    "GroupCosts",
    "GroupSensitivity",
    "MixedPrecision",
    "Sensitivity",
    "Step",
]

WEIGHT_DB, OUTPUT_DB = 20.0, 15.0
"""Below these a layer's weights, or its output when it alone is int8, are flagged."""

EQUAL_DB = 200.0
"""What stands for an SQNR without any error, and, negative, for one without any signal; JSON has no infinity."""


class _Record(Frozen):
    model_config = ConfigDict(allow_inf_nan=False)


class GroupSensitivity(_Record):
    """What int8 does to one fusion group, and through it to the network.

    Args:
        name: of the group.
        operator: its row of the rule table, "convolution".
        weight_sqnr_db: of its weights on their grid; None without weights.
        output_sqnr_db: of its own output when it alone is int8.
        end_to_end_sqnr_db: of the logits when it alone is int8.
        kl_alone: KL(float || network with it alone in int8), nats per sample.
        kl_gain: how much of the int8 network's KL to float goes away when it alone is restored, nats per sample; below
            0 where its error happens to make up for another's.
        kl_gain_output: how much goes away when its output alone keeps its floats for every reader: what its range is
            to blame for. 0 where the output is not on a grid.
        readers: int8 groups that take its output's codes; only together with them can the output be float.
        drop_alone: accuracy lost when it alone is int8, a fraction; None without labels.
        gain: accuracy won when it alone is restored, a fraction; None without labels.
        flags: which of "weights" and "output" are below their thresholds.
    """

    name: str
    operator: str
    weight_sqnr_db: float | None
    output_sqnr_db: float
    end_to_end_sqnr_db: float
    kl_alone: float
    kl_gain: float
    kl_gain_output: float = 0.0
    readers: list[str] = Field(default_factory=list)
    drop_alone: float | None = None
    gain: float | None = None
    flags: list[Literal["weights", "output"]] = Field(default_factory=list)


class Sensitivity(_Record):
    """Every int8 group of a network, measured on the same samples.

    Args:
        n: samples.
        accuracy_float, accuracy_int8: fractions; None without labels.
        kl_int8: KL(float || int8), nats per sample.
        sqnr_int8_db: of the int8 network's logits.
        groups: in the order of execution.
    """

    n: int
    accuracy_float: float | None = None
    accuracy_int8: float | None = None
    kl_int8: float
    sqnr_int8_db: float
    groups: list[GroupSensitivity]

    def worst(self) -> list[GroupSensitivity]:
        """The groups that int8 hurts most first: by what it does to them or to their output, whichever is more.

        By KL: it moves with every sample, where accuracy on some hundred of them moves in steps of one and is equal for
        most groups. Equal ones by accuracy, then in the order of execution.
        """
        return sorted(self.groups, key=lambda one: (-max(one.kl_gain, one.kl_gain_output), -(one.gain or 0.0)))


class GroupCosts(_Record):
    """What each group costs in float beyond int8, measured on the target.

    Args:
        ms: by group, float time minus int8 time of its operators; below 0 where int8 is slower. The conversions that
            a border between int8 and float needs are not in it.
        int8_ms, float_ms: of all operators of the two files.
        assigned: share of both files' operator time whose place is known: a group, a conversion, or an operator that
            has no int8 kernel; a fraction.
        spread: groups whose operators have lost their names; their types' time is spread over them evenly.
        quantize_ns, dequantize_ns: of one element at a border.
        batch: samples in each run.
    """

    ms: dict[str, float]
    int8_ms: float
    float_ms: float
    assigned: float
    spread: list[str] = Field(default_factory=list)
    quantize_ns: float
    dequantize_ns: float
    batch: int = 1


class Step(_Record):
    """One mixture on the way from all int8 to the one that holds.

    Args:
        action: "int8" starts, "restore" puts `groups` to float, "give_back" tries them in int8 again, "float" is the
            whole network in float, for comparison.
        groups: what the step is about.
        float_layers: all groups in float by choice after it.
        metric: on the validation data, larger is better.
        drop: metric of the float network minus this one.
        holds: drop <= max_drop.
        accepted: whether the way goes on from here.
        estimated_ms: from the cost of each group and the conversions between int8 and float.
        measured_ms: None where it was not measured.
    """

    action: Literal["int8", "restore", "give_back", "float"]
    groups: list[str] = Field(default_factory=list)
    float_layers: list[str]
    metric: float
    drop: float
    holds: bool
    accepted: bool
    estimated_ms: float
    measured_ms: float | None = None

    @property
    def ms(self) -> float:
        """Measured latency, else the estimate."""
        return self.estimated_ms if self.measured_ms is None else self.measured_ms


class MixedPrecision(_Record):
    """Which groups are float so that the metric's drop holds, and how that was found.

    Args:
        metric: its name, "accuracy".
        max_drop: largest allowed drop against the float network.
        float_layers: the groups to keep in float, in the order of execution; empty if int8 holds by itself.
        followers: groups that are float too because nobody takes their codes any more.
        drop: of this mixture.
        all_float: nothing is left in int8.
        path: every step, in order; the last is the float network.
    """

    metric: str
    max_drop: float
    float_layers: list[str]
    followers: list[str] = Field(default_factory=list)
    drop: float
    all_float: bool
    path: list[Step]

    @property
    def final(self) -> Step:
        """The step that was ended with."""
        return [step for step in self.path if step.accepted][-1]
