"""Mixed precision: put fusion groups back to float, cheapest accuracy per millisecond first, until the drop holds.

The whole group goes, an operator with the ReLU behind it: half of one in float would cost conversions and win nothing.
What each group wins is measured by `sensitivity.measure`, what it costs by `group_costs` on the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.fx import GraphModule

from edgekd._floated import float_twin, floated
from edgekd._group_costs import group_costs
from edgekd._plans import Mixtures
from edgekd._sensitivity_model import GroupCosts, MixedPrecision, Sensitivity, Step
from edgekd._switching import Switchboard
from edgekd.errors import MismatchError, UsageError
from edgekd.targets._base import Numerics

__all__ = [
    "Forward",
    "GroupCosts",
    "MixedPrecision",
    "Step",
    "float_twin",
    "floated",
    "group_costs",
    "restoration_order",
    "restore",
]

Forward = Callable[[Tensor], Tensor]
"""From inputs (B, C, H, W) to logits (B, K)."""

_LEAST_MS = 0.001
"""What each group costs at least when accuracy is divided by cost: beneath it, times are noise."""


def restore(
    graph: GraphModule,
    sensitivity: Sensitivity,
    *,
    costs: GroupCosts,
    numerics: Numerics,
    metric: Callable[[Forward], float],
    max_drop: float,
    metric_name: str = "accuracy",
    latency: Callable[[Sequence[str]], float] | None = None,
    progress: Callable[[Step], None] | None = None,
) -> MixedPrecision:
    """Find the groups that must be float so that the metric drops by at most `max_drop` against the float network.

    Groups are restored in the order of `restoration_order`, and the metric is taken again after each step. Once the
    drop holds, every restored group is tried in int8 again, the most expensive first: some were only on the way.

    Args:
        graph: from `quantize.prepare`, calibrated or trained; it is not changed.
        sensitivity: of this graph.
        costs: of its groups.
        numerics: what the graph was prepared for.
        metric: what a function from inputs to logits scores on the validation data; larger is better. It must give
            the same number for the same function.
        max_drop: largest allowed drop, in the metric's unit, >= 0.
        metric_name: for reports.
        latency: milliseconds of the network with these groups in float, measured; called once for every step that
            is taken. Without it, latencies are estimates.
        progress: called after every step.

    Returns:
        The groups, and every step of the way. Where nothing less holds, all of them: `all_float` says so.

    Raises:
        UsageError: the metric is no finite number, or `max_drop` is negative.
        MismatchError: the sensitivity or the costs are of another graph.
    """
    if not max_drop >= 0.0:
        raise UsageError(f"max_drop must be >= 0, got {max_drop}.")
    search = _Search(graph, costs, numerics, metric, max_drop, latency, progress)
    order = restoration_order(graph, sensitivity, costs=costs, numerics=numerics)
    step = search.take("int8", (), [])
    for unit in order:
        if step.holds:
            break
        if missing := [name for name in unit if search.is_int8(name)]:
            step = search.take("restore", missing, [*step.float_layers, *missing])
    for name in sorted(step.float_layers, key=lambda one: -search.cost_ms(one)):
        search.give_back(name)
    search.compare_with_float()
    return search.result(metric_name)


def restoration_order(
    graph: GraphModule, sensitivity: Sensitivity, *, costs: GroupCosts, numerics: Numerics
) -> list[tuple[str, ...]]:
    """What to put to float, cheapest accuracy per millisecond first: single groups, and groups with their readers.

    A group with the readers of its output is one candidate where the output's range is to blame: the codes between
    them go only when all of them are float. Accuracy is the KL that a candidate wins: it moves with every sample, while
    top-1 on some hundred samples is equal for most groups. Cost is what float takes longer than int8, plus the
    conversions that the candidate needs at its borders. Equal ones stay in the order of execution.

    Raises:
        MismatchError: the sensitivity or the costs are of another graph.
    """
    board = Mixtures(graph, numerics=numerics)
    rows = {one.name: one for one in sensitivity.groups}
    for what, known in (("sensitivity", set(rows)), ("costs", set(costs.ms))):
        if missing := [name for name in board.base.int8 if name not in known]:
            raise MismatchError(f"The {what} lack the layer '{missing[0]}'. Measure them on this very graph.")
    before = _conversion_ms(board, (), costs)

    def value(unit: tuple[str, ...]) -> float:
        gain = sum(max(rows[name].kl_gain, 0.0) for name in unit)
        gain += max(rows[unit[0]].kl_gain_output, 0.0) if len(unit) > 1 else 0.0
        cost_ms = sum(costs.ms[name] for name in unit) + _conversion_ms(board, unit, costs) - before
        return gain / max(cost_ms, _LEAST_MS * len(unit))

    units: dict[tuple[str, ...], float] = {(name,): value((name,)) for name in board.base.int8}
    for name in board.base.int8:
        unit = (name, *rows[name].readers)
        # without a range to blame, together is never better than the better one of them first
        if len(unit) > 1 and (worth := value(unit)) > max(units[one,] for one in unit):
            units[unit] = worth
    return sorted(units, key=lambda unit: (-units[unit], -sum(rows[name].kl_gain for name in unit)))


class _Search:
    """The state of one search: what is float by choice, what was scored already, and the way so far."""

    def __init__(
        self,
        graph: GraphModule,
        costs: GroupCosts,
        numerics: Numerics,
        metric: Callable[[Forward], float],
        max_drop: float,
        latency: Callable[[Sequence[str]], float] | None,
        progress: Callable[[Step], None] | None,
    ) -> None:
        self._board = Switchboard(graph, numerics=numerics)
        self._costs, self._metric, self._max_drop = costs, metric, max_drop
        self._latency, self._progress = latency, progress
        self._scores: dict[frozenset[str], float] = {}
        self._path: list[Step] = []
        self._floats: list[str] = []
        self._in_float = self._scored(list(self._board.base.int8))

    def is_int8(self, name: str) -> bool:
        """Whether a group still runs as int8: it may have followed another one."""
        return name in self._board.plan(self._floats).int8

    def cost_ms(self, name: str) -> float:
        """What a group costs in float, without conversions."""
        return self._costs.ms[name]

    def take(self, action: str, groups: Sequence[str], floats: list[str]) -> Step:
        """Go on to a mixture."""
        self._floats = [name for name in self._board.base.int8 if name in floats]
        return self._step(action, groups, self._floats, accepted=True)

    def give_back(self, name: str) -> None:
        """Try a group in int8 again, and leave it there if the drop still holds."""
        floats = [one for one in self._floats if one != name]
        known = frozenset(floats) in self._scores
        holds = self._holds(self._scored(floats))
        if holds:
            self._floats = floats
        if holds or not known:
            self._step("give_back", (name,), floats, accepted=holds)

    def compare_with_float(self) -> None:
        """The other end of the way."""
        self._step("float", (), list(self._board.base.int8), accepted=False)

    def result(self, metric_name: str) -> MixedPrecision:
        left = self._board.plan(self._floats).int8
        return MixedPrecision(
            metric=metric_name,
            max_drop=self._max_drop,
            float_layers=self._floats,
            followers=[one for one in self._board.base.int8 if one not in left and one not in self._floats],
            drop=self._in_float - self._scored(self._floats),
            all_float=not left,
            path=self._path,
        )

    def _step(self, action: str, groups: Sequence[str], floats: list[str], *, accepted: bool) -> Step:
        score = self._scored(floats)
        timed = self._latency if accepted or action == "float" else None
        step = Step.model_validate(
            {
                "action": action,
                "groups": list(groups),
                "float_layers": list(floats),
                "metric": score,
                "drop": self._in_float - score,
                "holds": self._holds(score),
                "accepted": accepted,
                "estimated_ms": self._estimated_ms(floats),
                "measured_ms": None if timed is None else float(timed(tuple(floats))),
            }
        )
        self._path.append(step)
        if self._progress is not None:
            self._progress(step)
        return step

    def _estimated_ms(self, floats: Sequence[str]) -> float:
        board, costs = self._board, self._costs
        gone = set(board.base.int8) - set(board.plan(floats).int8)
        borders = _conversion_ms(board, floats, costs) - _conversion_ms(board, (), costs)
        return max(0.0, costs.int8_ms + sum(costs.ms[name] for name in sorted(gone)) + borders)

    def _scored(self, floats: Sequence[str]) -> float:
        key = frozenset(floats)
        if key not in self._scores:
            score = float(self._metric(self._board.forward(self._board.plan(floats))))
            if not math.isfinite(score):
                raise UsageError(f"The metric must be a finite number, got {score} with {len(key)} layers in float.")
            self._scores[key] = score
        return self._scores[key]

    def _holds(self, score: float) -> bool:
        # a drop that equals max_drop holds, also where the difference of two shares is not exact
        return self._in_float - score <= self._max_drop + 1e-12


def _conversion_ms(board: Mixtures, floats: Sequence[str], costs: GroupCosts) -> float:
    """Time of all conversions of a mixture."""
    to_codes, to_floats = board.conversions(board.plan(floats))
    return costs.batch * (to_codes * costs.quantize_ns + to_floats * costs.dequantize_ns) / 1e6
