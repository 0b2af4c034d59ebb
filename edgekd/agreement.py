"""Do runtimes give the same answers for the same file?

Every runtime computes an int8 file with kernels of its own. Where they differ by more than a code's rounding, one of
them does not compute what the file means: sums that saturate, a scale that is read as another, an operator that is
rounded elsewhere. ONNX Runtime without optimizations, which computes the file operator by operator, is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd._agreement_pairs import accuracy, compared, judged
from edgekd._agreement_runtimes import EMULATED, PLAIN, Runtime, runtime_named, runtime_names
from edgekd._agreement_types import Agreement, AnswerRow, PairRow
from edgekd._probes import int8_sums
from edgekd.errors import BackendMissing, DataError, MismatchError, ModelFileError, UsageError
from edgekd.feeds import Feeds, preprocessing_of, read_feeds
from edgekd.spec import Preprocessing, Runner
from edgekd.targets._modelfile import model_inputs, read_model
from edgekd.targets._onnxruntime import OnnxRuntimeRunner
from edgekd.targets._saturation import Saturable, saturable_weights, with_exact_sums

__all__ = ["EMULATED", "PLAIN", "Agreement", "AnswerRow", "PairRow", "agree", "compared", "runtime_names"]

_NOTABLE_DIFFERENCE = 0.02
"""Of the logits' range: from here on a difference is looked into. Rounding alone stays below."""
_RESTORED = 0.5
"""How much of the difference must go with exact sums for saturation to be called its cause."""


@dataclass(frozen=True)
class _Answer:
    """The logits of one runtime for one file, shape (N, K)."""

    path: Path
    runtime: Runtime
    version: str
    logits: NDArray[np.float64]

    @property
    def name(self) -> str:
        return f"{self.path.name} on {self.runtime.name}"


