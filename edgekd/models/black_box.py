"""A ready-made teacher behind a function of your own: `black_box:package.module:function`."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd import spec
from edgekd.catalog import _import_object
from edgekd.errors import MismatchError, UsageError
from edgekd.models._answers import (
    check_finite,
    check_labels,
    check_probabilities,
    check_top_k,
    logits_from_labels,
    logits_from_probabilities,
    logits_from_top_k,
)
from edgekd.models._ready_made import ReadyMade, ReadyNetwork, check_classes, check_input

__all__ = ["BlackBox"]


class BlackBox(ReadyMade):
    """Asks `function(images)` for every batch.

    `images` is a numpy array (B, C, H, W) of float32, augmented and normalised as the recipe says. What it returns is
    turned into logits by `gives`:

        logits: (B, K).
        probabilities: (B, K); their logarithm.
        top_k: a tuple of classes (B, k) and values (B, k); what the k classes leave of 1 is spread evenly over the
            others.
        labels: classes (B,); each gets the probability `confidence`, the others the rest evenly.

    There are no features to tap, and a temperature of its own that the service applied cannot be undone. Every epoch
    asks again, since augmented images differ; where a question costs something, ask once for the plain images and use
    `stored`. The file that the function is in decides whether the teacher is the same as before; what it reaches over a
    network is not looked at.
    """

    runs_user_code = True

    class Options(spec.Options):
        """Options of `black_box`."""

        gives: Literal["logits", "probabilities", "top_k", "labels"] = Field(
            "logits", description="what the function returns"
        )
        values: Literal["probabilities", "log_probabilities"] = Field(
            "probabilities", description="top_k: what the second array holds"
        )
        confidence: float = Field(0.9, gt=0.0, lt=1.0, description="labels: the probability of the class that it named")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The function as a module.

        Raises:
            UsageError: it is not there, or is no function of one argument.
        """
        function = self._function()
        if not callable(function) or inspect.isclass(function):
            raise UsageError(f"Model 'black_box:{self.argument}' must be a function, got {type(function).__name__}.")
        try:
            inspect.signature(function).bind(None)
        except TypeError as error:
            raise UsageError(
                f"Model 'black_box:{self.argument}' cannot be called with the images alone: {error}. Let it take one"
                " array."
            ) from error
        except ValueError:
            pass  # a compiled function does not tell its signature
        return _Asked(function, self.argument, cast(BlackBox.Options, self.options), classes, input_shape)

    def sources(self) -> tuple[Path, ...]:
        """The file of the function's module."""
        module = inspect.getmodule(self._function())
        file = getattr(module, "__file__", None)
        return (Path(file),) if file else ()

    def _function(self) -> Any:
        if ":" not in self.argument:
            raise UsageError(
                f"Model 'black_box:{self.argument}' names no function. Write black_box:package.module:function."
            )
        return _import_object(self.argument, "model")


class _Asked(ReadyNetwork):
    """A function as a module: arrays out, checked answers in."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str,
        options: BlackBox.Options,
        classes: int,
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self._function, self._options, self._classes, self._shape = function, options, classes, input_shape
        self._where = f"Model 'black_box:{name}'"

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, K), float32, on the device of the inputs.

        Raises:
            UsageError: the function failed.
            MismatchError: an answer that is not what `gives` says.
        """
        check_input(inputs, self._shape, self._where)
        return self._logits(self._asked(inputs), len(inputs)).to(inputs.device)

    def _asked(self, inputs: Tensor) -> Any:
        # a copy: the function may write into what it is given
        array = inputs.detach().to("cpu", torch.float32).contiguous().numpy().copy()
        try:
            return self._function(array)
        except Exception as error:
            # the fault is in the user's code: say where, since no traceback is shown for it
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UsageError(
                f"{self._where} failed for images of shape {array.shape}: {type(error).__name__}: {error}"
                f" ({frame.filename}, line {frame.lineno})."
            ) from error

    def _logits(self, answer: Any, rows: int) -> Tensor:
        gives, where = self._options.gives, f"{self._where} (gives = '{self._options.gives}')"
        if gives == "top_k":
            if not isinstance(answer, Sequence) or len(answer) != 2:
                raise MismatchError(f"{where} must return a tuple of classes and values, got {_kind(answer)}.")
            indices, values = (_tensor(part, where) for part in answer)
            _check_rows(values, rows, where)
            if self._options.values == "log_probabilities":
                values = values.double().exp()
            check_top_k(indices, values, self._classes, where)
            return logits_from_top_k(indices, values, self._classes)
        found = _tensor(answer, where)
        _check_rows(found, rows, where)
        if gives == "labels":
            check_labels(found, self._classes, where)
            return logits_from_labels(found, self._classes, self._options.confidence)
        check_classes(found, rows, self._classes, where)
        if gives == "probabilities":
            check_probabilities(found, where)
            return logits_from_probabilities(found)
        check_finite(found, where)
        return found.float()


def _check_rows(found: Tensor, rows: int, where: str) -> None:
    if found.dim() == 0 or len(found) != rows:
        raise MismatchError(f"{where} must return one row for each of {rows} images, got {tuple(found.shape)}.")


def _tensor(values: Any, where: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise MismatchError(f"{where} must return arrays of numbers, got {_kind(values)}.") from error


def _kind(values: Any) -> str:
    size = f" of {len(values)}" if isinstance(values, Sequence) else ""
    return f"a {type(values).__name__}{size}"
