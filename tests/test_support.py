"""Natural support: closed forms, SciPy's binomial, coverage by simulation, degenerate data."""

import numpy as np
import pytest
from scipy import stats as reference

from fvaudit.evidence.support import support


NAN = np.nan


def _support(fv, natural, photograph=None, replicates=300, seed=0):
    natural = np.asarray(natural, float)
    photograph = np.arange(len(natural)) if photograph is None else photograph
    return support(
        np.asarray(fv, float), natural, photograph,
        level=0.95, replicates=replicates, rng=np.random.default_rng(seed),
    )  # fmt: skip


def test_by_hand():
    found = _support([9.0, 11.0], [1.0, 2.0, 3.0, 4.0, 10.0])
    assert (found.natural_median, found.natural_max, found.fv_mean) == (3.0, 10.0, 10.0)
    assert found.quantile.value == 4 / 5  # the weaker FV, 9, lies above four of five
    assert found.margin.value == pytest.approx((10 - 3) / 1.4826)  # MAD of 2, 1, 0, 1, 7 is 1


def test_quantile_is_scipys_exact_binomial():
    natural = np.random.default_rng(0).standard_normal(30)
    found = _support([0.4, 7.0], natural).quantile
    test = reference.binomtest(int((natural < 0.4).sum()), 30)
    assert found.value == test.statistic and found.n == 30
    assert (found.low, found.high) == pytest.approx(test.proportion_ci(0.95, "exact"))


def test_margin_is_scipys_median_absolute_deviation():
    natural = np.random.default_rng(1).standard_normal(31)
    mad = reference.median_abs_deviation(natural) * 1.4826
    found = _support([5.0, 8.0], natural).margin
    assert found.value == pytest.approx((6.5 - np.median(natural)) / mad)


def test_margin_does_not_depend_on_the_units_scale():
    natural = np.random.default_rng(2).standard_normal(40)
    a = _support([5.0], natural).margin
    b = _support([3 * 5.0 + 7], 3 * natural + 7).margin
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))


def test_photographs_count_not_crops():
    found = _support([5.0], [1.0, 2.0, 3.0, 4.0], np.array([0, 0, 1, 1]))
    assert found.quantile.n == 2 and found.natural_median == 3.0
    natural = np.random.default_rng(3).standard_normal(30)
    once = _support([5.0], natural)
    thrice = _support([5.0], np.repeat(natural, 3), np.repeat(np.arange(30), 3))
    assert once == thrice


def test_margin_interval_covers():
    """Standard normal responses, FV at 6: the truth is 6."""
    rng, hits, sets = np.random.default_rng(5), 0, 300
    for i in range(sets):
        m = _support([6.0], rng.standard_normal(40), seed=i).margin
        hits += m.low <= 6 <= m.high
    assert hits >= reference.binom.ppf(0.001, sets, 0.95)


def test_margin_interval_covers_the_mean_over_keys():
    """Visualizations that differ as much as photographs; 2 are the default. Measured .97."""
    rng, hits, sets = np.random.default_rng(6), 0, 300
    for i in range(sets):
        m = _support(6 + rng.standard_normal(2), rng.standard_normal(40), seed=i).margin
        hits += m.low <= 6 <= m.high
    assert hits >= reference.binom.ppf(0.001, sets, 0.95)


def test_without_spread_or_data_nothing_is_known():
    assert not _support([1.0], [2.0] * 9).margin.known
    assert not _support([NAN], [1.0, 2.0]).quantile.known
    assert not _support([NAN], np.arange(9.0)).margin.known
    assert not _support([1.0], [2.0]).margin.known
    assert not _support([], np.arange(9.0)).quantile.known
    empty = _support([1.0], [NAN, NAN])
    assert not empty.quantile.known and np.isnan(empty.natural_max)
