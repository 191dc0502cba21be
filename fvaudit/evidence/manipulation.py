"""Manipulation evidence: does a unit look tampered with, beside clean units of the same kind?

Path similarity asks whether a visualization is processed like natural images, and ordinary networks
fail that too. Here a unit is held against other units that are known to be clean, by four measures
that mean the same in every layer:

    reach    log2 of (FV response - natural median) / (natural maximum - natural median)
    score    path similarity, clipped to [0, 1], mean over layers
    own      S_fv - S_diff at the unit's own layer
    least    S_fv - S_diff at the layer where it is least

For R the rows of n clean units and z the row of the unit in question, with Z = R + {z} and m and S
the mean and the covariance of Z,

    T(x)   = sqrt((x - m)' S^-1 (x - m))       Mahalanobis' distance
    p      = (1 + #{r in R: T(r) >= T(z)}) / (n + 1)

which is exactly valid if z is exchangeable with R: a clean unit of the same layer, drawn at random.
Units of another layer are not exchangeable with it; what that costs has to be measured. Operational
definitions of our own; conformal p-values: Vovk, Gammerman & Shafer (2005). Measures go together in
clean units (a high reach with a low path), which a distance for each on its own would not see.
"""

import numpy as np
from jaxtyping import Float

from fvaudit.evidence.stats import conformal_p
from fvaudit.records import AuditError, UnitResult


MEASURES = ("reach", "score", "own", "least")
FEWEST = 10  # clean units without which a spread over units says little


def measures(result: UnitResult) -> Float[np.ndarray, " 4"]:
    """`MEASURES` of one unit; NaN where one cannot be had.

    Args:
        result: what `units.measure` or `path_similarity` made of the unit.
    """
    above = float(np.mean(result.fv_responses)) - result.natural_median
    room = result.natural_max - result.natural_median
    reach = np.log2(above / room) if above > 0 and room > 0 else np.nan
    gaps = np.array([row.fv.value - row.diff.value for row in result.path])
    least = np.nanmin(gaps) if np.isfinite(gaps).any() else np.nan
    own = gaps[-1] if len(gaps) else np.nan
    return np.array([reach, result.score.value, own, least])


def manipulation(
    reference: Float[np.ndarray, "n m"], unit: Float[np.ndarray, " k"]
) -> tuple[float, float]:
    """How far a unit lies from clean ones, and its conformal p-value.

    Args:
        reference: measures of clean units; NaN where one cannot be had.
        unit: those of the unit in question.

    Returns:
        T in standard deviations, and p in (0, 1]. Both NaN if the unit has no measure at all
        or fewer than `FEWEST` clean units have: nothing can be said then.

    Raises:
        AuditError: if rows differ in length.
    """
    if reference.ndim != 2 or reference.shape[1:] != unit.shape:
        raise AuditError(
            f"A unit's {unit.shape} measures cannot be held against rows of {reference.shape}."
        )
    rows = np.concatenate([reference, unit[None]]).astype(np.float64)
    known = np.atleast_1d(np.isfinite(rows).any(axis=1))
    if not known[-1] or known[:-1].sum() < FEWEST:
        return np.nan, np.nan
    far = _farthest(rows[known])
    return float(far[-1]), conformal_p(-far[:-1], -float(far[-1]))


def _farthest(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """T of every row; a measure that is missing in a row, or the same in most, has no say there."""
    rows = rows[:, np.isfinite(rows).any(axis=0)]
    varies = np.nanmedian(np.abs(rows - np.nanmedian(rows, axis=0)), axis=0) > 0
    if not varies.any():
        return np.zeros(len(rows))
    own = np.nan_to_num(rows - np.nanmean(rows, axis=0), nan=0.0)[:, varies]
    own = own / own.std(axis=0)
    inverse = np.linalg.pinv(np.atleast_2d(np.cov(own.T)), hermitian=True)
    return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", own, inverse, own), 0))
