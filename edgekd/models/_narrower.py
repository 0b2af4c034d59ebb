"""Structured pruning: a network with fewer channels in every layer."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import BackendMissing, UsageError
from edgekd.models._blocks import divisible

__all__ = ["narrow"]


def narrow(network: nn.Module, example: Tensor, width: float) -> None:
    """Keep a share of every layer's channels, those with the largest weights; in place.

    Channels that belong together (a shortcut's, a depthwise convolution's) go together, by the dependency graph of
    `torch-pruning`. A layer keeps a multiple of 8 channels, at least 8; a layer with less stays. Attention keeps a
    share of its heads. How many channels stay depends on the structure alone, which ones on the weights.

    Args:
        network: in evaluation mode; all its parameters must want a gradient.
        example: inputs, shape (1, C, H, W).
        width: share of the channels to keep, in (0, 1).

    Raises:
        BackendMissing: torch-pruning is not installed.
        UsageError: the network cannot be pruned, or no layer is wide enough.

    Reference: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", 2023, arXiv:2301.12900; importance
    is the group L2 norm of its section 3.3.
    """
    pruning = _library()
    before = sum(parameter.numel() for parameter in network.parameters())
    attention = _attention(network)
    classifier = _last_layer(network, example)
    heads = {one.qkv: int(one.num_heads) for one in attention}
    try:
        with _traceable(attention):
            pruner = pruning.pruner.BasePruner(
                network,
                example,
                importance=pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=1 - width,  # of what is not in the table; for attention its heads count instead
                pruning_ratio_dict=_shares(network, width, apart={classifier, *heads}),
                ignored_layers=[classifier],
                num_heads=dict(heads),
                prune_num_heads=True,
                prune_head_dims=False,
                # between two counts, so that rounding cannot miss the one that is meant
                head_pruning_ratio_dict={
                    layer: max(0.0, count - max(1, int(width * count + 0.5)) - 0.5) / count
                    for layer, count in heads.items()
                },
            )
            pruner.step()
            for one in attention:
                one.num_heads = pruner.num_heads[one.qkv]
                one.attn_dim = one.num_heads * one.head_dim
        with torch.no_grad():
            network(example)
    except Exception as error:
        # the graph is found by tracing, and a network that it does not see through fails in any place
        raise UsageError(
            f"width = {width}: torch-pruning cannot make {type(network).__name__} narrower:"
            f" {type(error).__name__}: {_first_line(error)}. Use depth alone, or a smaller network of the family."
        ) from error
    if sum(parameter.numel() for parameter in network.parameters()) == before:
        raise UsageError(
            f"width = {width} takes nothing out of {type(network).__name__}: layers keep a multiple of 8 channels, at"
            " least 8. Give a lower width, or set depth."
        )


def _library() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise BackendMissing(
            f"'from_teacher' with a width needs the package '{error.name}', which is not installed. Install"
            " edgekd[pruning]."
        ) from error


def _shares(network: nn.Module, width: float, *, apart: set[nn.Module]) -> dict[nn.Module, float]:
    """What share of each layer's channels goes."""
    shares: dict[nn.Module, float] = {}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in apart:
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
            kept = min(channels, divisible(width * channels))
            # half a channel more than is kept, so that rounding cannot miss the number that is meant
            shares[layer] = 0.0 if kept == channels else 1 - (kept + 0.5) / channels
    return shares


def _last_layer(network: nn.Module, example: Tensor) -> nn.Module:
    """The layer that gives the logits: its outputs are the classes."""
    seen: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(lambda module, inputs, output: seen.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UsageError(f"{type(network).__name__} has no convolution or linear layer that could be made narrower.")
    return seen[-1]


def _attention(network: nn.Module) -> list[Any]:
    """The attention modules of timm: queries, keys and values from one layer, and heads that can be counted anew."""
    wanted = ("num_heads", "head_dim", "attn_dim")
    found = [module for module in network.modules() if all(hasattr(module, name) for name in wanted)]
    return [module for module in found if isinstance(getattr(module, "qkv", None), nn.Linear)]


@contextmanager
def _traceable(attention: list[Any]) -> Iterator[None]:
    """Attention written out, since its fused operator hides which channels belong to which head."""
    before = [getattr(one, "fused_attn", None) for one in attention]
    for one in attention:
        one.fused_attn = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, fused in zip(attention, before, strict=True):
            one.fused_attn = fused


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
