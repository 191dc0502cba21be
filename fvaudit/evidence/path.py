"""Path similarity: is a visualization processed like the natural images it is said to explain?

For layer l, V the visualizations, G the natural group, O other photographs (Geirhos et al., ICML
2024, sec. 3, in our operationalisation):

    S_fv(l)   = mean over v in V, n in G     of sim(a_l(v), a_l(n))
    S_same(l) = mean over n != n' in G       of sim(a_l(n), a_l(n'))
    S_diff(l) = mean over n in G, o in O     of sim(a_l(n), a_l(o))
    P(l)      = (S_fv - S_diff) / (S_same - S_diff)

1: processed like its own natural images; 0: like any other image; below 0, often far, where an FV
is less like natural images than unrelated photographs are like each other.

Intervals: one bootstrap over photographs of G, photographs of O, and keys, the same draws in every
layer. A layer whose S_same - S_diff lies within two standard errors of 0 is not resolvable, nor is
one whose standard error cannot be had because the group is too small (2 or 3 photographs).

What the intervals cover: the visualizations at hand, with other photographs. With one key nothing
is said about other keys. Resampling two or three keys understates how much keys differ: where they
differ as much as photographs do, a simulated 95 % interval of P held the mean over all keys in
80 to 90 % of data sets with 2 keys, 83 to 95 % with 3, 93 to 98 % with 6.

Test: full conformal, exactly valid if v and the members of G are exchangeable. In Z = G + {v},
t_l(z) is the mean similarity of z to all others of Z; standardised over Z per layer; T(z) is the
minimum over layers; p = (1 + #{n in G: T(n) <= T(v)}) / (|G| + 1). Of several visualizations the
largest p counts, which keeps it valid.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fvaudit.evidence.stats import bootstrap_weights, conformal_p, percentile_interval
from fvaudit.records import Estimate, LayerSimilarity


METHOD = "bootstrap (photographs, keys), expanded percentile"
# Products of equal float32 rows of 32768 features were seen to differ by up to 1.4e-6.
ROUNDING = 1e-5
BAND = (0.05, 0.95)  # quantiles of held-out natural images that a report shades


@dataclasses.dataclass(frozen=True)
class PathProfile:
    """The path of one unit's visualizations."""

    rows: tuple[LayerSimilarity, ...]  # shallow to deep
    score: Estimate  # mean over resolvable layers of P clipped to [0, 1]
    p_value: float  # conformal, the largest over repeats; NaN if it cannot be computed
    p_attainable: float  # 1 / (|G| + 1)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Similarities that the statistics need, per layer."""

    fv: Float[np.ndarray, "l r g"]  # visualizations with the group
    same: Float[np.ndarray, "l g g"]  # within the group; the diagonal is not used
    diff: Float[np.ndarray, "l g p"]  # group with each other photograph, mean over its crops


def path_profile(
    layers: Sequence[str],
    fv: Float[np.ndarray, "l r g"],
    same: Float[np.ndarray, "l g g"],
    diff: Float[np.ndarray, "l g o"],
    photograph: Int[np.ndarray, " o"],
    *,
    level: float,
    replicates: int,
    rng: np.random.Generator,
) -> PathProfile:
    """Path similarity of one unit from pairwise similarities.

    Args:
        layers: names, shallow to deep.
        fv: similarity of each visualization with each member of the natural group, which holds
            one image per photograph.
        same: similarity of all pairs within the group; the diagonal is not used.
        diff: similarity of the group with images of other photographs.
        photograph: of origin of those other images; crops of one photograph share its weight.
        level: of confidence.
        replicates: bootstrap replicates.
        rng: drives the resampling.

    Returns:
        Estimates are NaN where the group has fewer than 2 photographs, there are no others, or
        similarities are undefined.
    """
    blocks = _blocks(fv, same, diff, photograph)
    (_, r, g), p = blocks.fv.shape, blocks.diff.shape[2]
    if g < 2 or p < 1 or r < 1:
        return _unknown(layers, level, g)
    point = _statistics(blocks, np.ones((1, r)), np.ones((1, g)), np.ones((1, p)))
    draws = [bootstrap_weights(n, replicates, rng) for n in (r, g, p)]
    drawn = _statistics(blocks, *draws)
    resolvable = _resolvable((point["same"] - point["diff"])[:, 0], drawn["same"] - drawn["diff"])
    band = _band(blocks, point, resolvable)
    n = min(g, p)

    def estimate(name: str, i: int, known: bool = True) -> Estimate:
        unit = "P" if name == "normalised" else "similarity"
        return _estimate(point[name][i, 0], drawn[name][i], level, n, unit, known)

    rows = tuple(
        LayerSimilarity(
            layer=layer,
            fv=estimate("fv", i),
            same=estimate("same", i),
            diff=estimate("diff", i),
            normalised=estimate("normalised", i, bool(resolvable[i])),
            resolvable=bool(resolvable[i]),
            band_low=float(band[0, i]),
            band_high=float(band[1, i]),
        )
        for i, layer in enumerate(layers)
    )
    score = _score(point["normalised"], drawn["normalised"], resolvable, level, n)
    p_values = [_conformal(blocks, v) for v in range(r)]
    # Not max(): that would drop NaN.
    return PathProfile(rows, score, float(np.max(p_values)), 1 / (g + 1))


