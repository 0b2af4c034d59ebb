"""Named intermediate tensors of any module, as plain outputs.

A network whose intermediate tensors are wanted is wrapped so that its forward returns the tuple
`(logits, *taps)`. The same wrapper serves training in eager mode and `torch.export`, so a loss on
intermediate tensors works unchanged on a student that was exported and quantized.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError, did_you_mean

__all__ = ["Tapped", "TupleOutputs", "logits_of", "named_outputs", "probe", "tapped"]


class Tapped(nn.Module):
    """Run a module and return `(logits, *taps)`: its output, then the outputs of its named submodules.

    The wrapped module keeps its parameters, its state dict and its hooks: what this class hooks for one
    forward is removed when that forward ends.

    Args:
        model: any module whose output is one tensor of logits.
        names: submodules whose outputs are wanted, as in `named_modules()`.

    Raises:
        UsageError: a name that the module does not have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        for name in names:
            if not name or name not in modules:
                valid = [one for one in modules if one]
                raise UsageError(f"{type(model).__name__} has no module '{name}' to tap. {did_you_mean(name, valid)}")
        self.model = model
        self.names = tuple(names)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to logits (B, K), followed by one tensor for each name."""
        found: dict[str, list[Any]] = {name: [] for name in self.names}
        hooks = [self.model.get_submodule(name).register_forward_hook(_keep(found[name])) for name in found]
        try:
            logits = self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return (logits, *(_only(name, found[name]) for name in self.names))


class TupleOutputs(nn.Module):
    """Name the outputs of a module that already returns `(logits, *taps)`, such as an exported graph.

    Args:
        module: called with a batch, returns a tuple or list of tensors, logits first.
        names: the names of the outputs after the first.
    """

    def __init__(self, module: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to logits (B, K), followed by one tensor for each name.

        Raises:
            MismatchError: the module returned another number of tensors.
        """
        result = self.module(inputs)
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        if len(outputs) != 1 + len(self.names):
            raise MismatchError(
                f"The module returned {len(outputs)} tensors, but {1 + len(self.names)} were named: logits and"
                f" {list(self.names)}. Name every output of the graph."
            )
        return outputs


def tapped(network: nn.Module, names: Iterable[str]) -> Tapped | TupleOutputs:
    """The network as a module that returns `(logits, *taps)`, with at least these taps.

    Args:
        network: a plain module, which is wrapped, or one that is wrapped already, which must have the taps.
        names: may repeat; each is tapped once.

    Raises:
        UsageError: a tap that the network does not have.
    """
    wanted = tuple(dict.fromkeys(names))
    if not isinstance(network, (Tapped, TupleOutputs)):
        return Tapped(network, wanted)
    for name in wanted:
        if name not in network.names:
            raise UsageError(
                f"The network was wrapped without the tap '{name}'. {did_you_mean(name, network.names)}"
                " Name it when the network is wrapped or exported."
            )
    return network


def named_outputs(network: Tapped | TupleOutputs, result: Sequence[Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Split `(logits, *taps)` into the logits and a mapping by tap name."""
    return result[0], dict(zip(network.names, result[1:], strict=True))


def logits_of(result: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits of a network that returns them alone, or first of a tuple."""
    return result if isinstance(result, Tensor) else result[0]


def probe(network: Tapped | TupleOutputs, example: Tensor) -> tuple[Tensor, ...]:
    """What the network returns for an example, without a trace on it.

    A copy is run, because a forward can move batch statistics and the ranges of observers. No gradient is
    recorded and no random number of the caller is used up.
    """
    copied = copy.deepcopy(network)
    if isinstance(copied, Tapped):
        copied.eval()  # an exported graph refuses eval(); a plain module needs it for a batch of one
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        outputs: tuple[Tensor, ...] = copied(example)
        return outputs


def _keep(store: list[Any]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        store.append(output)

    return hook


def _only(name: str, outputs: list[Any]) -> Tensor:
    if len(outputs) != 1:
        raise UsageError(
            f"Tap '{name}' ran {len(outputs)} times in one forward, so its output is not one tensor."
            " Tap a module that runs exactly once."
        )
    if not isinstance(outputs[0], Tensor):
        raise UsageError(f"Tap '{name}' gives a {type(outputs[0]).__name__}, not a tensor. Tap a module inside it.")
    return outputs[0]
