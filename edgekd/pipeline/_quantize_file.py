"""Post-training quantization of an ONNX file: data in, checked Q/DQ file out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd._intervals import wilson_interval
from edgekd.catalog import CATALOGS
from edgekd.errors import MismatchError
from edgekd.feeds import Feeds, preprocessing_of, read_feeds
from edgekd.pipeline._file_samples import KeptStatistics, split
from edgekd.pipeline._quantize_plan import vnni_missing
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.quantize import sqnr_db
from edgekd.quantize_onnx import quantize_onnx
from edgekd.recipe import FileSettings
from edgekd.spec import Frozen, TensorSpec
from edgekd.targets._base import Target
from edgekd.targets._modelfile import file_size_bytes, model_inputs, read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner

__all__ = ["FileQuantization", "quantize_file"]

_EVALUATED = 2048


class FileQuantization(Frozen):
    """What came of it.

    Args:
        file: the quantized file.
        target: what it is for.
        calibration_samples: how many were seen.
        calibration_s: seconds of running and observing them; 0 if statistics that were kept served.
        corrected_biases: operators that were given back what rounding their weights takes from each channel's mean.
        reduce_range: whether neighbouring weights share their 8 bits.
        evaluated_on: "held-out" or "calibration" samples.
        n: how many of them.
        sqnr_db: output signal over error against the float file, in decibels.
        agreement: share of samples with the same largest output, where outputs are (B, K).
        agreement_ci95: its 95 % interval.
        accuracy: {float, int8} top-1 where the data has labels.
        coverage: share of the operators that can run as int8 that do.
        islands: the others, one line each.
        size_bytes: of the int8 file.
        float_size_bytes: of the float file.
    """

    file: str
    target: str
    calibration_samples: int
    calibration_s: float
    corrected_biases: int
    reduce_range: bool
    evaluated_on: str
    n: int
    sqnr_db: float | None
    agreement: float | None
    agreement_ci95: tuple[float, float] | None
    accuracy: dict[str, float] | None
    coverage: float | None
    islands: list[str]
    legitimate: dict[str, int]
    size_bytes: int
    float_size_bytes: int


def quantize_file(
    model: Path,
    data: Path,
    settings: FileSettings,
    *,
    target: str = "onnxruntime_x86",
    out: Path | None = None,
    watcher: Watcher | None = None,
) -> FileQuantization:
    """Quantize a float ONNX file for a target and hold the result against it.

    Args:
        model: the file.
        data: an npz file or a folder of images; see `read_feeds`.
        settings: how.
        target: what the result is for.
        out: where to write; NAME.int8.onnx beside the model unless given.
        watcher: told about progress.

    Raises:
        EdgeKDError: of the file, the data, or their fit; nothing is written then.
    """
    watcher = watcher or Silent()
    proto = read_model(model)
    inputs = model_inputs(proto)
    feeds = read_feeds(
        data, inputs, preprocessing=preprocessing_of(proto, inputs, mean=settings.mean, std=settings.std)
    )
    runtime: Target = CATALOGS["targets"].load(target).member()
    _refuse_dynamic(inputs, runtime)
    chosen, held_out = split(feeds, settings, model, watcher)
    reduce_range = vnni_missing(runtime) if settings.reduce_range == "auto" else settings.reduce_range
    entry = CATALOGS["calibration"].load(settings.calibrator)
    kept = KeptStatistics.of(settings.statistics, proto, feeds, chosen)
    quantized = quantize_onnx(
        proto,
        _watched(feeds, chosen, watcher),
        target=runtime,
        calibrator=entry.member(entry.member.Options(**settings.calibrator_options)),
        reduce_range=reduce_range,
        float_layers=settings.float_layers,
        bias_correction=settings.bias_correction,
        observed=kept.read(),
        threads=settings.threads,
        where=str(model),
    )
    kept.write(quantized.observed)
    path = out or model.with_name(f"{model.stem}.int8.onnx")
    _write(path, quantized.model.SerializeToString(deterministic=True))
    compared = _compare(model, runtime.reference(path), feeds, held_out or chosen, settings.threads)
    return FileQuantization(
        target=target,
        calibration_samples=quantized.observed.samples,
        calibration_s=round(quantized.calibration_s, 3),
        corrected_biases=quantized.corrected_biases,
        reduce_range=reduce_range,
        evaluated_on="held-out" if held_out else "calibration",
        float_size_bytes=file_size_bytes(model),
        **_file_facts(path, runtime),
        **compared.values(),
    )


def _file_facts(path: Path, runtime: Target) -> dict[str, Any]:
    """The int8 file, and what its runtime makes of it."""
    audit = None if runtime.missing() else runtime.audit(path)
    found = [] if audit is None else audit.islands
    return {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "coverage": None if audit is None else audit.coverage,
        "islands": [f"{one.name} ({one.op}): {one.cause}; {one.remedy}" for one in found],
        "legitimate": {} if audit is None else dict(audit.legitimate),
    }


@dataclass
class _Compared:
    """Sums over the samples that were compared."""

    n: int = 0
    power: float = 0.0
    error: float = 0.0
    same: int = 0
    float_right: int = 0
    int8_right: int = 0
    labelled: int = 0
    ranked: bool = True

    def values(self) -> dict[str, Any]:
        signal = torch.tensor([self.power**0.5])
        sqnr = sqnr_db(signal, signal + self.error**0.5) if self.power else None
        ranked = self.ranked and self.n > 0
        return {
            "n": self.n,
            "sqnr_db": sqnr,
            "agreement": self.same / self.n if ranked else None,
            "agreement_ci95": wilson_interval(self.same, self.n) if ranked else None,
            "accuracy": {"float": self.float_right / self.labelled, "int8": self.int8_right / self.labelled}
            if self.labelled
            else None,
        }


def _compare(model: Path, runner: Any, feeds: Feeds, ids: Sequence[int], threads: int) -> _Compared:
    sums, done = _Compared(), 0
    with OnnxRuntimeRunner(model, threads=threads) as reference, runner:
        for batch in feeds.batches(ids[:_EVALUATED]):
            wanted = next(iter(reference.run(batch).values()))
            found = next(iter(runner.run(batch).values())).astype(np.float64)
            sums.power += float((wanted.astype(np.float64) ** 2).sum())
            sums.error += float(((wanted - found) ** 2).sum())
            count = len(next(iter(batch.values())))
            sums.ranked &= wanted.ndim == 2 and wanted.shape[0] == count and wanted.shape[1] > 1
            if sums.ranked:
                _rank(sums, wanted, found, None if feeds.labels is None else feeds.labels[ids[done : done + count]])
            sums.n, done = sums.n + count, done + count
    return sums


def _rank(sums: _Compared, wanted: np.ndarray, found: np.ndarray, labels: np.ndarray | None) -> None:
    first, second = wanted.argmax(axis=1), found.argmax(axis=1)
    sums.same += int((first == second).sum())
    if labels is not None:
        sums.float_right += int((first == labels).sum())
        sums.int8_right += int((second == labels).sum())
        sums.labelled += len(labels)


def _watched(feeds: Feeds, ids: Sequence[int], watcher: Watcher) -> Iterator[Mapping[str, np.ndarray]]:
    done = 0
    for batch in feeds.batches(ids):
        yield batch
        done += len(next(iter(batch.values())))
        watcher.progress(done, len(ids), "calibration")


def _refuse_dynamic(inputs: Sequence[TensorSpec], target: Target) -> None:
    for one in inputs:
        moving = [str(size) for size in one.shape[1:] if isinstance(size, str)]
        if moving and target.runtime != "onnxruntime":
            raise MismatchError(
                f"Input '{one.name}' {one.shape}: '{moving[0]}' is dynamic, and target '{target.name}' takes only a"
                " dynamic batch. Export the model with a fixed size."
            )


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a crash leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
