"""A ready-made teacher that was asked before: its answers from a file, `stored:PATH.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.errors import DataError, MismatchError, UsageError
from edgekd.models._answers import (
    check_finite,
    check_labels,
    check_top_k,
    logits_from_labels,
    logits_from_top_k,
)
from edgekd.models._ready_made import ReadyMade, ReadyNetwork, check_input, file_of

__all__ = ["Stored"]

_FORMS = (("logits",), ("indices", "values"), ("labels",))
_MORE = ("test_logits", "true_labels", "test_true_labels")


class Stored(ReadyMade):
    """Looks the answers of a teacher up by the number of the training sample.

    Row i of the file belongs to sample i of the run's training split: in the data set's order, without the samples
    that the run keeps for validation. Arrays of the file, in one of three forms:

        logits (N, K): floats.
        indices, values (N, k): the best k classes and the probability of each. What they leave of 1 is spread evenly
            over the other classes; nothing is scaled up.
        labels (N,): the class that the teacher named; it gets the probability `confidence`.

    and beside them, each if you have it: test_logits (M, K), so that the teacher stands in the ladder; true_labels (N,)
    and test_true_labels (M,), which are compared with the data's, so that rows in another order are found.

    The answers are of images as they are: where training crops, mirrors or mixes them, the student sees the changed
    image and the teacher's answer to the plain one. Beyer et al. (2021) measured that this costs accuracy; a teacher
    that computes sees what the student sees.

    Reference: Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov, "Knowledge distillation: A good teacher is patient and
    consistent", 2021, arXiv:2106.05237, section 3.1 ("fixed teacher").
    """

    takes_file = True
    knows_plain_images_only: ClassVar[bool] = True

    class Options(spec.Options):
        """Options of `stored`."""

        values: Literal["probabilities", "log_probabilities"] = Field(
            "probabilities", description="what the array values holds, for the best k classes"
        )
        confidence: float = Field(0.9, gt=0.0, lt=1.0, description="probability of the class in the array labels")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The file as a module that must be told which samples come.

        Raises:
            ModelFileError: no such file.
            DataError: not an .npz file, or without the arrays of one form.
            MismatchError: arrays that do not fit each other or the classes, or values that are not finite.
        """
        path = file_of(self, "stored", ".npz")
        return _Answers(path, _arrays(path), cast(Stored.Options, self.options), classes, input_shape)


class _Answers(ReadyNetwork):
    """Rows of a file; they stay where they are, and go to the device a batch at a time.

    Attributes:
        samples: how many training samples it has answers for.
        true_labels, test_true_labels: the classes of the samples that it was asked about, if the file tells.
        test_logits: its answers for the test split, if the file has them.
    """

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, Tensor],
        options: Stored.Options,
        classes: int,
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self._where, self._options, self._classes, self._shape = str(path), options, classes, input_shape
        self._arrays = {name: value for name, value in arrays.items() if name not in _MORE}
        self._check(arrays)
        self.samples = len(next(iter(self._arrays.values())))
        self.test_logits = arrays.get("test_logits")
        self.true_labels = arrays.get("true_labels")
        self.test_true_labels = arrays.get("test_true_labels")
        self._ids: Tensor | None = None
        self._only_shapes = False

    def __deepcopy__(self, memo: Mapping[int, object]) -> Self:
        """A copy is made to look at shapes (`edgekd.taps.probe`), so it answers for samples that nobody named."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._only_shapes = True
        return copied

    def look_up(self, ids: Tensor) -> None:
        """Say which samples the next batch is of.

        Args:
            ids: indices in the training split, int64, shape (B,).

        Raises:
            MismatchError: a sample that the file has no row for.
        """
        if len(ids) and int(ids.max()) >= self.samples:
            raise MismatchError(
                f"{self._where} has answers for {self.samples} training samples, sample {int(ids.max())} was asked for."
                " Store one row for each sample of the training split, in its order."
            )
        self._ids = ids.detach().cpu()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K), float32, of the samples that were named, on the device of the inputs.

        Raises:
            UsageError: no samples were named, or others than these: the file cannot answer for an image.
        """
        check_input(inputs, self._shape, self._where)
        ids, self._ids = self._ids, None
        if ids is None and self._only_shapes:
            ids = torch.arange(len(inputs)) % self.samples
        if ids is None or len(ids) != len(inputs):
            raise UsageError(
                f"{self._where} holds answers for training samples by their number, and here an image comes without"
                " one. What asks about other images needs a teacher that computes: a network, onnx or exported."
            )
        return self._logits(ids).to(inputs.device)

    def _logits(self, ids: Tensor) -> Tensor:
        rows = {name: value[ids] for name, value in self._arrays.items()}
        if "logits" in rows:
            return rows["logits"].float()
        if "labels" in rows:
            return logits_from_labels(rows["labels"], self._classes, self._options.confidence)
        return logits_from_top_k(rows["indices"], self._probabilities(rows["values"]), self._classes)

    def _probabilities(self, values: Tensor) -> Tensor:
        return values.double().exp() if self._options.values == "log_probabilities" else values

    def _check(self, arrays: Mapping[str, Tensor]) -> None:
        for name in ("logits", "test_logits"):
            if name in arrays:
                found = arrays[name]
                if found.dim() != 2 or found.shape[1] != self._classes:
                    raise MismatchError(
                        f"{self._where}: {name} has the shape {tuple(found.shape)}, the data has {self._classes}"
                        f" classes: it must be (N, {self._classes})."
                    )
                check_finite(found, f"{self._where}: {name}")
        if "indices" in arrays:
            values = self._probabilities(arrays["values"])
            check_top_k(arrays["indices"], values, self._classes, self._where)
        for name in ("labels", "true_labels", "test_true_labels"):
            if name in arrays:
                check_labels(arrays[name], self._classes, f"{self._where}: {name}")
        if not len(next(iter(self._arrays.values()))):
            raise MismatchError(f"{self._where} holds no answers.")


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of one form, and those beside them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, NDArray[np.generic]] = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays, or truncated: {error}.") from error
    names = set(found) - set(_MORE)
    if names not in [set(form) for form in _FORMS]:
        forms = "; ".join(" and ".join(form) for form in _FORMS)
        raise DataError(
            f"{path} has the arrays {', '.join(sorted(found)) or 'none'}. Give one of these: {forms}; and beside them,"
            f" if you like, {', '.join(_MORE)}."
        )
    try:
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}
    except TypeError as error:
        raise DataError(f"{path} has an array that is not of numbers: {error}.") from error
