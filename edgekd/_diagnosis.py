"""What stopped a training: where the first value that is no number came from, and what to set when memory ran out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from edgekd import _group
from edgekd._report_format import size
from edgekd.errors import OutOfMemory
from edgekd.methods._base import Batch, Method
from edgekd.methods._observe import tell_ids
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.taps import Tapped, TupleOutputs

__all__ = ["diagnose", "is_out_of_memory", "out_of_memory"]

_ABSURD = 1e30
"""No network means a value of this size; its square is beyond float32."""
_NAMED = 4  # samples of a batch that a message names
_FULL = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")

_Finding = tuple[int, str]  # how near to the cause, 0 is the cause itself; and the words for it


def diagnose(
    method: Method,
    batch: Batch,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    later: int = 0,
) -> str:
    """Find where a loss term that is no number came from, and leave everything as it was.

    Looked at, in this order: the batch, every weight and buffer, every layer of the student and the teachers in one
    more forward of this batch, in the mode they are in and without gradient. Of several processes all must call this;
    each gets the finding that is nearest to the cause.

    Args:
        method: whose term it was.
        batch: the one that gave it.
        autocast: the precision of the step, a new context at each call.
        later: steps that were made between that batch and now.

    Returns:
        One sentence: the batch's samples, and the input, weight or layer that is the first to be no number or beyond
        1e30; or that there is none, and the term itself overflowed.
    """
    findings = [_of_inputs(batch), _of_weights(method, later)]
    # all processes run every network, whatever they found before: layers may wait for one another
    for level, (name, network) in enumerate(_networks(method), start=3):
        with autocast():
            findings.append(_of_layers(level, name, network, batch))
    nothing = (1000, "every layer of student and teachers gives numbers, so the term itself overflowed")
    nearest = min([*filter(None, findings), nothing])
    return f"In the batch of {_samples(batch.ids)}, {min(_group.gather(nearest))[1]}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _FULL)


def out_of_memory(
    error: BaseException,
    settings: TrainSettings,
    compute: ComputeSettings,
    *,
    processes: int = 1,
    teachers: int = 0,
    kept: str = "",
) -> OutOfMemory:
    """The error for a training that does not fit: how large its batch is, and what to set.

    Args:
        error: see `is_out_of_memory`.
        settings: of the training.
        compute: how it computes.
        processes: that share each batch.
        teachers: networks that run in each step beside the student; none where their answers are kept.
        kept: where the last checkpoint is, a sentence.
    """
    rows = -(-settings.batch_size // (processes * settings.accumulate))
    parts = f", {settings.accumulate} parts each" if settings.accumulate > 1 else ""
    among = f" over {processes} processes{parts}" if processes > 1 else parts.replace(" each", "").replace(", ", " in ")
    batch = f"train.batch_size = {settings.batch_size}{among}"
    remedies = list(_remedies(settings, compute, processes, teachers, rows))
    return OutOfMemory(
        f"Training ran out of memory{_asked_for(str(error))} with {batch}: {rows} samples at a time."
        f" Set {'; or '.join(remedies)}.{f' {kept}' if kept else ''}"
    )


def _asked_for(text: str) -> str:
    """What an allocator was asked for, as its message has it; empty if it does not say."""
    if (found := re.search(r"allocate ([\d.,]+) ?([KMGTP]iB|bytes)", text)) is None:
        return ""
    shown = size(int(found[1])) if found[2] == "bytes" and found[1].isdecimal() else f"{found[1]} {found[2]}"
    return f" (it asked for {shown})"


def _remedies(
    settings: TrainSettings, compute: ComputeSettings, processes: int, teachers: int, rows: int
) -> Iterator[str]:
    if rows > 1:
        yield (
            f"train.accumulate = {2 * settings.accumulate} ({-(-rows // 2)} samples at a time; the same result where"
            " losses and layers look at samples one by one)"
        )
    if compute.precision == "float32":
        yield "compute.precision = 'bfloat16'"
    if teachers:
        yield "[distill.cache], so that no teacher runs"
    if teachers and not compute.shard_teacher:
        where = "" if processes > 1 else ", with several processes"
        yield f"compute.shard_teacher = true{where}"
    yield "a smaller data.size"


def _networks(method: Method) -> Iterator[tuple[str, nn.Module]]:
    yield "the student", method.student
    for number, teacher in enumerate(method.teachers, start=1):
        yield "the teacher" if number == 1 else f"teacher {number}", teacher


def _samples(ids: Tensor) -> str:
    named = ", ".join(str(int(one)) for one in ids[:_NAMED])
    more = len(ids) - _NAMED
    return f"samples {named} and {more} more" if more > 0 else f"samples {named}"


def _of_inputs(batch: Batch) -> _Finding | None:
    for what, values in (("input", batch.inputs), ("label", batch.labels)):
        bad = ~torch.isfinite(values).flatten(1).all(dim=1)
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            others = int(bad.sum()) - 1
            more = f", and that of {others} more," if others else ""
            return 0, f"the {what} of sample {int(batch.ids[index])}{more} holds {_trouble(values[index])}"
    return None


def _of_weights(method: Method, later: int) -> _Finding | None:
    # an infinite buffer can be meant: a mask, or the extremes of what was never seen
    everything: list[tuple[str, Tensor, bool]] = [(name, one, True) for name, one in method.named_parameters()]
    everything += [(name, one, False) for name, one in method.named_buffers()]
    for number, teacher in enumerate(method.teachers, start=1):
        side = "teacher" if number == 1 else f"teacher{number}"
        everything += [(f"{side}.{name}", one, True) for name, one in teacher.named_parameters()]
    for name, values, infinite in everything:
        trouble = _trouble(values.detach())
        if trouble == "NaN" or (trouble == "infinity" and infinite):
            since = f" now, {later} steps later" if later else ""
            return 1 if not later else 900, f"{'weight' if infinite else 'buffer'} '{name}' holds {trouble}{since}"
    return None


def _of_layers(level: int, name: str, network: nn.Module, batch: Batch) -> _Finding | None:
    plain = network.model if isinstance(network, Tapped) else network
    inner = plain.module if isinstance(plain, TupleOutputs) else plain
    devices = [batch.inputs.device] if batch.inputs.device.type == "cuda" else []
    tell_ids(plain, batch.ids)
    try:
        with _restored(network), torch.no_grad(), torch.random.fork_rng(devices=devices):
            if isinstance(inner, GraphModule):
                found = _through_graph(inner, batch.inputs)
            else:
                found = _through_modules(inner, batch.inputs)
    except Exception as error:  # what a network does with values that are no numbers is its own: say what is known
        return (
            950,
            f"the layers of {name} could not be looked at ({type(error).__name__}: {str(error).splitlines()[0]})",
        )
    return None if found is None else (level, f"{found[0]} of {name} is the first to give {found[1]}")


def _through_modules(network: nn.Module, inputs: Tensor) -> tuple[str, str] | None:
    """The first layer, in the order of execution, that gives or is given what is no number, and what that is."""
    found: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> Iterable[Any]:
        kind = type(module).__name__

        def before(_: nn.Module, given: Any) -> None:
            if not found and (trouble := _first_trouble(given)):
                found.append((f"what is computed before layer '{name}' ({kind})", trouble))

        def after(_: nn.Module, given: Any, output: Any) -> None:
            if not found and (trouble := _first_trouble(output)):
                found.append((f"layer '{name}' ({kind})" if name else f"the end of {kind}", trouble))

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    hooks = [hook for name, module in network.named_modules() for hook in watch(name, module)]
    try:
        network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _through_graph(graph: GraphModule, inputs: Tensor) -> tuple[str, str] | None:
    """The same for a graph, whose nodes stand in the order of execution."""
    walk = _Walk(graph)
    walk.run(inputs)
    return walk.found or walk.negative


class _Walk(Interpreter):
    """Runs a graph and keeps the first node with a value that is no number.

    A large negative value can be meant, as in the mask of an attention, so that one counts only if no other is found.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.found: tuple[str, str] | None = None
        self.negative: tuple[str, str] | None = None

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if self.found is None and n.op.startswith("call") and (trouble := _first_trouble(result)):
            origin = list((n.meta.get("nn_module_stack") or {}).values())
            where = f" (layer '{origin[-1][0]}')" if origin and origin[-1][0] else ""
            entry = (f"node '{n.name}'{where}", trouble)
            if trouble.startswith("-"):
                self.negative = self.negative or entry
            else:
                self.found = entry
        return result


def _first_trouble(values: Any) -> str | None:
    tensors = (one for one in tree_leaves(values) if isinstance(one, Tensor))
    return next((trouble for one in tensors if (trouble := _trouble(one))), None)


def _trouble(values: Tensor) -> str | None:
    """What is wrong with a tensor, the worst first: NaN, infinity, or a magnitude; None if nothing is."""
    # of a network that processes share, each looks at its own part; for everybody else the import would cost a second
    shared = sys.modules.get("torch.distributed.tensor")
    if shared is not None and isinstance(values, shared.DTensor):
        values = values.to_local()
    if not values.is_floating_point() or not values.numel():
        return None
    low, high = (float(one) for one in torch.aminmax(values.detach().float()))  # NaN if there is one
    if low != low or high != high:
        return "NaN"
    if high == float("inf"):
        return "infinity"
    if high > _ABSURD:
        return f"{high:.1e}"
    if low == -float("inf"):
        return "-infinity"
    return f"{low:.1e}" if low < -_ABSURD else None


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put every buffer back at the end: a forward may move batch statistics, ranges and memories."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                setattr(module, name, buffer)
