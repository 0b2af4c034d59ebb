"""Networks of other packages, made fit for taps and export."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from edgekd.errors import BackendMissing

__all__ = ["out_of_place", "package"]


def package(name: str) -> Any:
    """Import a package that is an extra.

    Raises:
        BackendMissing: it is not installed, or it does not load beside this torch.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BackendMissing(
            f"'{name}' needs the package '{error.name}', which is not installed. Install edgekd[{name}]."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        # a torchvision built for another torch fails while it registers its operators
        raise BackendMissing(
            f"'{name}' is installed but does not load beside this torch: {error}. Install torch and torchvision"
            " of one release from the same index."
        ) from error


def out_of_place(model: nn.Module) -> nn.Module:
    """Let activations make new tensors, so that a tap before one keeps the values it saw."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return model
