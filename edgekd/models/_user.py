"""A user's own network: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect

from pydantic import ConfigDict
from torch import nn

from edgekd import spec
from edgekd.errors import UsageError
from edgekd.models._base import ModelFactory

__all__ = ["UserModel"]


class UserModel(ModelFactory):
    """Calls `function(classes, input_shape, **options)`, which returns a `torch.nn.Module`.

    Every further key of the recipe's table is passed on as a keyword argument.
    """

    takes_argument = True

    class Options(spec.Options):
        """Whatever the function takes."""

        model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The user's network.

        Raises:
            UsageError: the function does not take these options, or returns something else.
        """
        module_name, _, attribute = self.argument.partition(":")
        function = getattr(importlib.import_module(module_name), attribute)
        options = dict(self.options.model_extra or {})
        if not callable(function):
            raise UsageError(f"Model '{self.argument}' must be a function, got {type(function).__name__}.")
        try:
            inspect.signature(function).bind(classes, input_shape, **options)
        except TypeError as error:
            raise UsageError(
                f"Model '{self.argument}' cannot be called with (classes, input_shape, {', '.join(options) or 'no'}"
                f" options): {error}. Correct the options of its table, or the function."
            ) from error
        model = function(classes, input_shape, **options)
        if not isinstance(model, nn.Module):
            raise UsageError(f"Model '{self.argument}' must return a torch.nn.Module, got {type(model).__name__}.")
        return model
