"""Intervals, p-values and multiplicity; every random draw from an explicit generator.

expanded percentile interval   Hesterberg (2015), "What teachers should know about the
                               bootstrap", sec. 5: tail area Phi(-sqrt(n/(n-1)) t_{a/2, n-1}),
                               which corrects the bootstrap's narrowness in small samples
conformal p-value              (1 + #{null <= observed}) / (n + 1); never 0
false discovery rate           Benjamini & Hochberg (1995), NaN outside the family
binomial                       Clopper & Pearson (1934), exact
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from fvaudit.records import Estimate, least_replicates


class Interval(NamedTuple):
    """Both ends; NaN if there is none."""

    low: float
    high: float


def bootstrap_weights(
    n: int, replicates: int, rng: np.random.Generator
) -> Float[np.ndarray, "b n"]:
    """How often each of n observations is drawn in each replicate; rows sum to n."""
    return rng.multinomial(n, np.full(n, 1 / n), replicates).astype(np.float64)


def percentile_interval(values: Float[np.ndarray, " b"], level: float, n: int) -> Interval:
    """Expanded percentile interval of bootstrap replicates.

    Args:
        values: the statistic in each replicate.
        level: of confidence, in (0, 1).
        n: independent observations behind the statistic; fewer than 2 give no interval.

    Returns:
        NaN ends if there is no interval, if more than 5 % of the replicates are not finite, or if
        there are too few for one of them to lie in each tail.
    """
    finite = values[np.isfinite(values)]
    few = len(values) < least_replicates(level)
    if n < 2 or few or len(finite) < 0.95 * len(values):
        return Interval(np.nan, np.nan)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.isf((1 - level) / 2, n - 1))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high))


def conformal_p(null: Float[np.ndarray, " n"], observed: float) -> float:
    """Rank of an observation among exchangeable ones; small is unusually low; NaN stays NaN."""
    if np.isnan(observed) or np.isnan(null).any() or not len(null):
        return float("nan")
    return float((1 + np.sum(null <= observed)) / (len(null) + 1))


def benjamini_hochberg(p: Float[np.ndarray, " u"]) -> Float[np.ndarray, " u"]:
    """Adjusted p-values; NaN stays NaN and does not count."""
    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q


def binomial_estimate(successes: int, n: int, level: float, unit: str = "fraction") -> Estimate:
    """A share with its exact interval; NaN without observations."""
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, level, 0, "Clopper-Pearson", unit)
    found = stats.binomtest(successes, n).proportion_ci(level, method="exact")
    low, high = float(found.low), float(found.high)
    return Estimate(successes / n, low, high, level, n, "Clopper-Pearson", unit)


def bootstrap_estimate(
    values: Float[np.ndarray, " n"],
    statistic: Callable[..., Float[np.ndarray, " *b"]],
    *,
    level: float,
    replicates: int,
    unit: str,
    rng: np.random.Generator,
) -> Estimate:
    """A statistic of independent values, with a bootstrap interval; NaN values are left out.

    Args:
        values: independent observations.
        statistic: takes an array and `axis`, such as `np.mean` or `np.median`.
        level: of confidence.
        replicates: bootstrap replicates.
        unit: of the statistic.
        rng: drives the resampling.
    """
    known = values[np.isfinite(values)]
    n = len(known)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, level, 0, "bootstrap", unit)
    drawn = statistic(known[rng.integers(0, n, (replicates, n))], axis=1)
    low, high = percentile_interval(drawn, level, n)
    value = float(statistic(known, axis=0))
    return Estimate(value, low, high, level, n, "bootstrap, expanded percentile", unit)
