"""Manipulation evidence: exactly valid for clean units, whatever their distribution."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from fvaudit.evidence.manipulation import FEWEST, MEASURES, manipulation, measures
from fvaudit.records import AuditError, Estimate, LayerSimilarity, UnitResult


def units(rng, n: int) -> np.ndarray:
    """Clean units: heavy tails, one measure with many ties."""
    rows = rng.standard_t(2, (n, 4))
    rows[:, 1] = rows[:, 1].round()
    return rows


def test_p_is_uniform_for_clean_units():
    rng = np.random.default_rng(0)
    p = [manipulation(x[:-1], x[-1])[1] for x in (units(rng, 20) for _ in range(2000))]
    counts = np.bincount(np.round(np.array(p) * 20).astype(int) - 1, minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3
    for level in (0.05, 0.1, 0.5):
        assert stats.binomtest(int((np.array(p) <= level + 1e-9).sum()), 2000, level).pvalue > 1e-3


def test_p_stays_valid_where_measures_are_missing():
    rng = np.random.default_rng(1)

    def holes(rows):
        return np.where(rng.random(rows.shape) < 0.3, np.nan, rows)

    p = np.array(
        [manipulation(x[:-1], x[-1])[1] for x in (holes(units(rng, 20)) for _ in range(2000))]
    )
    known = p[np.isfinite(p)]
    assert len(known) > 1900
    assert stats.binomtest(int((known <= 0.1 + 1e-9).sum()), len(known), 0.1).pvalue > 1e-3


@pytest.mark.parametrize("measure", range(4))
@pytest.mark.parametrize("direction", [-1, 1])
def test_one_measure_far_off_in_either_direction_is_enough(measure, direction):
    rows = np.random.default_rng(2).standard_normal((40, 4))
    odd = np.zeros(4)
    odd[measure] = 8 * direction
    far, p = manipulation(rows, odd)
    assert p == 1 / 41
    both = np.vstack([rows, odd])
    inverse = np.linalg.inv(np.cov(both.T))
    assert far == pytest.approx(distance.mahalanobis(odd, both.mean(0), inverse), rel=1e-6)


def test_measures_that_go_together_are_seen_together():
    """Each within its own range, but never one high while the other is low."""
    first = np.random.default_rng(5).standard_normal(60)
    rows = np.stack([first, first, 0 * first, 0 * first], axis=1)
    rows += 0.1 * np.random.default_rng(6).standard_normal(rows.shape)
    assert manipulation(rows, np.array([1.0, -1.0, 0.0, 0.0]))[1] == 1 / 61
    assert manipulation(rows, np.array([1.0, 1.0, 0.0, 0.0]))[1] > 0.1


def test_too_little_is_no_conclusion():
    rows = np.random.default_rng(3).standard_normal((FEWEST - 1, 4))
    assert np.isnan(manipulation(rows, np.zeros(4))).all()
    many = np.random.default_rng(3).standard_normal((30, 4))
    assert np.isnan(manipulation(many, np.full(4, np.nan))).all()
    many[: 30 - FEWEST + 1] = np.nan
    assert np.isnan(manipulation(many, np.zeros(4))).all()


def test_a_measure_without_spread_has_no_say():
    rows = np.random.default_rng(4).standard_normal((30, 4))
    rows[:, 2] = 1.0
    assert manipulation(rows, np.array([0.0, 0.0, 5.0, 0.0]))[1] > 0.5


def test_rows_of_another_length_are_refused():
    with pytest.raises(AuditError, match="held against rows"):
        manipulation(np.zeros((20, 4)), np.zeros(3))


def estimate(value: float) -> Estimate:
    return Estimate(value, value, value, 0.95, 20, "", "")


def result(gaps, responses=(9.0,), median=1.0, most=3.0) -> UnitResult:
    rows = tuple(
        LayerSimilarity(f"l{i}", estimate(0.1 + g), estimate(0.5), estimate(0.1), estimate(g), True,
                        0.0, 1.0)
        for i, g in enumerate(gaps)
    )  # fmt: skip
    return UnitResult(
        "l:0", "", "", 20, 30, (), (), (), responses, rows, estimate(0.25), 0.1, 1 / 21, median,
        most, estimate(1.0), estimate(4.0),
    )  # fmt: skip


def test_measures_by_hand():
    found = dict(zip(MEASURES, measures(result([0.3, -0.2, 0.1])), strict=True))
    assert found["reach"] == pytest.approx(2.0)  # (9 - 1) / (3 - 1) = 4
    assert found["score"] == 0.25
    assert found["own"] == pytest.approx(0.1)
    assert found["least"] == pytest.approx(-0.2)


def test_what_cannot_be_measured_is_nan():
    below = measures(result([0.3], responses=(0.5,)))
    assert np.isnan(below[0]) and np.isfinite(below[1:]).all()
    flat = measures(result([0.3], most=1.0))
    assert np.isnan(flat[0])
    nothing = dataclasses.replace(result([np.nan]), score=estimate(np.nan))
    assert np.isnan(measures(nothing)[1:]).all()
