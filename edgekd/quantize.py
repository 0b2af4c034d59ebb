"""Float student to int8 program: prepare, calibrate, train further (by the engine), convert; with checks between.

The student is exported once with its taps as outputs, batch normalisation is folded into the convolutions, and
torchao's PT2E flow puts our quantizers where the target wants them. One prepared graph serves calibration,
quantization-aware training and conversion, so that the ranges of post-training quantization are where
quantization-aware training starts.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekd._folding import fold_batch_norm
from edgekd._normal_form import normalise
from edgekd.calibration._base import Calibrator
from edgekd.calibration._fake_quantize import ActivationQuantizer, quantizers, set_phase
from edgekd.errors import DataError, EdgeKDError, MismatchError
from edgekd.taps import Tapped
from edgekd.targets._annotate import TargetQuantizer, is_weighted
from edgekd.targets._base import Numerics

__all__ = [
    "MIN_FAITHFUL_DB",
    "NotFaithful",
    "calibrate",
    "capture",
    "convert",
    "faithful_db",
    "prepare",
    "ranges",
    "restore",
    "set_phase",
    "sqnr_db",
]

_DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
_DEQUANTIZE_CHANNELS = torch.ops.quantized_decomposed.dequantize_per_channel.default

MIN_FAITHFUL_DB = 60.0
"""A prepared graph with its quantizers off must equal the float student at least this well."""


class NotFaithful(EdgeKDError):
    """The prepared graph does not compute what the float student computes."""


def prepare(
    student: nn.Module,
    example: Tensor,
    *,
    numerics: Numerics,
    calibrator: Calibrator,
    reduce_range: bool,
    taps: Sequence[str] = (),
) -> GraphModule:
    """Export a student and put a target's quantizers into its graph; all of them are off.

    Args:
        student: a trained float module; it is not changed.
        example: normalised inputs, shape (B, C, H, W).
        numerics: the target's.
        calibrator: chooses activation ranges in `calibrate`.
        reduce_range: 7-bit weights.
        taps: names of the student's modules whose outputs the graph returns behind the logits.

    Returns:
        A graph from (B, C, H, W), any B, to (logits, *taps). It has no train() and eval(): dropout is off and
        batch normalisation is folded, so neither mode has a meaning.

    Raises:
        NotFaithful: the graph differs from the student; says by how much.
    """
    exported = capture(student, example, taps)
    normalise(exported)
    fold_batch_norm(exported)
    with _quiet():
        quantizer = TargetQuantizer(numerics, calibrator=calibrator, reduce_range=reduce_range)
        graph: GraphModule = prepare_pt2e(exported, quantizer)
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    quality = faithful_db(graph, student, example, taps=taps)
    if quality < MIN_FAITHFUL_DB:
        raise NotFaithful(
            f"The prepared graph differs from the float student: {quality:.1f} dB, at least {MIN_FAITHFUL_DB:.0f} dB"
            " is needed. Look for layers whose result depends on train or eval mode, or report this model."
        )
    return graph


def capture(student: nn.Module, example: Tensor, taps: Sequence[str] = ()) -> GraphModule:
    """Export a student in eval mode with a dynamic batch, taps behind the logits.

    Raises:
        MismatchError: torch.export cannot capture the model; says where.
    """
    wrapped = Tapped(copy.deepcopy(student).eval(), taps)
    # a batch of one would be baked in as a constant
    example = example[:1].expand(2, *example.shape[1:]).contiguous() if len(example) < 2 else example
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with _quiet():
            exported = torch.export.export(wrapped, (example,), dynamic_shapes=({0: batch},))
            return exported.module()
    except EdgeKDError:
        raise
    except Exception as error:
        raise MismatchError(
            f"torch.export cannot capture {type(student).__name__}: {_first_line(error)}"
            " Models with control flow that depends on values must be rewritten without it."
        ) from error


def calibrate(graph: GraphModule, batches: Iterable[Tensor]) -> int:
    """Observe batches and set every activation's range from them; what was observed before is forgotten.

    Args:
        graph: from `prepare`.
        batches: normalised inputs, shape (B, C, H, W).

    Returns:
        The number of samples seen.

    Raises:
        DataError: no batch, or a NaN or infinite value on the way.
    """
    activations = [one for _, one in quantizers(graph) if isinstance(one, ActivationQuantizer)]
    for quantizer in activations:
        quantizer.forget()
    set_phase(graph, "observe")
    samples = 0
    with torch.no_grad():
        for inputs in batches:
            graph(inputs)
            samples += len(inputs)
    if samples == 0:
        raise DataError("Calibration saw no data. Give quantize.calibration_samples at least one sample.")
    for quantizer in activations:
        quantizer.calibrate()
    set_phase(graph, "frozen")
    return samples


def convert(graph: GraphModule, example: Tensor, *, numerics: Numerics) -> GraphModule:
    """Turn a calibrated or trained graph into an int8 program that gives logits only.

    Args:
        graph: from `prepare`, calibrated; it is not changed.
        example: one batch, so that every weight quantizer has seen its weight.
        numerics: the target's; where its biases are int32, the program's are rounded to that grid, so that
            the exported file computes the same codes.
    """
    with _quiet():
        twin = copy.deepcopy(graph)
    set_phase(twin, "frozen")
    with torch.no_grad():
        twin(example)
    _drop_taps(twin)
    with _quiet():
        program: GraphModule = convert_pt2e(twin)
    _drop_unread(program)
    if numerics.bias == "int32":
        _round_biases(program)
    return program


def ranges(graph: GraphModule) -> Mapping[str, tuple[float, float]]:
    """The range of every activation quantizer, by name."""
    return {
        name: (float(quantizer.minimum), float(quantizer.maximum))
        for name, quantizer in quantizers(graph)
        if isinstance(quantizer, ActivationQuantizer)
    }


def restore(graph: GraphModule, state: Mapping[str, Tensor]) -> None:
    """Load weights and ranges that were saved from an equally prepared graph.

    Raises:
        MismatchError: the graphs differ; names the first keys that do.
    """
    own = graph.state_dict()
    # names of the network first: they tell more than the numbers of quantizers
    odd = sorted(set(own) ^ set(state), key=lambda name: ("activation_post_process" in name, name))
    if odd:
        raise MismatchError(f"The saved quantized student has another graph: {', '.join(odd[:4])} on one side only.")
    unlike = [name for name in own if own[name].shape != state[name].shape]
    if unlike:
        pairs = [f"{name} is {list(state[name].shape)}, here {list(own[name].shape)}" for name in unlike[:4]]
        raise MismatchError(f"The saved quantized student has other shapes: {'; '.join(pairs)}.")
    graph.load_state_dict(dict(state))
    set_phase(graph, "frozen")


def faithful_db(graph: GraphModule, student: nn.Module, example: Tensor, *, taps: Sequence[str] = ()) -> float:
    """SQNR in dB of the prepared graph with all quantizers off against the float student in eval mode.

    Of the logits and the taps, the worst.
    """
    set_phase(graph, "off")
    wrapped = Tapped(copy.deepcopy(student).eval(), taps)
    with torch.no_grad():
        pairs = zip(wrapped(example), graph(example), strict=True)
        return min(sqnr_db(wanted, found) for wanted, found in pairs)


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """10 log10 of signal power over error power; inf when they are equal, -inf when one is no number.

    >>> round(sqnr_db(torch.tensor([10.0]), torch.tensor([9.0])), 6)
    20.0
    """
    error = float(((reference - other).double() ** 2).sum())
    power = float((reference.double() ** 2).sum())
    if error == 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power > 0 and math.isfinite(error) else -math.inf


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _drop_taps(graph: GraphModule) -> None:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    first = output.args[0][0]
    output.args = ((first,),)
    _single_output(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _drop_unread(program: GraphModule) -> None:
    """Remove tensors that no node reads: the float weights that the int8 ones were made from."""
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*program.named_parameters(), *program.named_buffers()) if name not in read]:
        path, _, leaf = name.rpartition(".")
        delattr(program.get_submodule(path), leaf)


def _round_biases(program: GraphModule) -> None:
    """Round every bias of a quantized operator to the accumulator's grid, s_x * s_w, in place."""
    for node in program.graph.nodes:
        if not is_weighted(node) or len(node.args) < 3 or node.args[2] is None:
            continue
        data, weight, bias = node.args[:3]
        if data.target is not _DEQUANTIZE or weight.target is not _DEQUANTIZE_CHANNELS:
            continue
        scale = float(data.args[1]) * _attribute(program, weight.args[1]).double()
        if len(bias.users) > 1:
            # each reader's accumulator has a grid of its own
            bias = _copied(program, bias, node)
            node.args = (data, weight, bias, *node.args[3:])
        values = _attribute(program, bias)
        with torch.no_grad():
            values.copy_(torch.round(values.double() / scale) * scale)
    program.recompile()


def _copied(program: GraphModule, read: Node, reader: Node) -> Node:
    """A get_attr node in front of `reader` that reads a copy of what `read` reads."""
    name = f"{reader.name}_bias"
    program.register_buffer(name, _attribute(program, read).detach().clone())
    with program.graph.inserting_before(reader):
        copied: Node = program.graph.get_attr(name)
    copied.meta = dict(read.meta)
    return copied


def _attribute(program: GraphModule, node: Node) -> Tensor:
    """The tensor that a get_attr node reads."""
    value: object = program
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise TypeError(f"{node.target} is no tensor")
    return value


def _single_output(graph: GraphModule) -> None:
    """Make the calling convention say one tensor where it said (logits, *taps)."""
    from torch.utils import _pytree as pytree

    codegen: Any = graph.graph._codegen
    info = codegen.pytree_info
    codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of torch's own making about its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
