"""Natural support: where the response to a visualization lies among responses to photographs.

Each photograph counts once, by its strongest crop. Two numbers, because the natural maximum, the
obvious yardstick, has no valid bootstrap interval (the resampled maximum can never exceed the
observed one):

    quantile   share of photographs that drive the unit less than the weakest visualization does;
               exact binomial interval
    margin     (mean FV response - natural median) / (1.4826 MAD), the distance in robust standard
               deviations; bootstrap over photographs, and over keys if there are several
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from fvaudit.evidence.exemplars import strongest_of_each
from fvaudit.evidence.stats import binomial_estimate, percentile_interval
from fvaudit.records import Estimate


@dataclasses.dataclass(frozen=True)
class Support:
    """A visualization's response against natural ones."""

    quantile: Estimate  # share of photographs below the weakest FV
    margin: Estimate  # in natural MADs (1.4826 MAD, a standard deviation if Gaussian)
    natural_median: float  # over photographs
    natural_max: float
    fv_mean: float


def support(
    fv: Float[np.ndarray, " r"],
    natural: Float[np.ndarray, " n"],
    photograph: Int[np.ndarray, " n"],
    *,
    level: float,
    replicates: int,
    rng: np.random.Generator,
) -> Support:
    """Compares a unit's response to its visualizations with its responses to photographs.

    Args:
        fv: responses to the visualizations, one per repeat.
        natural: responses to natural images.
        photograph: of origin of each natural image.
        level: of confidence.
        replicates: bootstrap replicates.
        rng: drives the resampling.
    """
    x = strongest_of_each(natural, photograph).astype(np.float64)
    known = len(x) > 0 and bool(np.isfinite(fv).all()) and len(fv) > 0
    below = int(np.sum(x < fv.min())) if known else 0
    return Support(
        quantile=binomial_estimate(below, len(x) if known else 0, level, "share of photographs"),
        margin=_margin(fv.astype(np.float64), x, level, replicates, rng),
        natural_median=float(np.median(x)) if len(x) else np.nan,
        natural_max=float(x.max()) if len(x) else np.nan,
        fv_mean=float(fv.mean()) if len(fv) else np.nan,
    )


def _margin(fv, x, level, replicates, rng) -> Estimate:
    method, unit = "bootstrap (photographs, keys), expanded percentile", "natural MADs"
    if len(x) < 2 or not len(fv):
        return Estimate(np.nan, np.nan, np.nan, level, len(x), method, unit)
    drawn = x[rng.integers(0, len(x), (replicates, len(x)))]
    keys = fv[rng.integers(0, len(fv), (replicates, len(fv)))]
    low, high = percentile_interval(_robust_distance(keys, drawn), level, len(x))
    value = float(_robust_distance(fv[None], x[None])[0])
    return Estimate(value, low, high, level, len(x), method, unit)


def _robust_distance(fv, x):
    """(mean fv - median x) / (1.4826 MAD x), row by row; NaN where the MAD is 0."""
    median = np.median(x, axis=1, keepdims=True)
    mad = 1.4826 * np.median(np.abs(x - median), axis=1)
    gap = fv.mean(axis=1) - median[:, 0]
    return np.divide(gap, mad, out=np.full(len(x), np.nan), where=mad > 0)
