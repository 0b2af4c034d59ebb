"""Audit any model file: which operators run as int8 on a target, why the others do not, and what each costs.

The target's own audit says what is int8, and its runtime how long each operator takes, where it is here. On ONNX
Runtime both come from the graph that it really runs. A file that a runtime refuses is still held against the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgekd._audit_rows import rows_by_rules, rows_of_audit, rows_of_run, with_times
from edgekd._audit_types import ConversionRow, FileAudit, FloatRow, IslandRow, OperatorRow
from edgekd.errors import BackendMissing, GateFailed, MismatchError, ModelFileError
from edgekd.feeds import preprocessing_of, read_feeds
from edgekd.spec import Preprocessing, TensorSpec
from edgekd.targets._audit import Examined, examine, has_quantizers, marked, optimized, readable
from edgekd.targets._base import Audit, Target
from edgekd.targets._modelfile import example_feeds, model_inputs, read_model
from edgekd.targets._profile import node_times
from edgekd.targets._trt_audit import audit_by_rules, axes_in_the_way

__all__ = ["ConversionRow", "FileAudit", "FloatRow", "IslandRow", "OperatorRow", "audit_file"]

_RUNS = 20
_NOT_RUN = "The runtime did not load the file: this is what the rules expect of it, not what ran."


def audit_file(
    path: Path,
    *,
    target: Target,
    data: Path | None = None,
    require_int8: bool = False,
    threads: int = 1,
    runs: int = _RUNS,
) -> FileAudit:
    """Audit a file for a target.

    Args:
        path: an ONNX file, or another kind of file that the target runs.
        target: what the file is for.
        data: inputs to time the operators with, an npz file or a folder of images; random ones unless given.
        require_int8: count a file without Q/DQ as one that should be int8.
        threads: intra-op threads of the timed runs, >= 1.
        runs: timed ones, >= 1.

    Raises:
        ModelFileError: missing, damaged or unsafe.
        DataError: the data are missing or damaged.
        MismatchError: the data do not fit the model.
        BackendMissing: the audit needs the target's library.
    """
    if not path.exists():
        raise ModelFileError(f"{path}: no such file. Check the path.")
    if (reason := target.missing()) is not None:
        raise BackendMissing(reason)
    timing = _Timing(data, threads, runs)
    if path.suffix.lower() != ".onnx":
        asked = require_int8 or target.is_int8(path)
        return timing.added(rows_of_audit(str(path), target.audit(path), asked=asked), path, target, None)
    model = readable(read_model(path))
    asked = require_int8 or has_quantizers(model)
    if target.runtime == "onnxruntime":
        return _on_onnxruntime(path, model, target, asked, timing)
    return _elsewhere(path, model, target, asked, timing)


@dataclass(frozen=True)
class _Timing:
    """How the operators of a file are timed: the arguments of `audit_file`."""

    data: Path | None
    threads: int
    runs: int

    def feeds(self, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None) -> dict[str, np.ndarray]:
        """One sample, or as many as a fixed batch takes.

        Raises:
            ModelFileError: none were given, and none can be made up.
            DataError, MismatchError: see `read_feeds`.
        """
        if self.data is None:
            return example_feeds(inputs, batch=1, seed=0)
        found = read_feeds(self.data, inputs, preprocessing=preprocessing)
        first = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        wanted = first if isinstance(first, int) else 1
        if found.count < wanted:
            raise MismatchError(f"{self.data}: has {found.count} samples; the model takes {wanted} at once.")
        return next(found.batches(range(wanted)))

    def of_nodes(self, model: onnx.ModelProto, ran: onnx.ModelProto) -> tuple[dict[str, float], list[str]]:
        """Microseconds of a run by node of the graph that ran, and notes; no times where no inputs can be made up."""
        inputs = model_inputs(model)
        try:
            feeds = self.feeds(inputs, preprocessing_of(model, inputs, mean=None, std=None))
            return node_times(ran, feeds, threads=self.threads, runs=self.runs), []
        except (ModelFileError, MismatchError) as error:
            return {}, [self._without(error)]

    def added(self, rows: FileAudit, path: Path, target: Target, model: onnx.ModelProto | None) -> FileAudit:
        """The rows with the times that the target's own runtime tells."""
        if (reason := target.absent_here()) is not None:
            return _noted(rows, f"Nothing was timed: {target.name} {reason}.")
        try:
            if model is not None:
                inputs: Sequence[TensorSpec] = model_inputs(model)
                preprocessing = preprocessing_of(model, inputs, mean=None, std=None)
            else:
                with target.reference(path) as runner:
                    inputs, preprocessing = runner.inputs, None
            feeds = self.feeds(inputs, preprocessing)
            times = target.operator_times(path, feeds, runs=self.runs, threads=self.threads)
        except (ModelFileError, MismatchError) as error:
            return _noted(rows, self._without(error))
        return with_times(rows, times) if times else _noted(rows, "Nothing was timed: the runtime does not tell.")

    def _without(self, error: ModelFileError | MismatchError) -> str:
        if self.data is not None:
            raise error
        return f"Nothing was timed, for no inputs could be made up ({error}). Give real ones with --data."


