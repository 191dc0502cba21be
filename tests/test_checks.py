"""Claims to verdicts: every status, and the numbers in every sentence."""

import math

import pytest

from fvaudit import checks
from fvaudit.evidence.units import without_dead
from fvaudit.records import Estimate, Status
from tests.test_store import result


NAN = math.nan


def estimate(value, low, high, n=20):
    return Estimate(value, low, high, 0.95, n, "m", "u")


def judged(check, *results):
    return [v.status for v in check.judge(results)]


@pytest.mark.parametrize(
    "score, status, words",
    [
        (estimate(0.8, 0.6, 0.9), Status.PASS, "a path score below 0.60 is ruled out"),
        (estimate(0.5, 0.5, 0.9), Status.PASS, "reaches 0.5"),
        (estimate(0.2, 0.1, 0.3), Status.FAIL, r"Path score 0.20 \[0.10, 0.30\].* is below 0.5"),
        (estimate(0.5, 0.3, 0.7), Status.INCONCLUSIVE, "the interval spans 0.5"),
        (estimate(NAN, NAN, NAN), Status.INCONCLUSIVE, "No path score could be estimated"),
        (estimate(0.9, NAN, NAN), Status.INCONCLUSIVE, "No path score could be estimated"),
    ],
)
def test_same_path(score, status, words):
    import re

    (verdict,) = checks.same_path(min_score=0.5).judge([result(score=score)])
    assert verdict.status is status and re.search(words, verdict.reason)
    assert verdict.check == "same_path(min_score=0.5)" and verdict.subject == "a:1"


def test_severity_warn():
    check = checks.same_path(0.5, Status.WARN)
    assert judged(check, result(score=estimate(0.2, 0.1, 0.3))) == [Status.WARN]


def _unit(p, n):
    return result(p_value=p, p_attainable=1 / (n + 1), photographs=n)


def test_not_distinguishable_corrects_over_units():
    """Benjamini-Hochberg by hand: p = .001, .02, .04, .9 gives q = .004, .04, .0533, .9."""
    units = [_unit(p, 1500) for p in (0.001, 0.02, 0.04, 0.9)]
    assert judged(checks.not_distinguishable(0.05), *units) == [
        Status.FAIL, Status.FAIL, Status.PASS, Status.PASS,
    ]  # fmt: skip


def test_a_test_without_power_is_inconclusive_not_pass():
    """One unit: 1 / 21 <= 0.05 could be seen; among ten, 10 / 21 could not."""
    one = checks.not_distinguishable(0.05).judge([_unit(0.5, 20)])
    assert one[0].status is Status.PASS and "would have been" in one[0].reason
    ten = checks.not_distinguishable(0.05).judge([_unit(0.5, 20)] * 10)
    assert {v.status for v in ten} == {Status.INCONCLUSIVE}
    assert "cannot fall below 0.048" in ten[0].reason


def test_p_of_nan_is_inconclusive():
    assert judged(checks.not_distinguishable(), _unit(NAN, 1)) == [Status.INCONCLUSIVE]


@pytest.mark.parametrize(
    "quantile, status",
    [
        (estimate(1.0, 0.88, 1.0), Status.PASS),
        (estimate(0.1, 0.02, 0.3), Status.FAIL),
        (estimate(0.8, 0.6, 0.9), Status.INCONCLUSIVE),
        (estimate(NAN, NAN, NAN, 0), Status.INCONCLUSIVE),
    ],
)
def test_drives_unit(quantile, status):
    assert judged(checks.drives_unit(0.75), result(quantile=quantile)) == [status]


def test_dead_visualizations_make_every_claim_inconclusive_and_say_why():
    whole = result(score=estimate(0.9, 0.8, 1.0), p_value=0.001)
    dead = without_dead(whole, 1)
    assert without_dead(whole, 0) is whole
    assert not (dead.score.known or dead.quantile.known or dead.margin.known)
    assert math.isnan(dead.p_value) and dead.path == whole.path
    for check in (checks.same_path(), checks.not_distinguishable(), checks.drives_unit()):
        (verdict,) = check.judge([dead])
        assert verdict.status is Status.INCONCLUSIVE
        assert "visualizations are dead: no gradient reached them" in verdict.reason
