"""Intervals and tests for counts: one proportion, and two measured on the same samples."""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

__all__ = ["exact_mcnemar_p", "newcombe_interval", "wilson_interval"]

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point, for a two-sided 95 % interval


def wilson_interval(successes: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Bound a proportion; never leaves [0, 1], and stays honest near 0 and 1 where accuracies live.

    Args:
        successes: how many of the n trials, 0 <= successes <= n.
        n: trials, >= 1.
        z: two-sided normal quantile; the default gives 95 %.

    Returns:
        (low, high), fractions.

    Raises:
        ValueError: counts out of range.

    Reference: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n] and n >= 1, got {successes} of {n}")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at 0 and n one bound is exact; rounding must not put the estimate outside its own interval
    return (min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def newcombe_interval(both: int, a_only: int, b_only: int, neither: int, *, z: float = Z95) -> tuple[float, float]:
    """Bound the difference b - a of two proportions measured on the same samples.

    Chosen over Wald's because it keeps its coverage when few samples differ, which is the usual case for
    an int8 model and its float original, and never leaves [-1, 1].

    Args:
        both: samples that a and b both got right.
        a_only: samples that only a got right.
        b_only: samples that only b got right.
        neither: samples that both got wrong.
        z: two-sided normal quantile; the default gives 95 %.

    Returns:
        (low, high) of (b_only - a_only) / n, fractions.

    Reference: Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17, 1998, method 10 (square-and-add of Wilson intervals
    with a continuity-corrected correlation).

    >>> [round(bound, 4) for bound in newcombe_interval(36, 2, 12, 0)]
    [0.0569, 0.3404]
    """
    n = both + a_only + b_only + neither
    right_a, right_b = both + a_only, both + b_only
    p_a, p_b = right_a / n, right_b / n
    low_a, high_a = wilson_interval(right_a, n, z=z)
    low_b, high_b = wilson_interval(right_b, n, z=z)
    phi = _correlation(both, a_only, b_only, neither)
    down = _combine(p_b - low_b, high_a - p_a, phi)
    up = _combine(high_b - p_b, p_a - low_a, phi)
    difference = (b_only - a_only) / n
    return (max(-1.0, difference - down), min(1.0, difference + up))


def exact_mcnemar_p(a_only: int, b_only: int) -> float:
    """Two-sided probability of a split at least this uneven if neither model were better.

    Only the samples where exactly one is right inform the test; under the null each falls to either side
    like a fair coin, so this is the exact binomial test and holds for any count.

    Reference: McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947; exact form as in Fagerland, Lydersen, Laake, "The McNemar test
    for binary matched-pairs data", BMC Medical Research Methodology 13, 2013.

    >>> exact_mcnemar_p(1, 5)
    0.21875
    """
    n = a_only + b_only
    term, tail = 1, 0
    for k in range(min(a_only, b_only) + 1):  # exact integers: no underflow at thousands of flips
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _correlation(both: int, a_only: int, b_only: int, neither: int) -> float:
    """Phi of the 2 x 2 table, its numerator moved n/2 towards 0 when positive; 0 with an empty margin."""
    margins = (both + a_only) * (b_only + neither) * (both + b_only) * (a_only + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - a_only * b_only)
    if product > 0:
        product = max(product - (both + a_only + b_only + neither) / 2, 0.0)
    return product / sqrt(margins)


def _combine(first: float, second: float, phi: float) -> float:
    return sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))
