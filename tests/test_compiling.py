"""torch.compile: when it is kept, and that a trial leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from test_engine import CPU, RUN, batches, distilled, equal
from torch import nn

from edgekd._compiling import compile_in_place, tried
from edgekd.engine import fit
from edgekd.methods._base import Batch
from edgekd.recipe import ComputeSettings, TrainSettings

AUTO = ComputeSettings(device="cpu", compile="auto")


class Slow(nn.Module):
    """A network whose plain forward waits; a compiled one is another function, which does not."""

    def __init__(self, plain_ms: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.plain_ms = plain_ms

    def compile(self) -> None:
        time.sleep(0.05)
        self._compiled_call_impl = lambda x: self.layer(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.plain_ms / 1000)
        return self.layer(x)


@pytest.mark.parametrize(
    ("plain_ms", "compiled_ms", "steps", "kept"),
    [(8.0, 1.0, 10_000, True), (8.0, 1.0, 1, False), (1.0, 8.0, 10_000, False)],
)
def test_compiled_is_kept_where_it_is_faster_and_pays_for_itself(
    plain_ms: float, compiled_ms: float, steps: int, kept: bool
) -> None:
    network = Slow(plain_ms)

    def step() -> None:
        if network._compiled_call_impl is not None:
            time.sleep(compiled_ms / 1000)
        network(torch.ones(2, 4)).sum().backward()

    found = tried(network, [network], step, steps)
    assert found.kept is kept, found
    assert (network._compiled_call_impl is not None) is kept
    assert found.compiled_ms is not None
    assert network.layer.weight.grad is None


def test_what_cannot_be_compiled_trains_as_it_is() -> None:
    network = nn.Linear(4, 4)

    def refuse() -> None:
        raise RuntimeError("no compiler\nand more lines")

    network.compile = refuse  # type: ignore[method-assign]
    found = tried(network, [network], lambda: network(torch.ones(1, 4)).sum().backward(), 5)
    assert (found.kept, found.compiled_ms) == (False, None)
    assert found.reason == "compiling failed: RuntimeError: no compiler"


@pytest.mark.slow
def test_trial_moves_nothing_and_a_resumed_run_does_not_try_again(tmp_path: Path) -> None:
    """With dropout, batch statistics and a connector: the same weights as without a trial if it was not kept."""
    settings = TrainSettings(epochs=2, **RUN)
    plain, tried_one, again = distilled(), distilled(), distilled()
    fit(plain, batches(), settings=settings, compute=CPU, seed=5)
    result = fit(tried_one, batches(), settings=settings, compute=AUTO, seed=5, checkpoint=tmp_path / "c")
    assert result.compiled is not None
    assert not result.compiled.kept, "six steps do not pay for a compiler"
    assert equal(plain, tried_one)
    assert fit(again, batches(), settings=settings, compute=AUTO, seed=5, checkpoint=tmp_path / "c").compiled == (
        result.compiled
    )


@pytest.mark.slow
def test_compiled_networks_give_what_plain_ones_give() -> None:
    """In place: the same parameters, the taps of a loss on features included."""
    method = distilled()
    whole = next(iter(batches().epoch(0)))
    method.prepare(whole.inputs)
    method.eval()
    batch = Batch(whole.inputs, whole.labels, whole.ids, 0, 0.0)
    plain = {name: term.value.item() for name, term in method(batch).items()}
    compile_in_place([method.exported(), *method.teachers])
    compiled = {name: term.value.item() for name, term in method(batch).items()}
    assert compiled == pytest.approx(plain, rel=1e-5)
    compile_in_place([method.exported()], off=True)
    assert not any("_orig_mod" in name for name in method.state_dict())
