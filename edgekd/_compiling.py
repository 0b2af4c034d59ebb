"""torch.compile, tried before training on the very networks and batch, and kept where it pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from edgekd._checkpoint import random_state, restore_random_state, snapshot
from edgekd._fit_types import CompileTrial

__all__ = ["compile_in_place", "tried"]

_WARM_UP, _TIMED = 3, 9
_LEAST_GAIN = 0.03  # less is within what a machine does by itself


def tried(method: nn.Module, networks: Sequence[nn.Module], step: Callable[[], object], steps: int) -> CompileTrial:
    """Time a step with and without compiled networks, and leave them as is faster; nothing else is changed.

    Args:
        method: all that a step may move: its state and the random numbers are put back.
        networks: compiled in place, with or without their taps; parameters and names stay.
        step: forward and backward, without an update.
        steps: of the whole training, over which compiling must have paid for itself.
    """
    state, random = snapshot(method.state_dict()), random_state()
    try:
        plain = _median_ms(step)
        began = time.perf_counter()
        try:
            compile_in_place(networks)
            for _ in range(_WARM_UP):
                step()
            spent = time.perf_counter() - began
            compiled = _median_ms(step)
        except Exception as error:
            # whatever a compiler says no to, the plain networks train all the same
            compile_in_place(networks, off=True)
            took = time.perf_counter() - began
            said = next(iter(str(error).splitlines()), "")[:200]
            reason = f"compiling failed: {type(error).__name__}: {said}"
            return CompileTrial(plain_ms=plain, compiled_ms=None, compile_s=took, kept=False, reason=reason)
        kept, reason = _verdict(plain, compiled, spent, steps)
        if not kept:
            compile_in_place(networks, off=True)
        return CompileTrial(plain_ms=plain, compiled_ms=compiled, compile_s=spent, kept=kept, reason=reason)
    finally:
        method.load_state_dict(state)
        method.zero_grad(set_to_none=True)
        restore_random_state(random)


def compile_in_place(networks: Iterable[nn.Module], *, off: bool = False) -> None:
    """Compile the forward of modules without wrapping them, or take that back."""
    for network in networks:
        if off:
            network._compiled_call_impl = None
        else:
            network.compile()


def _verdict(plain: float, compiled: float, spent: float, steps: int) -> tuple[bool, str]:
    if compiled > plain * (1 - _LEAST_GAIN):
        return False, f"a compiled step takes {compiled / plain:.2f} of a plain one"
    saved = (plain - compiled) / 1000 * steps
    gain = f"a compiled step takes {compiled / plain:.2f} of a plain one: {saved:.0f} s over {steps} steps"
    if saved < spent:
        return False, f"{gain}; compiling took {spent:.0f} s"
    return True, gain


def _median_ms(step: Callable[[], object]) -> float:
    cuda = torch.cuda.is_available()
    taken = []
    for index in range(_WARM_UP + _TIMED):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        if index >= _WARM_UP:
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)
