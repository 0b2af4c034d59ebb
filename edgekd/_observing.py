"""Run a float ONNX model over calibration batches and count what its tensors hold, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from edgekd.calibration._histogram import Histogram
from edgekd.calibration._means import Mean
from edgekd.errors import DataError, MismatchError
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._windows import Window

__all__ = ["Observed", "observe"]


@dataclass(frozen=True)
class Observed:
    """What calibration saw.

    Args:
        histograms: by tensor.
        means: of what weighted operators read, by the operator's first output.
    """

    histograms: Mapping[str, Histogram]
    means: Mapping[str, Mean] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples were seen."""
        return max((histogram.samples for histogram in self.histograms.values()), default=0)

    def check(self, tensors: Sequence[str], means: Iterable[str]) -> None:
        """Refuse what lacks something that is needed.

        Raises:
            MismatchError: a tensor was not observed.
        """
        missing = [name for name in tensors if name not in self.histograms]
        missing += [name for name in means if name not in self.means]
        if missing:
            raise MismatchError(
                f"The calibration statistics lack tensor '{missing[0]}': they were made for another target or other"
                " settings. Calibrate again, or keep the statistics of each target in a file of its own."
            )


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    means: Mapping[str, Window] | None = None,
    threads: int = 1,
) -> Observed:
    """Run a float model and count the values of some of its tensors.

    Args:
        model: float, in memory.
        tensors: computed tensors and inputs, for histograms.
        batches: feeds; samples along axis 0.
        means: names -> of what the mean is wanted.
        threads: of the runtime, and of torch meanwhile.

    Raises:
        DataError: no batch, or a value that is not finite; names the tensor.
        MismatchError: a batch does not fit the model's inputs.
    """
    windows = dict(means or {})
    found = Observed({name: Histogram() for name in tensors}, {name: Mean() for name in windows})
    watched = _watched(model, [*tensors, *(window.tensor for window in windows.values())])
    some = False
    with _torch_threads(threads), OnnxRuntimeRunner(watched, threads=threads, checked=False) as runner:
        for feeds in batches:
            values = {**feeds, **runner.run(feeds)}
            for name, histogram in found.histograms.items():
                _count(histogram, values[name], name)
            for name, window in windows.items():
                data = np.asarray(values[window.tensor])
                found.means[name].add(window.total(data), len(data))
            some = True
    if not some:
        raise DataError("Calibration saw no data. Give at least one sample.")
    return found


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads: on a busy machine, those that wait for each other cost most."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _watched(model: onnx.ModelProto, wanted: Sequence[str]) -> bytes:
    """The model with the wanted tensors as outputs."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    there = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in dict.fromkeys(wanted):
        if name not in there:
            watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    content: bytes = watched.SerializeToString()
    return content


def _count(histogram: Histogram, values: np.ndarray, name: str) -> None:
    try:
        histogram.update(torch.from_numpy(np.asarray(values)))
    except DataError as error:
        raise DataError(f"Tensor '{name}': {error}") from error
