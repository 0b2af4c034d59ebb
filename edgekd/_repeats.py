"""A number that was measured with several seeds: mean, spread, and what the seeds allow to say about the mean."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from pydantic import ConfigDict, Field

from edgekd._ladder import Interval95
from edgekd.spec import Frozen

__all__ = ["Repeats", "accuracies", "repeats"]


class Repeats(Frozen):
    """One measure over seeds.

    Args:
        values: of each seed.
        mean: of them.
        sd: sample standard deviation; None for one seed.
        ci95: interval of the mean over seeds by Student's t; None for one seed, whose spread nobody knows.
        n: seeds.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    values: list[float] = Field(min_length=1)
    mean: float
    sd: float | None = None
    ci95: Interval95 | None = None
    n: int


def repeats(values: Sequence[float]) -> Repeats:
    """Mean, deviation and interval of one measure over seeds.

    The interval is mean ± t sd / sqrt(n), with t of n - 1 degrees of freedom: 12.7 for two seeds, 4.3 for three.
    It describes training by chance, not the sampling of test images.

    Args:
        values: at least one.

    Reference: Student, "The Probable Error of a Mean", Biometrika 6, 1908.

    >>> [round(bound, 3) for bound in repeats([0.90, 0.92]).ci95]  # 0.91 ± 12.706 * 0.01414 / 1.414
    [0.783, 1.037]
    """
    n = len(values)
    if n < 2:
        return Repeats(values=list(values), mean=mean(values), n=n)
    from scipy.special import stdtrit  # takes longer to import than everything else here

    centre, spread = mean(values), stdev(values)
    half = float(stdtrit(n - 1, 0.975)) * spread / sqrt(n)
    return Repeats(values=list(values), mean=centre, sd=spread, ci95=(centre - half, centre + half), n=n)


def accuracies(values: Sequence[float]) -> Repeats:
    """The same for fractions; the interval ends at 0 and 1."""
    found = repeats(values)
    if found.ci95 is None:
        return found
    return found.model_copy(update={"ci95": (max(0.0, found.ci95[0]), min(1.0, found.ci95[1]))})
