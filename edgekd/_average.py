"""A moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """Exponential moving average of parameters and of batch statistics.

    Other buffers (counters, the ranges of observers) are left alone: halves of a range and its zero point
    from different steps do not belong together. Early on the decay is (1 + n) / (10 + n) after n updates,
    so that the random start is forgotten at once.

    Args:
        model: the network that is averaged.
        decay: weight of the past, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._live = _averaged(model)
        self._values = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, value in self._live.items():
            self._values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the network's weights by their average."""
        for name, value in self._live.items():
            value.copy_(self._values[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average inside the block, the live weights after it."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live.items():
                    value.copy_(kept[name])

    def state(self) -> dict[str, object]:
        """Everything `load` needs to go on."""
        return {"updates": self._updates, "values": dict(self._values)}

    def load(self, state: Mapping[str, object]) -> None:
        """Go on from `state`."""
        values = state["values"]
        updates = state["updates"]
        assert isinstance(values, dict)
        assert isinstance(updates, int)
        self._updates = updates
        for name, value in self._values.items():
            value.copy_(values[name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensors[name] = buffer
    return tensors
