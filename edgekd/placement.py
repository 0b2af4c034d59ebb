"""Which Q/DQ placement is fastest on this very device: candidates are built with stand-in ranges and timed in turn.

Latency does not depend on the values of scales and weights, so the search runs before any training. It changes one
thing at a time against the target's own rules, joins the changes that paid, and duels the result with the rules: what
is not faster beyond doubt is not taken, so a searched placement is never slower than the default one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from edgekd.errors import EdgeKDError, UsageError
from edgekd.measure import Latency, Protocol, Ratio, measure
from edgekd.spec import Frozen, Runner
from edgekd.targets._base import Numerics
from edgekd.targets._groups import Group
from edgekd.targets._rules import OPERATORS

__all__ = ["DEFAULT", "Candidate", "Found", "Placement", "Timed", "candidates", "search"]

DEFAULT = "default"

_OPTIONAL = ("binary", "pool", "concat", "product", "function")
_DUELS = 3  # the fastest, the runner-up, and one more whose accuracy may be the one that holds


class Placement(Frozen):
    """What of the rule table is used.

    Args:
        name: what was changed, "without add"; "default" is the target's own rules.
        operators: names of the operators that run as int8.
        float_layers: groups that stay float beside those of the recipe.
    """

    name: str
    operators: list[str]
    float_layers: list[str] = Field([])

    def numerics(self, numerics: Numerics) -> Numerics:
        """A target's numerics with these operators."""
        return replace(numerics, operators=frozenset(self.operators))


class Timed(Frozen):
    """One candidate's time.

    Args:
        placement: the candidate.
        p50_ms: median latency.
        speedup: how many times faster than the default it is, paired in turn.
        ci95: 95 % interval of that.
        refused: why it could not be built or run, None if it could.
    """

    placement: Placement
    p50_ms: float | None = None
    speedup: float | None = None
    ci95: list[float] | None = None
    refused: str | None = None

    @property
    def is_faster(self) -> bool:
        """Faster than the default beyond doubt."""
        return self.ci95 is not None and self.ci95[0] > 1.0


class Found(Frozen):
    """What a search ended with.

    Args:
        chosen: the placement to use.
        timed: every candidate of the first round, then of the duels.
        notes: why a faster candidate was not taken.
    """

    chosen: Placement
    timed: list[Timed]
    notes: list[str] = Field([])


@dataclass(frozen=True)
class Candidate:
    """A built candidate: its placement and how to open it."""

    placement: Placement
    open: Callable[[], Runner]


def candidates(found: Sequence[Group], numerics: Numerics) -> list[Placement]:
    """The target's own placement, and those that differ from it in one thing that this network has.

    Args:
        found: the network's groups.
        numerics: the target's.

    Returns:
        The default first. Without or with each kind of operator that has an int8 kernel and is optional; with the
        first and the last weighted layer in float.
    """
    usual = sorted(numerics.operators)
    made = [Placement(name=DEFAULT, operators=usual)]
    present = dict.fromkeys(group.operator.name for group in found if group.operator.role in _OPTIONAL)
    for name in present:
        if name in numerics.operators:
            made.append(Placement(name=f"without {name}", operators=[one for one in usual if one != name]))
        elif name in OPERATORS:
            made.append(Placement(name=f"with {name}", operators=sorted([*usual, name])))
    weighted = [group.name for group in found if group.operator.role == "weighted"]
    for name in dict.fromkeys([*weighted[:1], *weighted[-1:]]):
        made.append(Placement(name=f"{name} in float", operators=usual, float_layers=[name]))
    return made


def search(
    placements: Sequence[Placement],
    build: Callable[[Placement], Candidate],
    feeds: Mapping[str, np.ndarray],
    *,
    protocol: Protocol,
    accepts: Callable[[Placement], str | None] = lambda placement: None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Time candidates against the default, join what paid, and choose.

    Args:
        placements: from `candidates`, the default first.
        build: makes a runnable model of one; an `EdgeKDError` takes the candidate out of the search.
        feeds: the input of every run.
        protocol: of the measurement; each round has that many queries.
        accepts: None if a placement keeps accuracy, else why it does not; asked of winners only.
        progress: called with rounds done and planned.

    Raises:
        UsageError: no default among the placements.
    """
    if not placements or placements[0].name != DEFAULT:
        raise UsageError("placement.search takes the default placement first.")
    first = _time(placements, build, feeds, protocol, progress)
    winners = [one for one in first if one.is_faster]
    if not winners:
        return Found(chosen=placements[0], timed=first, notes=["No candidate is faster than the default beyond doubt."])
    ranked = sorted(winners, key=lambda one: -(one.speedup or 0.0))
    joined = _joined([one.placement for one in ranked], placements[0]) if len(ranked) > 1 else None
    duel = [*([joined] if joined else []), *(one.placement for one in ranked)][:_DUELS]
    second = _time([placements[0], *duel], build, feeds, protocol, progress)
    notes: list[str] = []
    for one in sorted((one for one in second if one.is_faster), key=lambda one: -(one.speedup or 0.0)):
        reason = accepts(one.placement)
        if reason is None:
            return Found(chosen=one.placement, timed=[*first, *second], notes=notes)
        notes.append(f"'{one.placement.name}' is {one.speedup:.3f} times faster and was not taken: {reason}")
    notes.append("The default placement stays.")
    return Found(chosen=placements[0], timed=[*first, *second], notes=notes)


def _joined(placements: Iterable[Placement], default: Placement) -> Placement:
    """Every change of these at once."""
    usual = set(default.operators)
    added, removed, floats, names = set[str](), set[str](), list[str](), list[str]()
    for one in placements:
        added |= set(one.operators) - usual
        removed |= usual - set(one.operators)
        floats += one.float_layers
        names.append(one.name)
    return Placement(
        name=" and ".join(names),
        operators=sorted((usual | added) - removed),
        float_layers=list(dict.fromkeys(floats)),
    )


def _time(
    placements: Sequence[Placement],
    build: Callable[[Placement], Candidate],
    feeds: Mapping[str, np.ndarray],
    protocol: Protocol,
    progress: Callable[[int, int], None] | None,
) -> list[Timed]:
    """All of them in turn; the first is what the others are compared with."""
    refused: dict[str, str] = {}
    with ExitStack() as open_runners:
        runners = {}
        for placement in placements:
            try:
                runners[placement.name] = open_runners.enter_context(build(placement).open())
            except EdgeKDError as error:
                if placement is placements[0]:
                    raise
                refused[placement.name] = str(error)
        measured = measure(runners, feeds, protocol=protocol, progress=progress)
    return [_timed(one, measured.latencies, refused, placements[0].name, measured.ratio) for one in placements]


def _timed(
    placement: Placement,
    latencies: Mapping[str, Latency],
    refused: Mapping[str, str],
    default: str,
    ratio_of: Callable[[str, str], Ratio],
) -> Timed:
    name = placement.name
    if name not in latencies:
        return Timed(placement=placement, refused=refused[name])
    p50 = latencies[name].p50_ms
    if name == default:
        return Timed(placement=placement, p50_ms=p50, speedup=1.0, ci95=[1.0, 1.0])
    ratio = ratio_of(default, name)
    return Timed(placement=placement, p50_ms=p50, speedup=ratio.speedup, ci95=ratio.ci95)
