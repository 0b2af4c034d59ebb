"""Cut a network at a tap: the part between that module's output and the logits, as a module of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from edgekd.errors import MismatchError, UsageError, did_you_mean
from edgekd.losses._base import Outputs
from edgekd.methods._observe import example_outputs
from edgekd.taps import tapped

__all__ = ["branches_of", "tail_of", "with_tail"]


def tail_of(network: nn.Module, tap: str) -> fx.GraphModule:
    """The part of a network behind one of its modules.

    It shares its parameters with the network and calls them by the same names, so its state dict is a part of the
    network's. Only the modules that hold the tap are traced; all others are called as they are, and keep what they do
    differently in training and evaluation. What the traced ones do so, they do as in the mode that they are in now.

    Args:
        network: a float module from (B, C, H, W) to logits (B, K).
        tap: a submodule, as in `named_modules()`; every path from the input to the logits leads through it.

    Returns:
        A module from the tap's output to the logits.

    Raises:
        UsageError: there is no such module, its holders cannot be traced, or it runs more than once.
        MismatchError: the logits also need something that is computed before the tap, or do not need the tap.
    """
    modules = dict(network.named_modules())
    if not tap or tap not in modules:
        valid = [name for name in modules if name]
        raise UsageError(f"{type(network).__name__} has no module '{tap}' to tap. {did_you_mean(tap, valid)}")
    try:
        traced = _Around(tap).trace(network)
    except Exception as error:  # whatever a forward may raise that is given something else than a tensor
        raise UsageError(
            f"{type(network).__name__} cannot be cut at '{tap}': its forward cannot be traced ({error})."
            " Tap a module inside of a plain sequence of modules."
        ) from error
    found = [node for node in traced.nodes if node.op == "call_module" and modules[str(node.target)] is modules[tap]]
    if len(found) > 1:
        raise UsageError(f"'{tap}' runs {len(found)} times in one forward. Cut at a module that runs exactly once.")
    return fx.GraphModule(network, _behind(traced, found, tap, type(network).__name__), f"{type(network).__name__}Tail")


def branches_of(peers: Sequence[nn.Module], tap: str, *, student: Outputs, example: Tensor) -> nn.ModuleList:
    """The tails of several networks that are built like the student, checked to be true ones.

    Args:
        peers: one for each branch; they are left in training mode, and their tails are used up by the branches.
        tap: where they are cut.
        student: what the student gives for the example, the tap's output among it.
        example: inputs, shape (B, C, H, W).

    Raises:
        UsageError: see `tail_of`.
        MismatchError: see `tail_of`; or a peer whose shapes are not the student's; or a tap whose output is changed in
            place by what follows it.
    """
    for peer in peers:
        peer.eval()
        whole = example_outputs(tapped(peer, [tap]), example)
        for what, ours, theirs in [
            (f"at tap '{tap}'", student.taps[tap], whole.taps[tap]),
            ("as logits", student.logits, whole.logits),
        ]:
            if ours.shape != theirs.shape:
                raise MismatchError(
                    f"The student and a network that should be built like it differ {what}: {tuple(ours.shape)} and"
                    f" {tuple(theirs.shape)}. Build both with the same options."
                )
        with torch.no_grad():
            again = tail_of(peer, tap)(whole.taps[tap].clone())
        if not torch.allclose(again, whole.logits, rtol=1e-3, atol=1e-3 * float(whole.logits.abs().max())):
            raise MismatchError(
                f"The layers behind '{tap}', run on its output, do not give the network's logits: something behind it"
                " changes that output in place. Tap the module after it."
            )
    # traced once more in training mode, in which branches run
    return nn.ModuleList(tail_of(peer.train(), tap) for peer in peers)


def with_tail(network: nn.Module, tail: nn.Module) -> nn.Module:
    """A copy of a network with the weights and buffers of another tail."""
    copied = copy.deepcopy(network)
    copied.load_state_dict({**copied.state_dict(), **tail.state_dict()})
    return copied


class _Around(fx.Tracer):
    """Trace through the modules that hold the tap, and call every other one as it is."""

    def __init__(self, tap: str) -> None:
        super().__init__()
        self._tap = tap

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step of the graph; see `torch.fx.Tracer`."""
        return not self._tap.startswith(f"{module_qualified_name}.")


def _behind(traced: fx.Graph, taps: Sequence[fx.Node], tap: str, network: str) -> fx.Graph:
    """A graph of what the output needs behind the tap."""
    (output,) = (node for node in traced.nodes if node.op == "output")
    needed, waiting = {output}, [output]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node.op == "placeholder":
                raise MismatchError(
                    f"{network} cannot be cut at '{tap}': its logits also need something that is computed before it."
                    " Tap a module that every path from the input to the logits leads through, such as a whole stage."
                )
            if node not in needed and node not in taps:
                needed.add(node)
                waiting.append(node)
    if not any(node in taps for one in needed for node in one.all_input_nodes):
        raise MismatchError(f"{network} cannot be cut at '{tap}': its logits do not depend on it. Tap another module.")
    graph = fx.Graph()
    values = {taps[0]: graph.placeholder("features")}
    for node in traced.nodes:
        if node in needed:
            values[node] = graph.node_copy(node, lambda one: values[one])
    graph.lint()
    return graph
