"""A claim = measure + statistic + threshold -> Verdict.

Checks are named as claims, so a failed line reads as a sentence. Each is a factory that remembers
its own call text. A claim that does not hold is FAIL, or WARN where only a warning is wanted; an
interval that spans the threshold, or data too few to ever reject, is INCONCLUSIVE; PASS means that
no discrepancy was detected and names the smallest one that the run could have seen.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from fvaudit.evidence.stats import benjamini_hochberg
from fvaudit.records import Estimate, Status, UnitResult, Verdict


Judge = Callable[[Sequence[UnitResult]], tuple[Verdict, ...]]


@dataclasses.dataclass(frozen=True)
class Check:
    """A claim about every unit of an audit."""

    text: str  # call text
    claim: str  # what holds if it passes, in words
    judge: Judge
    conclusive: bool = False  # whether INCONCLUSIVE is as bad as not having run


def same_path(min_score: float = 0.5, severity: Status = Status.FAIL) -> Check:
    """The FV takes the path of its natural group: path score at least `min_score`.

    0.5 is half way between "like any other image" (0) and "like its own group" (1); our choice.
    """
    text = f"same_path(min_score={min_score})"

    def judge(results: Sequence[UnitResult]) -> tuple[Verdict, ...]:
        return tuple(_path_verdict(text, r, min_score, severity) for r in results)

    return Check(text, "the FV is processed along the path of its natural images", judge)


def not_distinguishable(fdr: float = 0.05, severity: Status = Status.FAIL) -> Check:
    """The FV's path cannot be told from a natural image's: conformal test, Benjamini-Hochberg."""
    text = f"not_distinguishable(fdr={fdr})"

    def judge(results: Sequence[UnitResult]) -> tuple[Verdict, ...]:
        p = np.array([r.p_value for r in results], float)
        best = _best_q(p, np.array([r.p_attainable for r in results], float))
        rows = zip(results, benjamini_hochberg(p), best, strict=True)
        return tuple(_test_verdict(text, r, float(q), float(b), fdr, severity) for r, q, b in rows)

    return Check(text, "the FV's path cannot be told from a natural image's", judge)


def drives_unit(min_quantile: float = 0.75, severity: Status = Status.FAIL) -> Check:
    """The FV drives its unit: a share of at least `min_quantile` of photographs drive it less.

    0.75 is our choice: with 29 photographs, the fewest that we ship, at most 0.88 can be shown.
    """
    text = f"drives_unit(min_quantile={min_quantile})"

    def judge(results: Sequence[UnitResult]) -> tuple[Verdict, ...]:
        return tuple(_drive_verdict(text, r, min_quantile, severity) for r in results)

    return Check(text, "the FV drives its unit more than natural photographs do", judge)


def _path_verdict(text: str, r: UnitResult, threshold: float, severity: Status) -> Verdict:
    if r.dead:
        return _dead_verdict(text, r, r.score, threshold)
    layers = f"{sum(row.resolvable for row in r.path)} of {len(r.path)} layers resolvable"
    facts = f"Path score {r.score} ({layers}, {r.photographs} photographs)"
    status = _against(r.score, threshold, severity)
    reason = {
        Status.PASS: f"{facts} reaches {threshold}; a path score below {r.score.low:.2f} is ruled "
        "out.",
        Status.INCONCLUSIVE: f"{facts}: the interval spans {threshold}."
        if r.score.known
        else f"No path score could be estimated ({layers}, {r.photographs} photographs).",
    }.get(status, f"{facts} is below {threshold}.")
    return Verdict(text, r.unit, status, r.score, threshold, reason)


def _best_q(p: Float[np.ndarray, " u"], attainable: Float[np.ndarray, " u"]):
    """The q-value that each unit would have had if its own path had been the strangest possible."""
    best = np.full(len(p), np.nan)
    for i in np.flatnonzero(np.isfinite(p)):
        best[i] = benjamini_hochberg(np.where(np.arange(len(p)) == i, attainable, p))[i]
    return best


def _test_verdict(
    text: str, r: UnitResult, q: float, best: float, fdr: float, severity: Status
) -> Verdict:
    p = Estimate(r.p_value, math.nan, math.nan, 1 - fdr, r.photographs, "conformal", "p-value")
    if r.dead:
        return _dead_verdict(text, r, p, fdr)
    facts = f"p = {r.p_value:.3f}, q = {q:.3f} against {r.photographs} natural photographs"
    if math.isnan(q):
        status = Status.INCONCLUSIVE
        reason = f"No p-value could be computed ({r.photographs} photographs in the group)."
    elif q <= fdr:
        status = severity
        reason = f"The FV's path is told apart from natural ones: {facts}."
    elif best > fdr:
        status = Status.INCONCLUSIVE
        reason = (
            f"Nothing could have been detected: {facts}; with so few photographs p cannot fall "
            f"below {r.p_attainable:.3f}, which would still be q = {best:.3f} > {fdr}."
        )
    else:
        status = Status.PASS
        reason = (
            f"No discrepancy detected: {facts}; a path stranger than all {r.photographs} "
            f"photographs' (q = {best:.3f}) would have been."
        )
    return Verdict(text, r.unit, status, p, fdr, reason)


def _drive_verdict(text: str, r: UnitResult, threshold: float, severity: Status) -> Verdict:
    if r.dead:
        return _dead_verdict(text, r, r.quantile, threshold)
    fv, low = max(r.fv_responses), min(r.fv_responses)
    facts = (
        f"The weakest FV's response {low:.2f} exceeds that of {r.quantile.value:.0%} "
        f"[{r.quantile.low:.0%}, {r.quantile.high:.0%}] of {r.quantile.n} photographs "
        f"(strongest FV {fv:.2f}, strongest photograph {r.natural_max:.2f})"
    )
    status = _against(r.quantile, threshold, severity)
    reason = {
        Status.PASS: f"{facts}; a share below {r.quantile.low:.0%} is ruled out.",
        Status.INCONCLUSIVE: f"{facts}: the interval spans {threshold:.0%}.",
    }.get(status, f"{facts}, less than {threshold:.0%}.")
    return Verdict(text, r.unit, status, r.quantile, threshold, reason)


def _dead_verdict(text: str, r: UnitResult, estimate: Estimate, threshold: float) -> Verdict:
    reason = (
        f"{r.dead} of {len(r.fv_responses)} visualizations are dead: no gradient reached them, or "
        "one that is no number, so that they show noise and nothing can be said. Try more "
        "redirected steps, another seed or another recipe."
    )
    return Verdict(text, r.unit, Status.INCONCLUSIVE, estimate, threshold, reason)


def _against(estimate: Estimate, threshold: float, severity: Status) -> Status:
    if not estimate.known:
        return Status.INCONCLUSIVE
    if estimate.low >= threshold:
        return Status.PASS
    return severity if estimate.high < threshold else Status.INCONCLUSIVE
