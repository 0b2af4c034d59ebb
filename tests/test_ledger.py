from __future__ import annotations

import pytest
import torch

from edgekd._ledger import Diverged, Ledger, TermMean
from edgekd.methods._base import Term


def terms(a: float, b: float) -> dict[str, Term]:
    return {"a": Term(torch.tensor(a), 0.5), "b": Term(torch.tensor(b), 2.0)}


@pytest.mark.parametrize("interval", [1, 2, 50])
def test_means_are_the_same_however_seldom_values_are_read(interval):
    ledger = Ledger(interval=interval)
    for step, value in enumerate([1.0, 2.0, 6.0]):
        ledger.add(terms(value, 1.0), step=step)
    ledger.read()
    assert ledger.close_epoch() == {"a": TermMean(raw=3.0, weighted=1.5), "b": TermMean(raw=1.0, weighted=2.0)}
    assert ledger.last_loss == pytest.approx(6 * 0.5 + 2)
    ledger.add(terms(9.0, 0.0), step=3)
    ledger.read()
    assert ledger.close_epoch()["a"].raw == 9.0


@pytest.mark.parametrize("interval", [1, 50])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_bad_step_is_named_when_read_late(interval, value):
    ledger = Ledger(interval=interval)

    def run() -> None:
        for step in range(10, 14):
            ledger.add(terms(1.0, value if step >= 11 else 1.0), step=step)
        ledger.read()

    with pytest.raises(Diverged) as found:
        run()
    assert (found.value.step, found.value.term) == (11, "b")


def test_sums_go_on_where_they_were():
    whole, parts = Ledger(interval=2), Ledger(interval=2)
    for step in range(3):
        whole.add(terms(step, 1.0), step=step)
    whole.read()
    again = Ledger(interval=2)
    for step in range(3):
        (parts if step < 2 else again).add(terms(step, 1.0), step=step)
        if step == 1:
            parts.read()
            again.load(parts.state())
    again.read()
    assert (
        again.close_epoch()
        == whole.close_epoch()
        == {
            "a": TermMean(raw=1.0, weighted=0.5),
            "b": TermMean(raw=1.0, weighted=2.0),
        }
    )
