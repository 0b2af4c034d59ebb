from __future__ import annotations

import pytest
import torch

from edgekd._ledger import Ledger, TermMean
from edgekd.errors import TrainingDiverged
from edgekd.methods._base import Term


def terms(a: float, b: float) -> dict[str, Term]:
    return {"a": Term(torch.tensor(a), 0.5), "b": Term(torch.tensor(b), 2.0)}


@pytest.mark.parametrize("interval", [1, 2, 50])
def test_means_are_the_same_however_seldom_values_are_read(interval):
    ledger = Ledger(interval=interval, kept="")
    for step, value in enumerate([1.0, 2.0, 6.0]):
        ledger.add(terms(value, 1.0), step=step, epoch=0)
    ledger.read(epoch=0)
    assert ledger.close_epoch() == {"a": TermMean(raw=3.0, weighted=1.5), "b": TermMean(raw=1.0, weighted=2.0)}
    assert ledger.last_loss == pytest.approx(6 * 0.5 + 2)
    ledger.add(terms(9.0, 0.0), step=3, epoch=1)
    ledger.read(epoch=1)
    assert ledger.close_epoch()["a"].raw == 9.0


@pytest.mark.parametrize("interval", [1, 50])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_bad_step_is_named_when_read_late(interval, value):
    ledger = Ledger(interval=interval, kept="Kept.")

    def run() -> None:
        for step in range(10, 14):
            ledger.add(terms(1.0, value if step >= 11 else 1.0), step=step, epoch=2)
        ledger.read(epoch=2)

    with pytest.raises(TrainingDiverged, match=r"step 12 \(epoch 3\): loss term 'b' is (nan|inf)\. Kept\. Lower"):
        run()
