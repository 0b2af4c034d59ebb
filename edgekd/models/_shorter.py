"""Layer selection: a network with fewer of its equal blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError

__all__ = ["kept_layers", "shorten"]

_Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def shorten(network: nn.Module, example: Tensor, depth: float) -> None:
    """Keep a share of every list of blocks; in place.

    A list is a run of blocks of one class that follow each other in a container and give tensors of one shape: the
    blocks of a transformer, or a stage of a residual network. Its first block may change the shape, and then stays.
    The kept blocks are spread evenly and the last one is always among them (see `kept_layers`).

    Args:
        network: in evaluation mode.
        example: inputs, shape (1, C, H, W).
        depth: share of the blocks to keep, in (0, 1].

    Raises:
        UsageError: there is no block that could go.
    """
    removed = _shorten(network, _shapes(network, example), depth)
    if not removed:
        raise UsageError(
            f"depth = {depth} takes nothing out of {type(network).__name__}: it has no list of equal blocks that is"
            " long enough. Give a lower depth, or set width."
        )


def kept_layers(count: int, wanted: int) -> list[int]:
    """Which of `count` layers stay, so that layer j of `wanted` is layer ceil(j count / wanted), from 1.

    With count = 2 wanted this is every second layer, as layer maps of transformer distillation pair them.

    Reference: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, arXiv:1909.10351,
    section 3.1 (uniform strategy).

    >>> kept_layers(12, 6), kept_layers(5, 3)
    ([1, 3, 5, 7, 9, 11], [1, 3, 4])
    """
    return [-(-number * count // wanted) - 1 for number in range(1, wanted + 1)]


def _shorten(module: nn.Module, shapes: Mapping[nn.Module, _Shapes], depth: float) -> int:
    """Take blocks out of the outermost lists that have some to give; how many went."""
    blocks = list(module.named_children())
    gone: set[str] = set()
    if isinstance(module, nn.Sequential | nn.ModuleList):
        for _, run in groupby(
            blocks, key=lambda one: (type(one[1]), shapes[one[1]][1] if one[1] in shapes else one[0])
        ):
            gone |= _superfluous(list(run), shapes, depth)
    if not gone:
        return sum(_shorten(child, shapes, depth) for _, child in blocks)
    _keep(module, [(name, block) for name, block in blocks if name not in gone])
    return len(gone)


def _superfluous(run: Sequence[tuple[str, nn.Module]], shapes: Mapping[nn.Module, _Shapes], depth: float) -> set[str]:
    """The names of a run's blocks that go."""
    if not _is_block(run[0][1]):
        return set()
    free = [name for name, block in run if block in shapes and shapes[block][0] == shapes[block][1]]
    # half a block counts as one; a block that changes the shape is one of those that stay
    wanted = max(0 if len(free) < len(run) else 1, int(depth * len(run) + 0.5) - (len(run) - len(free)))
    if len(run) < 2 or wanted >= len(free):
        return set()
    kept = {free[index] for index in kept_layers(len(free), wanted)}
    return set(free) - kept


def _shapes(network: nn.Module, example: Tensor) -> dict[nn.Module, _Shapes]:
    """What goes in and comes out of every module that runs exactly once on one tensor."""
    found: dict[nn.Module, _Shapes] = {}
    twice: set[nn.Module] = set()

    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if module in found:
            twice.add(module)
        given = inputs[0] if inputs else None
        if isinstance(given, Tensor) and isinstance(output, Tensor):
            found[module] = (tuple(given.shape), tuple(output.shape))

    hooks = [module.register_forward_hook(hook) for module in network.modules()]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for one in hooks:
            one.remove()
    return {module: shapes for module, shapes in found.items() if module not in twice}


def _is_block(module: nn.Module) -> bool:
    return not isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in module.children())


def _keep(container: nn.Module, blocks: Sequence[tuple[str, nn.Module]]) -> None:
    """Put only these blocks into a list; numbered ones are numbered anew."""
    for name in list(container._modules):
        del container._modules[name]
    for index, (name, block) in enumerate(blocks):
        container.add_module(str(index) if name.isdigit() else name, block)
