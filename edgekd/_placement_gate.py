"""Where the nodes of a model ran, whether that passes, and whether int8 was worth it there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

from edgekd._report_device_model import CostlyOperator, MovedNode, PlacementRow, Worth
from edgekd._statistics import Ratio
from edgekd.devices._place import NodePlacement
from edgekd.targets._kernels import BOUNDARIES, REORDERS

__all__ = ["costly_operators", "placement_of", "runs_int8", "worth_of"]

_FLOATS = frozenset({"float", "float32", "float16", "double", "float64", "bfloat16"})
_EIGHT_BIT = frozenset({"int8", "uint8"})
_NAMED = 3
_WORST = 8
_SLOWER = "slower than in float32"
_NOT_COMPUTING = frozenset({"Constant", "Identity", "Shape", "Size"})


def placement_of(
    nodes: Sequence[NodePlacement],
    *,
    rung: str,
    target: str | None,
    device: str,
    requested: str,
    meant_int8: Collection[str] | None,
    allowed: bool,
) -> PlacementRow:
    """Judge which provider ran each node, and what of an int8 file computed on floats.

    Args:
        nodes: in the order in which they ran.
        rung, target, device: what ran, and where.
        requested: provider that every node was to run on.
        meant_int8: names of the nodes that the file has as int8; None for a float file.
        allowed: fallback and float islands pass.
    """
    total = sum(node.mean_us for node in nodes) or 1.0
    moved = [_moved(node, total) for node in nodes if node.provider != requested]
    islands = [_moved(node, total) for node in nodes if _is_island(node, meant_int8)]
    providers = list(dict.fromkeys(node.provider for node in nodes))
    partitions = sum(1 for _ in groupby(nodes, key=lambda node: node.provider))
    problems = [*_fallback_sentences(moved, requested, partitions), *_island_sentences(islands)]
    return PlacementRow(
        rung=rung,
        target=target,
        device=device,
        provider_requested=requested,
        nodes={one: sum(node.provider == one for node in nodes) for one in providers},
        shares={one: sum(node.mean_us for node in nodes if node.provider == one) / total for one in providers},
        partitions=partitions,
        fallback=moved,
        float_islands=islands,
        allowed=allowed,
        passed=allowed or not problems,
        reason=_reason(problems, allowed=allowed, count=len(nodes), requested=requested),
    )


def runs_int8(node: NodePlacement) -> bool:
    """Whether a node computes on 8-bit data; a conversion does not compute."""
    return node.op not in BOUNDARIES and _first_type(node) in _EIGHT_BIT


def worth_of(
    float32: Ratio | None,
    float16: Ratio | None,
    operators: Sequence[CostlyOperator],
    *,
    target: str | None,
    device: str,
) -> Worth | None:
    """Whether int8 was worth it, in a sentence; None where there is nothing to compare with.

    Args:
        float32, float16: how many times faster int8 is than each.
        operators: what it cost.
        target, device: where.
    """
    known = {name: one for name, one in (("float32", float32), ("float16", float16)) if one is not None}
    if not known:
        return None
    worth = _worth(list(known.values()))
    told = " and ".join(f"{_times(one)} as fast as {name}" for name, one in known.items())
    slower = [name for name, one in known.items() if one.ci95 is not None and one.ci95[1] < 1]
    answer = {
        True: "it was worth it",
        False: f"it was not worth it, {' and '.join(slower)} is faster",
        None: "whether it was worth it cannot be told from this many queries",
    }[worth]
    first = operators[0] if operators else None
    cost = f" What cost most: {first.op} '{first.name}' ({first.why}, {first.share:.1%} of the time)." if first else ""
    return Worth(
        target=target,
        device=device,
        float32_speedup=float32.speedup if float32 else None,
        float32_ci95=_interval(float32),
        float16_speedup=float16.speedup if float16 else None,
        float16_ci95=_interval(float16),
        worth=worth,
        sentence=f"On {device} int8 is {told}: {answer}.{cost}",
        operators=list(operators),
    )


def costly_operators(nodes: Sequence[NodePlacement], float_us: Mapping[str, float]) -> list[CostlyOperator]:
    """The nodes of an int8 file that convert, compute in float or are slower than in float32; the worst first.

    Args:
        nodes: that ran.
        float_us: mean time of their float counterparts in microseconds, by their names.
    """
    total = sum(node.mean_us for node in nodes) or 1.0
    found = []
    for node in nodes:
        before = float_us.get(node.node)
        if (why := _cost(node, before)) is not None:
            # what a slower int8 kernel costs is the difference, what a conversion costs is all of it
            lost = node.mean_us - (before or 0.0) if why == _SLOWER else node.mean_us
            operator = CostlyOperator(
                name=node.node, op=node.op, mean_us=node.mean_us, share=node.mean_us / total, float_us=before, why=why
            )
            found.append((lost, operator))
    return [operator for _, operator in sorted(found, key=lambda pair: -pair[0])[:_WORST]]


def _cost(node: NodePlacement, float_us: float | None) -> str | None:
    if node.op in BOUNDARIES | REORDERS or node.op == "Cast":
        return "converts"
    if runs_int8(node):
        return _SLOWER if float_us is not None and node.mean_us > float_us else None
    return "computes in float" if _first_type(node) in _FLOATS and node.op not in _NOT_COMPUTING else None


def _worth(ratios: Sequence[Ratio]) -> bool | None:
    intervals = [one.ci95 for one in ratios if one.ci95 is not None]
    if any(high < 1 for _, high in intervals):
        return False
    return True if len(intervals) == len(ratios) and all(low > 1 for low, _ in intervals) else None


def _times(ratio: Ratio) -> str:
    shown = f"{ratio.speedup:.2f} times"
    return shown if ratio.ci95 is None else f"{shown} ({ratio.ci95[0]:.2f} to {ratio.ci95[1]:.2f})"


def _interval(ratio: Ratio | None) -> tuple[float, float] | None:
    return (ratio.ci95[0], ratio.ci95[1]) if ratio is not None and ratio.ci95 is not None else None


def _first_type(node: NodePlacement) -> str:
    if node.op == "QLinearConcat" and len(node.input_types) > 2:  # scale and zero-point come before the data
        return node.input_types[2]
    return node.input_types[0] if node.input_types else ""


def _is_island(node: NodePlacement, meant_int8: Collection[str] | None) -> bool:
    if meant_int8 is None or node.op in BOUNDARIES | REORDERS or node.op == "Cast":
        return False
    return _first_type(node) in _FLOATS and node.node in meant_int8


def _moved(node: NodePlacement, total: float) -> MovedNode:
    return MovedNode(name=node.node, op=node.op, provider=node.provider, share=node.mean_us / total)


def _fallback_sentences(moved: Sequence[MovedNode], requested: str, partitions: int) -> list[str]:
    if not moved:
        return []
    share = sum(node.share for node in moved)
    return [
        f"{_count(moved)} did not run on {requested} but on {_providers(moved)}, {share:.1%} of the time, in"
        f" {partitions} partitions: {_names(moved)}"
    ]


def _island_sentences(islands: Sequence[MovedNode]) -> list[str]:
    if not islands:
        return []
    share = sum(node.share for node in islands)
    return [
        f"{_count(islands)} that the file has as int8 computed on floats, {share:.1%} of the time: {_names(islands)}"
    ]


def _count(nodes: Sequence[MovedNode]) -> str:
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"


def _names(nodes: Sequence[MovedNode]) -> str:
    worst = sorted(nodes, key=lambda node: -node.share)
    shown = ", ".join(f"{node.op} '{node.name}' ({node.share:.1%})" for node in worst[:_NAMED])
    return f"{shown} and {len(worst) - _NAMED} more" if len(worst) > _NAMED else shown


def _providers(nodes: Sequence[MovedNode]) -> str:
    return ", ".join(dict.fromkeys(node.provider for node in nodes))


def _reason(problems: Sequence[str], *, allowed: bool, count: int, requested: str) -> str:
    if not problems:
        return f"all {count} nodes ran on {requested}."
    told = "; ".join(problems)
    if allowed:
        return f"{told} (allowed)."
    return f"{told}. Repair it, or pass with bench.allow_fallback = true (--allow-fallback)."