def _resolvable(
    gap: Float[np.ndarray, " l"], drawn: Float[np.ndarray, "l b"]
) -> Bool[np.ndarray, " l"]:
    """Whether a gap exceeds rounding and two of its own standard errors, known from 95 % of draws.

    Draws of one photograph only have no pairs: in a group of two that is half of them, and the
    others are all alike, so that their spread says nothing.
    """
    spread = np.ma.std(np.ma.masked_invalid(drawn), axis=1).filled(np.nan)
    known = np.isfinite(gap) & (np.isfinite(drawn).mean(axis=1) >= 0.95)
    return known & (gap > np.maximum(2 * spread, ROUNDING))


def _off_diagonal(square: Float[np.ndarray, "l z z"]) -> Float[np.ndarray, "l z z"]:
    """Zeros where an image meets itself, even if that similarity is NaN."""
    return np.where(np.eye(square.shape[1], dtype=bool), 0, square)


def _blocks(fv, same, diff, photograph) -> _Blocks:
    names, inverse = np.unique(photograph, return_inverse=True)
    member = np.zeros((len(photograph), len(names)))
    member[np.arange(len(photograph)), inverse] = 1
    per_photograph = diff.astype(np.float64) @ (member / member.sum(0))
    return _Blocks(fv.astype(np.float64), same.astype(np.float64), per_photograph)


def _statistics(
    blocks: _Blocks,
    keys: Float[np.ndarray, "b r"],
    members: Float[np.ndarray, "b g"],
    others: Float[np.ndarray, "b p"],
) -> dict[str, Float[np.ndarray, "l b"]]:
    """S_fv, S_same, S_diff and P under weights of keys and photographs."""
    off = _off_diagonal(blocks.same)  # a photograph is never paired with itself
    pairs = members.sum(1) ** 2 - (members**2).sum(1)
    fv = _bilinear(keys, blocks.fv, members) / (keys.sum(1) * members.sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of one photograph only is NaN
        same = _bilinear(members, off, members) / pairs
    diff = _bilinear(members, blocks.diff, others) / (members.sum(1) * others.sum(1))
    gap = same - diff
    normalised = np.divide(fv - diff, gap, out=np.full(gap.shape, np.nan), where=gap > 0)
    return {"fv": fv, "same": same, "diff": diff, "normalised": normalised}


def _bilinear(left, matrix, right) -> Float[np.ndarray, "l b"]:
    """left[b] @ matrix[l] @ right[b] for every layer and replicate."""
    return np.einsum("lbk,bk->lb", left @ matrix, right)


def _estimate(value, drawn, level, n, unit, known=True) -> Estimate:
    if not known or not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, level, n, METHOD, unit)
    low, high = percentile_interval(drawn, level, n)
    return Estimate(float(value), low, high, level, n, METHOD, unit)


