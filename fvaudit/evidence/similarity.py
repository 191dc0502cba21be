"""How alike two activation vectors are: Spearman, Pearson, cosine.

All three are inner products of standardised vectors, so vectors are standardised once and all pairs
are one matrix product:

    spearman   ranks with ties averaged, centred, scaled to unit length
    pearson    values, centred, scaled to unit length
    cosine     values, scaled to unit length

After a ReLU most entries are 0. They must share their average rank: ordinal ranks would make any
two sparse maps alike by position alone.
"""

import difflib

import numpy as np
from jaxtyping import Float

from fvaudit.records import AuditError


METRICS = ("spearman", "pearson", "cosine")


def standardise(rows: Float[np.ndarray, "n d"], metric: str) -> Float[np.ndarray, "n d"]:
    """Rows whose inner products are similarities; float32.

    A row without variation (or, for cosine, of length 0) has no direction: it becomes NaN. So does
    a row with NaN and, except for ranks, one with infinities.

    Args:
        rows: one activation vector per row.
        metric: one of `METRICS`.

    Raises:
        AuditError: for another metric.
    """
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1) or METRICS
        raise AuditError(
            f"There is no similarity {metric!r}. Known: {', '.join(METRICS)}; did you mean "
            f"{near[0]!r}?"
        )
    x = average_ranks(rows).astype(np.float64) if metric == "spearman" else rows.astype(np.float64)
    x = np.where(np.isfinite(x).all(axis=1, keepdims=True), x, np.nan)
    if metric != "cosine":
        x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    # Centring leaves rounding noise in a constant row; relative to its size, that is no direction.
    size = np.abs(rows).max(axis=1, keepdims=True, initial=0) * np.sqrt(rows.shape[1])
    vague = length <= 1e-12 * size if metric == "pearson" else length == 0
    return np.where(vague, np.nan, x / np.where(vague, 1, length)).astype(np.float32)


def similarity_matrix(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """All pairs of two standardised sets, in [-1, 1]; NaN where either row is NaN."""
    return np.clip(a @ b.T, -1, 1)


def average_ranks(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Ranks 1..d along each row; tied values share the mean of their ranks. NaN rows stay NaN.

    Raises:
        AuditError: if rows are longer than float32 can number (2^24).
    """
    if rows.shape[1] > 2**24:
        raise AuditError(f"Cannot rank {rows.shape[1]} features exactly; sample at most {2**24}.")
    ranks = np.empty(rows.shape, np.float32)
    for row, out in zip(rows, ranks, strict=True):
        out[:] = _ranks_of_row(row)
    return ranks


def _ranks_of_row(row: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    """Only what exceeds the row's minimum is sorted: after a ReLU that is a small part."""
    low = row.min()
    if np.isnan(low):
        return np.full(len(row), np.nan, np.float32)
    above = np.flatnonzero(row > low)
    ties = len(row) - len(above)
    ranks = np.full(len(row), (ties + 1) / 2, np.float32)
    order = np.argsort(row[above])
    ordered = row[above][order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    ends = np.r_[starts[1:], len(ordered)]
    ranks[above[order]] = np.repeat(ties + (starts + ends + 1) / 2, ends - starts)
    return ranks