def agree(
    files: Sequence[Path],
    *,
    data: Path,
    runtimes: Sequence[str] | None = None,
    min_agreement: float | None = None,
    limit: int | None = None,
    threads: int = 1,
    userland: Path | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Run files on runtimes with the same samples, and compare every two answers.

    Args:
        files: ONNX files and files made for a target; each is run on every runtime that takes it.
        data: samples, an npz file or a folder of images; see `read_feeds`. Its labels, if any, give accuracies.
        runtimes: names; every one that is here unless given. The reference is always run for ONNX files.
        min_agreement: least share of samples on which an answer and the reference must have the same largest logit,
            in [0, 1]; one sample may always differ, as in the parity of an export.
        limit: use the first samples only.
        threads: intra-op threads of each runtime, >= 1.
        userland: folder for the emulated Arm; that of the environment unless given.
        told: called with answers done and answers in all.

    Raises:
        UsageError: a runtime that is not known, or that runs none of the files; an agreement outside [0, 1].
        BackendMissing: a runtime that was asked for is not here.
        ModelFileError: a file is missing or damaged, or a runtime refuses it.
        DataError, MismatchError: the data are missing or do not fit.
        GateFailed: a logit is NaN or infinite.
    """
    if min_agreement is not None and not 0.0 <= min_agreement <= 1.0:
        raise UsageError(f"min_agreement must be in [0, 1], got {min_agreement}.")
    _check_files(files)
    work, missing = _planned(files, runtimes, userland)
    source = _Source(data, limit, _preprocessing(files))
    answers: list[_Answer] = []
    for done, (path, runtime) in enumerate(work):
        if told is not None:
            told(done, len(work))
        answers.append(_answered(path, runtime, source, threads))
    answers = _equally_many(answers)
    if told is not None:
        told(len(work), len(work))
    return _compared_all(answers, source, missing, min_agreement, threads)


class _Source:
    """The samples, for models whose interfaces may be called differently."""

    def __init__(self, data: Path, limit: int | None, preprocessing: Preprocessing | None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"limit must be at least 1, got {limit}.")
        self._data, self._limit, self._preprocessing = data, limit, preprocessing
        self.labels: NDArray[np.int64] | None = None

    def batches(self, runner: Runner) -> Iterator[dict[str, NDArray[np.float32]]]:
        found: Feeds = read_feeds(self._data, runner.inputs, preprocessing=self._preprocessing)
        self.labels = found.labels
        count = found.count if self._limit is None else min(found.count, self._limit)
        yield from found.batches(range(count))


def _check_files(files: Sequence[Path]) -> None:
    if not files:
        raise UsageError("Give at least one model file.")
    for path in files:
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file. Check the path.")


def _planned(
    files: Sequence[Path], names: Sequence[str] | None, userland: Path | None
) -> tuple[list[tuple[Path, Runtime]], dict[str, str]]:
    """What runs where, the reference of each ONNX file first; and which runtimes are not here."""
    work, missing = [], {}
    for name in dict.fromkeys([PLAIN, *(runtime_names() if names is None else names)]):
        try:
            runtime = runtime_named(name, userland=userland)
            own = [path for path in files if runtime.takes(path)]
            reason = runtime.absent() if own else None
        except BackendMissing as error:  # a target's module wants a package that is not installed
            own, reason = [], str(error)
        if names is not None and name in names and reason is not None:
            raise BackendMissing(f"{name}: {reason}")
        if names is not None and name in names and not own:
            raise UsageError(
                f"{name} runs {' and '.join(runtime.suffixes)} files, and none was given. Add one, or leave it out of"
                " --runtimes."
            )
        if reason is not None:
            missing[name] = reason
        else:
            work += [(path, runtime) for path in own]
    if len(work) < 2:
        raise UsageError("There are no two answers to compare: give another file, or another runtime.")
    return work, missing


def _preprocessing(files: Sequence[Path]) -> Preprocessing | None:
    """How images become inputs, as the first ONNX file that knows says."""
    for path in files:
        if path.suffix.lower() == ".onnx":
            model = read_model(path, external_data=False)
            found = preprocessing_of(model, model_inputs(model), mean=None, std=None)
            if found is not None:
                return found
    return None


def _answered(path: Path, runtime: Runtime, source: _Source, threads: int) -> _Answer:
    with runtime.open(path, threads) as runner:
        logits = _logits(runner, source)
        return _Answer(path, runtime, runtime.version(runner), logits)


def _logits(runner: Runner, source: _Source) -> NDArray[np.float64]:
    """The first output of every sample as a row."""
    name = runner.outputs[0].name
    rows = [_rows(runner.run(feeds)[name], feeds) for feeds in source.batches(runner)]
    if not rows:
        raise DataError("There are fewer samples than the model's fixed batch takes. Give more.")
    return np.concatenate(rows)


def _rows(values: NDArray[np.float32], feeds: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    count = len(next(iter(feeds.values())))
    if values.ndim == 0 or len(values) != count:
        raise MismatchError(f"The first output has shape {list(values.shape)}: not a row for each of {count} samples.")
    return values.reshape(count, -1).astype(np.float64)


def _equally_many(answers: list[_Answer]) -> list[_Answer]:
    """A file with a fixed batch leaves out the samples that do not fill one: so do all then."""
    n = min(len(one.logits) for one in answers)
    return [_Answer(one.path, one.runtime, one.version, one.logits[:n]) for one in answers]


def _compared_all(
    answers: Sequence[_Answer],
    source: _Source,
    missing: dict[str, str],
    min_agreement: float | None,
    threads: int,
) -> Agreement:
    reference = answers[0]
    pairs = [compared(a.logits, b.logits, names=(a.name, b.name)) for a, b in combinations(answers, 2)]
    differs = {pair.b: pair for pair in pairs if pair.a == reference.name}
    rows = []
    for one in answers:
        pair = differs.get(one.name)
        rows.append(
            AnswerRow(
                name=one.name,
                file=one.path.name,
                runtime=one.runtime.name,
                version=one.version,
                accuracy=accuracy(one.logits, source.labels),
                differs_by=pair.max_rel_diff if pair is not None else None,
                cause=_cause(one, pair, reference, source, threads) if pair is not None else None,
            )
        )
    return Agreement(
        samples=len(reference.logits),
        reference=reference.name,
        answers=rows,
        pairs=[judged(pair, reference.name, min_agreement) for pair in pairs],
        min_agreement=min_agreement,
        missing=missing,
    )


def _cause(answer: _Answer, pair: PairRow, reference: _Answer, source: _Source, threads: int) -> str | None:
    """Saturation, where it is: found in the file, possible on this processor, and gone with exact sums."""
    notable = pair.max_rel_diff >= _NOTABLE_DIFFERENCE or pair.agreeing < pair.n
    if not notable or not answer.runtime.sums_in_16_bits or answer.path != reference.path:
        return None
    model = read_model(answer.path)
    weights = saturable_weights(model)
    if not weights or int8_sums() != "saturating":
        return None
    with OnnxRuntimeRunner(with_exact_sums(model).SerializeToString(), threads=threads) as runner:
        exact = compared(reference.logits, _logits(runner, source)[: pair.n], names=("reference", "exact sums"))
    if exact.max_abs_diff > _RESTORED * pair.max_abs_diff:
        return None
    # the sums were made exact for ONNX Runtime: of another runtime this shows what is likely
    certain = "" if answer.runtime.name == "onnxruntime_x86" else "probably "
    return certain + _saturation(weights, exact)


def _saturation(weights: Sequence[Saturable], exact: PairRow) -> str:
    worst = max(weights, key=lambda one: one.share)
    return (
        "saturation: this processor has no VNNI and adds pairs of u8 x s8 products in 16 bits, which do not hold those"
        f" of {len(weights)} layers (first '{worst.name}', codes up to {worst.largest_code}). With exact sums ONNX"
        f" Runtime agrees on {exact.agreeing} of {exact.n} samples, largest difference {exact.max_abs_diff:.3g}."
        " Quantize with quantize.reduce_range (--reduce-range for a file)"
    )