def _noted(rows: FileAudit, note: str) -> FileAudit:
    return rows.model_copy(update={"notes": [*rows.notes, note]})


def _on_onnxruntime(path: Path, model: onnx.ModelProto, target: Target, asked: bool, timing: _Timing) -> FileAudit:
    signed = target.numerics.activation == "int8"

    def looked_at(ran: onnx.ModelProto | None, *, asked_int8: bool = asked) -> Examined:
        return examine(model, ran, asked_int8=asked_int8, signed_rewritten=not signed)

    try:
        found = looked_at(optimized(marked(model), int8_activations=signed))
    except ModelFileError as error:
        expected = rows_by_rules(str(path), looked_at(None).audit(target.name), asked=asked)
        return expected.model_copy(update={"refusals": [_reason(error)], "notes": [_NOT_RUN]})
    notes: list[str] = []
    if not asked:
        could = len(looked_at(None, asked_int8=True).quantizable)
        notes.append(f"{could or 'None'} of its operators could run as int8{' (edgekd quantize)' if could else ''}.")
    times: dict[str, float] = {}
    if (absent := target.absent_here()) is not None:
        notes.append(f"Nothing was timed: {target.name} {absent}.")
    elif found.ran is not None and found.ran.nodes:
        times, told = timing.of_nodes(model, found.ran.model)
        notes += told
    rows = rows_of_run(str(path), found, times, target=target.name, asked=asked)
    return rows.model_copy(update={"notes": notes})


def _elsewhere(path: Path, model: onnx.ModelProto, target: Target, asked: bool, timing: _Timing) -> FileAudit:
    """On a runtime that tells what it made of the file, or refuses it."""
    refusals, notes = _axes(model_inputs(model), target)
    if target.suffix != ".onnx":
        rows = rows_by_rules(str(path), _expected(model, target), asked=asked)
        reason = f"{target.name} runs {target.suffix} files, which are made from the torch program (edgekd export)."
        return rows.model_copy(update={"refusals": [reason, *refusals], "notes": [_NOT_RUN, *notes]})
    try:
        rows = rows_of_audit(str(path), target.audit(path), asked=asked)
    except (GateFailed, ModelFileError) as error:
        rows = rows_by_rules(str(path), _expected(model, target), asked=asked)
        return rows.model_copy(update={"refusals": [_reason(error), *refusals], "notes": [_NOT_RUN, *notes]})
    return timing.added(rows.model_copy(update={"refusals": refusals, "notes": notes}), path, target, model)


def _reason(error: GateFailed | ModelFileError) -> str:
    return str(error).removeprefix("model in memory: ")


def _axes(inputs: Sequence[TensorSpec], target: Target) -> tuple[list[str], list[str]]:
    """Dynamic axes that the target cannot take, and what else to know about them."""
    if target.runtime == "tensorrt":
        return axes_in_the_way(inputs)
    dynamic = [f"'{spec.name}' {spec.shape}" for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    if target.suffix == ".onnx" or not dynamic:
        return [], []
    return [], [f"A {target.suffix} file is for one shape; dynamic here: {', '.join(dynamic)}."]


def _expected(model: onnx.ModelProto, target: Target) -> Audit:
    """By the rules that are kept for the target, or else only what there is to quantize."""
    if target.runtime == "tensorrt":
        return audit_by_rules(model)
    found = examine(model, None, asked_int8=True, signed_rewritten=False)
    return Audit(target.name, len(found.quantizable), 0, (), dict(found.legitimate), dict(found.operators))
