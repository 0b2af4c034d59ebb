"""torch's SGD and AdamW without the wrappers that keep its compiler out of them.

The first call of such a wrapper imports the whole compiler, two seconds of a start, and no optimizer here is ever part
of a compiled graph. What is computed is torch's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import optim

__all__ = ["SGD", "AdamW"]


class _Unwrapped(optim.Optimizer):
    """The methods of torch's optimizers as they are under their wrappers; stands before the optimizer's own class."""

    add_param_group = unwrap(optim.Optimizer.add_param_group)
    state_dict = unwrap(optim.Optimizer.state_dict)
    load_state_dict = unwrap(optim.Optimizer.load_state_dict)
    zero_grad = unwrap(optim.Optimizer.zero_grad)


class SGD(_Unwrapped, optim.SGD):
    """See torch.optim.SGD; its step takes no gradient through itself."""

    _plain_step: Callable[..., Any] = staticmethod(unwrap(optim.SGD.step))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change the parameters by their gradients."""
        return self._plain_step(self, closure)


class AdamW(_Unwrapped, optim.AdamW):
    """See torch.optim.AdamW; its step takes no gradient through itself."""

    _plain_step: Callable[..., Any] = staticmethod(unwrap(optim.AdamW.step))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Change the parameters by their gradients."""
        return self._plain_step(self, closure)
