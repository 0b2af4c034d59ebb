"""Whether latency verdicts are right: synthetic latencies whose percentiles are known, thousands of trials each.

A budget just above the true percentile must not give FAIL, one just below it must not give PASS; INCONCLUSIVE is no
error. "Just" is one percent of the latency. The same is counted at the percentile itself, the hardest budget there is,
beside what the binomial distribution says the rate must be.

Samples of the first four distributions are independent, as the verdict takes them to be. The last two follow an
autoregressive process, so that neighbours resemble each other as they do under heat or another load; their errors are
reported apart, since no bound is promised for them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from _record import RESULTS, write
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import bdtr, ndtr, ndtri

from edgekd._statistics import allowed_over, supported_percentile, verdict
from edgekd.measure import Protocol, latency_of

__all__ = ["DISTRIBUTIONS", "NAME", "Distribution", "errors", "few_samples", "main"]

NAME = "devices/verdicts"
CONFIDENCE, MARGIN, GOAL = 0.99, 0.01, 0.01
# percentile and queries: the default protocol, the fewest for a p99, and more
SETTINGS = ((50.0, 256), (90.0, 44), (90.0, 256), (95.0, 256), (99.0, 662), (99.0, 2000))
_FEW = 20
_SMALL = 0.3


@dataclass(frozen=True)
class Distribution:
    """Latencies in ms with a known distribution.

    Args:
        quantile: the latency at a share in (0, 1).
        share: of the latencies up to a value.
        draw: rows of samples; arguments are the generator, rows and columns.
        independent: whether the samples of a row are.
    """

    quantile: Callable[[float], float]
    share: Callable[[float], float]
    draw: Callable[[np.random.Generator, int, int], np.ndarray]
    independent: bool = True


def _normal_share(value: float) -> float:
    return float(ndtr((value - 10.0) / 0.5))


def _bimodal_share(value: float) -> float:
    """Nine of ten near 10 ms, one near 14 ms: another core, or another process for a while."""
    return 0.9 * float(ndtr((value - 10.0) / 0.2)) + 0.1 * float(ndtr((value - 14.0) / 0.3))


def _bimodal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    slow = rng.random((rows, columns)) < 0.1
    return np.where(slow, rng.normal(14.0, 0.3, (rows, columns)), rng.normal(10.0, 0.2, (rows, columns)))


def _autoregressive(rho: float) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """Lognormal latencies whose logarithms follow x' = rho x + sqrt(1 - rho^2) e, from their stationary state."""

    def draw(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        noise = rng.standard_normal((rows, columns)) * math.sqrt(1 - rho**2)
        noise[:, 0] /= math.sqrt(1 - rho**2)
        states = lfilter([1.0], [1.0, -rho], noise, axis=1)
        return 10.0 * np.exp(_SMALL * states)

    return draw


def _lognormal_quantile(share: float) -> float:
    return 10.0 * math.exp(_SMALL * float(ndtri(share)))


def _lognormal_share(value: float) -> float:
    return float(ndtr(math.log(value / 10.0) / _SMALL))


DISTRIBUTIONS = {
    "normal": Distribution(
        lambda share: 10.0 + 0.5 * float(ndtri(share)),
        _normal_share,
        lambda rng, rows, columns: rng.normal(10.0, 0.5, (rows, columns)),
    ),
    "lognormal": Distribution(
        _lognormal_quantile,
        _lognormal_share,
        lambda rng, rows, columns: 10.0 * rng.lognormal(0.0, _SMALL, (rows, columns)),
    ),
    "bimodal": Distribution(
        lambda share: float(brentq(lambda value: _bimodal_share(value) - share, 5.0, 20.0, xtol=1e-12)),
        _bimodal_share,
        _bimodal,
    ),
    # Pareto with exponent 2: its variance is infinite
    "heavy_tail": Distribution(
        lambda share: 10.0 / math.sqrt(1.0 - share),
        lambda value: 1.0 - (10.0 / value) ** 2,
        lambda rng, rows, columns: 10.0 * (1.0 + rng.pareto(2.0, (rows, columns))),
    ),
    "autocorrelated_0.5": Distribution(_lognormal_quantile, _lognormal_share, _autoregressive(0.5), independent=False),
    "autocorrelated_0.9": Distribution(_lognormal_quantile, _lognormal_share, _autoregressive(0.9), independent=False),
}


def errors(
    distribution: Distribution, *, percentile: float, n: int, trials: int, rng: np.random.Generator
) -> dict[str, Any]:
    """How often a verdict is wrong on either side of the true percentile, and at it.

    Args:
        distribution: of the latencies.
        percentile: that the budget is about.
        n: queries of each trial.
        trials: of each side.
        rng: draws them.
    """
    true = distribution.quantile(percentile / 100)
    found: dict[str, Any] = {"percentile": percentile, "n": n, "trials": trials, "true_ms": true}
    for side, budget, wrong in (
        ("above", true * (1 + MARGIN), "FAIL"),
        ("below", true * (1 - MARGIN), "PASS"),
        ("at_pass", true, "PASS"),
        ("at_fail", true, "FAIL"),
    ):
        ends = [
            verdict(row, budget_ms=budget, percentile=percentile, confidence=CONFIDENCE)
            for row in _rows(distribution, trials, n, rng)
        ]
        key = f"wrong_{wrong.lower()}" if side in ("above", "below") else f"{wrong.lower()}_at_the_percentile"
        found[key] = sum(end == wrong for end in ends) / trials
        if side in ("above", "below"):
            found[f"inconclusive_{side}"] = sum(end == "INCONCLUSIVE" for end in ends) / trials
    if distribution.independent:
        share = distribution.share(true * (1 - MARGIN))
        found["wrong_pass_expected"] = _passes(share, percentile, n)
        found["pass_at_the_percentile_expected"] = _passes(percentile / 100, percentile, n)
    return found


def few_samples(*, trials: int, rng: np.random.Generator) -> dict[str, Any]:
    """What twenty samples give of a p99: never a value, never a PASS."""
    protocol = Protocol(percentile=99.0, confidence=CONFIDENCE, budget_ms=1e9)
    values = passes = 0
    for row in _rows(DISTRIBUTIONS["lognormal"], trials, _FEW, rng):
        latency = latency_of(list(row), protocol=protocol)
        values += latency.p99_ms is not None or latency.percentile_ms is not None
        values += supported_percentile(row, 99.0, CONFIDENCE) is not None
        passes += latency.verdict == "PASS"
    return {"samples": _FEW, "trials": trials, "p99_values": values, "p99_passes": passes}


def _rows(distribution: Distribution, trials: int, n: int, rng: np.random.Generator) -> Iterator[Sequence[float]]:
    for first in range(0, trials, 500):
        yield from distribution.draw(rng, min(500, trials - first), n)


def _passes(share: float, percentile: float, n: int) -> float | None:
    """Probability that n independent queries, of which this share is within the budget, give PASS."""
    over = allowed_over(n, percentile, CONFIDENCE)
    return None if over is None else float(bdtr(over, n, 1 - share))


def main(argv: Sequence[str] | None = None) -> Path:
    """Count, tell and write; the path of the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "devices_verdicts.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--trials", type=int, default=10_000, help="of each distribution, setting and side")
    parser.add_argument("--quick", action="store_true", help="few trials, to see that it works")
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    trials = 200 if options.quick else options.trials
    rng = np.random.default_rng(options.seed)
    rows = {
        name: [errors(one, percentile=percentile, n=n, trials=trials, rng=rng) for percentile, n in SETTINGS]
        for name, one in DISTRIBUTIONS.items()
    }
    for name, found in rows.items():
        for row in found:
            print(f"{name:20} p{row['percentile']:g} n={row['n']:<5}", end=" ")
            print(f"wrong PASS {row['wrong_pass']:.3%}, wrong FAIL {row['wrong_fail']:.3%}", end=", ")
            print(f"at the percentile {row['pass_at_the_percentile']:.3%} and {row['fail_at_the_percentile']:.3%}")
    worst = [
        max(row[key] for name, found in rows.items() if DISTRIBUTIONS[name].independent for row in found)
        for key in ("wrong_pass", "wrong_fail")
    ]
    few = few_samples(trials=trials, rng=rng)
    results = {
        "confidence": CONFIDENCE,
        "margin": MARGIN,
        "independent": {name: found for name, found in rows.items() if DISTRIBUTIONS[name].independent},
        "dependent": {name: found for name, found in rows.items() if not DISTRIBUTIONS[name].independent},
        "few_samples": few,
        "goals": {
            "wrong_pass": {"at_most": GOAL, "measured": worst[0], "met": worst[0] <= GOAL},
            "wrong_fail": {"at_most": GOAL, "measured": worst[1], "met": worst[1] <= GOAL},
            "p99_of_20_samples": {"at_most": 0, "measured": few["p99_values"], "met": few["p99_values"] == 0},
        },
    }
    return write(options.out, name=NAME, seed=options.seed, argv=given, results=results)


if __name__ == "__main__":
    print(main())
