"""How alike two activation vectors are: Spearman, Pearson, cosine.

All three are inner products of standardised vectors, so vectors are standardised once and all pairs
are one matrix product:

    spearman   ranks with ties averaged, centred, scaled to unit length
    pearson    values, centred, scaled to unit length
    cosine     values, scaled to unit length

After a ReLU most entries are 0. They must share their average rank: ordinal ranks would make any
two sparse maps alike by position alone.

Average ranks are multiples of 1/2, so twice a centred rank is a whole number, 2 r - (d + 1), and up
to d = 32768 it fits in 16 bits: ranks are kept exactly in half the memory of float32. They are
found by sorting whole numbers, a value's bits before its place: NumPy sorts numbers in vector
registers, three times as fast as it finds their order.
"""

import difflib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Num, UInt

from fvaudit.records import AuditError


METRICS = ("spearman", "pearson", "cosine")
BLOCK = 2**24  # entries of a block of rows that is standardised at a time, 64 MiB


def require_metric(metric: str) -> None:
    """Raises `AuditError` naming the nearest metric if there is no such one."""
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1) or METRICS
        raise AuditError(
            f"There is no similarity {metric!r}. Known: {', '.join(METRICS)}; did you mean "
            f"{near[0]!r}?"
        )


def kept(rows: Float[np.ndarray, "n d"], metric: str) -> Num[np.ndarray, "n d"]:
    """What `similarity_matrix` needs of rows, as small as it can be without loss.

    Args:
        rows: one activation vector per row.
        metric: one of `METRICS`.

    Returns:
        Spearman: `centred_ranks`, whole numbers; others: `standardise`, float32.

    Raises:
        AuditError: for another metric.
    """
    require_metric(metric)
    return centred_ranks(rows) if metric == "spearman" else standardise(rows, metric)


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
    require_metric(metric)
    if metric == "spearman":
        return unit_rows(centred_ranks(rows))
    x = rows.astype(np.float64)
    x = np.where(np.isfinite(x).all(axis=1, keepdims=True), x, np.nan)
    if metric == "pearson":
        x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    # Centring leaves rounding noise in a constant row; relative to its size, that is no direction.
    size = np.abs(rows).max(axis=1, keepdims=True, initial=0) * np.sqrt(rows.shape[1])
    vague = length <= 1e-12 * size if metric == "pearson" else length == 0
    return np.where(vague, np.nan, x / np.where(vague, 1, length)).astype(np.float32)


def unit_rows(rows: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """What `kept` returned as rows of length 1, float32; NaN where there is no direction."""
    if rows.dtype.kind == "f":
        return rows
    out = rows.astype(np.float32)
    for x in out:
        square = np.add.reduce(x * x)  # pairwise, to rounding; x @ x would wake all of BLAS's cores
        x *= 1 / np.sqrt(square) if square > 0 else np.float32(np.nan)
    return out


def similarity_matrix(
    a: Num[np.ndarray, "n d"], b: Num[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """All pairs of two sets, each as `kept` or `standardise` left it; in [-1, 1].

    NaN where either row has no direction. Of a set with itself, each pair is computed once.
    """
    out = np.empty((len(a), len(b)), np.result_type(a, b) if a.dtype.kind == "f" else np.float32)
    for i in _blocks(a):
        left = unit_rows(a[i])
        for j in _blocks(b):
            if a is b and j.start < i.start:
                out[i, j] = out[j, i].T
            else:
                right = left if a is b and i == j else unit_rows(b[j])
                out[i, j] = np.clip(left @ right.T, -1, 1)
    return out


def _blocks(rows: Num[np.ndarray, "n d"]) -> Iterator[slice]:
    height = max(1, BLOCK // max(1, rows.shape[1]))
    return (slice(start, start + height) for start in range(0, len(rows), height))


def average_ranks(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Ranks 1..d along each row; tied values share the mean of their ranks. NaN rows stay NaN.

    Raises:
        AuditError: if rows are longer than 2^24.
    """
    ranks = (centred_ranks(rows) + np.int64(rows.shape[1] + 1)) / 2
    return np.where(np.isnan(rows).any(axis=1, keepdims=True), np.nan, ranks)


def centred_ranks(rows: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n d"]:
    """2 r - (d + 1) for average ranks r: int16 up to d = 32768, else int32. NaN rows become 0.

    Raises:
        AuditError: if rows are longer than float32 can number (2^24).
    """
    size = rows.shape[1]
    if size > 2**24:
        raise AuditError(f"Cannot rank {size} features exactly; sample at most {2**24}.")
    ranks = np.zeros(rows.shape, rank_type(size))
    for row, out in zip(rows, ranks, strict=True):
        _rank(row, out)
    return ranks


def rank_type(size: int) -> type[np.signedinteger]:
    """Of `centred_ranks`, whose size is below that of their number."""
    return np.int16 if size <= 2**15 else np.int32


def _rank(row: Float[np.ndarray, " d"], out: Int[np.ndarray, " d"]) -> None:
    """Only what exceeds the row's minimum is sorted: after a ReLU that is a small part."""
    low = row.min()
    if np.isnan(low):
        return
    above = np.flatnonzero(row > low)
    ties = len(row) - len(above)
    places, ordered = _ascending(row[above], above)
    out[:] = ties - len(row)
    out[places] = _run_ends(ordered, 2 * ties - len(row), out.dtype)


def _run_ends(ordered: Num[np.ndarray, " k"], offset: int, kind: np.dtype) -> Int[np.ndarray, " k"]:
    """Start plus end of the run of equals that each value lies in, plus an offset."""
    ends = np.arange(offset + 1, offset + 2 * len(ordered), 2, dtype=kind)  # where all differ
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])  # to their next
    if len(equal):
        gap = np.flatnonzero(equal[1:] - equal[:-1] > 1)
        first, last = equal[np.append(0, gap + 1)], equal[np.append(gap, -1)] + 1
        ends[equal] = ends[equal + 1] = np.repeat(first + last + 1 + offset, last - first)
    return ends


def _ascending(
    values: Float[np.ndarray, " k"], places: Int[np.ndarray, " k"]
) -> tuple[Int[np.ndarray, " k"], Num[np.ndarray, " k"]]:
    """Places by rising value, and what equals where values do, in that order; without NaN.

    A value's bits and its place share one whole number: those are sorted in vector registers.
    """
    if values.itemsize > 4:
        order = np.argsort(values)
        return places[order], values[order]
    keys = _sortable_bits(values).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= places.view(np.uint64)
    keys.sort()
    return (keys & np.uint64(2**32 - 1)).view(np.int64), keys >> np.uint64(32)


def _sortable_bits(values: Float[np.ndarray, " k"]) -> UInt[np.ndarray, " k"]:
    """Whole numbers in the order of IEEE numbers: negative ones count down, so all bits flip."""
    size = values.itemsize
    bits = (values + values.dtype.type(0)).view(f"i{size}")  # -0.0 becomes 0.0, its equal
    flipped = (bits >> (8 * size - 1)) | np.iinfo(bits.dtype).min
    return (bits ^ flipped).view(f"u{size}")