def _score(point, drawn, resolvable, level, n) -> Estimate:
    if not resolvable.any():
        return _estimate(np.nan, drawn[0], level, n, "P clipped to [0, 1]")
    clipped = np.clip(drawn[resolvable], 0, 1)
    usable = np.isfinite(clipped).any(axis=0)
    means = np.full(clipped.shape[1], np.nan)
    means[usable] = np.nanmean(clipped[:, usable], axis=0)
    value = np.clip(point[resolvable, 0], 0, 1).mean()
    return _estimate(value, means, level, n, "P clipped to [0, 1]")


def _band(blocks, point, resolvable) -> Float[np.ndarray, "2 l"]:
    """Quantiles of P of each member of the group, held out."""
    g = blocks.same.shape[1]
    held_out = _off_diagonal(blocks.same).sum(2) / (g - 1)
    gap = np.where(resolvable[:, None], point["same"] - point["diff"], np.nan)
    normalised = (held_out - point["diff"]) / gap
    band = np.full((2, len(gap)), np.nan)
    band[:, resolvable] = np.quantile(normalised[resolvable], BAND, axis=1)
    return band


def _conformal(blocks: _Blocks, v: int) -> float:
    """The p-value of one visualization."""
    g = blocks.same.shape[1]
    together = np.concatenate([blocks.same, blocks.fv[:, v : v + 1]], axis=1)
    column = np.concatenate([blocks.fv[:, v], np.zeros((len(together), 1))], axis=1)
    together = np.concatenate([together, column[:, :, None]], axis=2)
    t = _off_diagonal(together).sum(2) / g
    spread = t.std(axis=1, keepdims=True)
    # A layer that treats all images alike has no say: what is left there is rounding, and it
    # depends on which matrix product made a pair, so that it would tell every FV apart.
    usable = np.isfinite(t).all(1) & (spread[:, 0] > ROUNDING)
    if not usable.any():
        return float("nan")
    z = ((t - t.mean(axis=1, keepdims=True))[usable] / spread[usable]).min(axis=0)
    return conformal_p(z[:-1], float(z[-1]))


def _unknown(layers, level, g) -> PathProfile:
    nothing = Estimate(np.nan, np.nan, np.nan, level, g, METHOD, "similarity")
    rows = tuple(
        LayerSimilarity(layer, nothing, nothing, nothing, nothing, False, np.nan, np.nan)
        for layer in layers
    )
    return PathProfile(rows, nothing, float("nan"), 1 / (g + 1))


def aggregate(
    profiles: Sequence[Sequence[LayerSimilarity]],
    *,
    level: float,
    replicates: int,
    rng: np.random.Generator,
) -> tuple[LayerSimilarity, ...]:
    """The path of several units of one layer: means over units first, then the ratio.

    Args:
        profiles: rows of each unit, all over the same layers.
        level: of confidence.
        replicates: bootstrap replicates; units are resampled.
        rng: drives the resampling.
    """
    s = np.array([[[r.fv.value, r.same.value, r.diff.value] for r in rows] for rows in profiles])
    n = len(s)
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, replicates, rng)]) / n
    fv, same, diff = np.einsum("bu,uls->slb", weights, s)
    gap = same - diff
    normalised = np.divide(fv - diff, gap, out=np.full(gap.shape, np.nan), where=gap > 0)
    if n == 1:  # one unit has no spread over units: its own photographs decide
        resolvable = np.array([row.resolvable for row in profiles[0]])
    else:
        resolvable = _resolvable(gap[:, 0], gap[:, 1:])

    def estimate(values, i, unit, known=True) -> Estimate:
        found = _estimate(values[i, 0], values[i, 1:], level, n, unit, known)
        return dataclasses.replace(found, method="bootstrap (units), expanded percentile")

    return tuple(
        LayerSimilarity(
            row.layer,
            estimate(fv, i, "similarity"),
            estimate(same, i, "similarity"),
            estimate(diff, i, "similarity"),
            estimate(normalised, i, "P", bool(resolvable[i])),
            bool(resolvable[i]),
            np.nan,
            np.nan,
        )
        for i, row in enumerate(profiles[0])
    )
