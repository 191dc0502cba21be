"""Statistics against SciPy, closed forms and simulation."""

from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from fvaudit.evidence import stats


NAN = np.nan


def test_bootstrap_weights_are_multinomial():
    w = stats.bootstrap_weights(5, 20000, np.random.default_rng(0))
    np.testing.assert_array_equal(w.sum(1), 5)
    np.testing.assert_allclose(w.mean(0), 1, atol=0.03)
    np.testing.assert_allclose(w.var(0), 1 - 1 / 5, atol=0.03)


def test_expanded_interval_tends_to_the_percentile_interval():
    x = np.random.default_rng(0).standard_normal(100_000)
    low, high = stats.percentile_interval(x, 0.95, 10**6)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=0.03)


def test_expanded_interval_of_a_mean_is_students():
    """For a Gaussian bootstrap law, the expansion reproduces the t interval (Hesterberg 2015)."""
    n, x = 8, np.random.default_rng(1).standard_normal(8)
    spread = x.std() / np.sqrt(n)  # the bootstrap's standard error, biased low by sqrt((n-1)/n)
    replicates = x.mean() + spread * np.random.default_rng(2).standard_normal(200_000)
    low, high = stats.percentile_interval(replicates, 0.9, n)
    student = reference.t.interval(0.9, n - 1, x.mean(), reference.sem(x))
    assert (low, high) == pytest.approx(student, abs=0.02)


def test_mean_interval_covers_in_small_samples():
    """At 95 % with n = 8 Gaussian values: plain percentile covers about 0.89, expanded 0.95."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(800):
        e = stats.bootstrap_estimate(
            rng.standard_normal(8), np.mean, level=0.95, replicates=400, unit="", rng=rng
        )
        hits += e.low <= 0 <= e.high
    assert reference.binom.ppf(0.001, 800, 0.94) <= hits <= reference.binom.ppf(0.999, 800, 0.97)


@pytest.mark.parametrize(
    "values, n", [([1.0, 2.0] * 50, 1), ([NAN] * 100, 5), ([1.0] * 90 + [NAN] * 10, 5), ([], 5)]
)
def test_no_interval_from_too_little(values, n):
    assert np.isnan(stats.percentile_interval(np.array(values), 0.95, n)).all()


def test_no_interval_from_fewer_replicates_than_its_tails_need():
    values = np.arange(40.0)
    assert np.isfinite(stats.percentile_interval(values, 0.95, 10**6)).all()
    assert np.isnan(stats.percentile_interval(values[1:], 0.95, 10**6)).all()
    assert np.isnan(stats.percentile_interval(values, 0.99, 10**6)).all()


def test_conformal_p_by_hand():
    null = np.array([0.1, 0.2, 0.3, 0.4])
    assert stats.conformal_p(null, 0.05) == 1 / 5  # never 0
    assert stats.conformal_p(null, 0.2) == 3 / 5  # ties count
    assert stats.conformal_p(null, 9.0) == 1
    assert np.isnan(stats.conformal_p(null, NAN))
    assert np.isnan(stats.conformal_p(np.array([NAN, 1.0]), 0.5))
    assert np.isnan(stats.conformal_p(np.array([]), 0.5))


def test_benjamini_hochberg_is_scipys_and_leaves_nan_out():
    p = np.array([0.01, NAN, 0.02, 0.8, 0.03])
    q = stats.benjamini_hochberg(p)
    assert np.isnan(q[1])
    expected = reference.false_discovery_control([0.01, 0.02, 0.8, 0.03])
    np.testing.assert_allclose(q[[0, 2, 3, 4]], expected)
    assert np.isnan(stats.benjamini_hochberg(np.array([NAN, NAN]))).all()


def test_binomial_is_clopper_pearson():
    """Closed form through the beta law; 0 of n ends at 1 - (alpha / 2)^(1 / n)."""
    e = stats.binomial_estimate(3, 20, 0.95)
    assert e.low == pytest.approx(reference.beta.ppf(0.025, 3, 18))
    assert e.high == pytest.approx(reference.beta.ppf(0.975, 4, 17))
    assert stats.binomial_estimate(0, 20, 0.95).high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert not stats.binomial_estimate(0, 0, 0.95).known


def test_bootstrap_estimate_leaves_nan_out_and_refuses_to_guess():
    rng = np.random.default_rng(4)
    settings: Any = dict(level=0.95, replicates=200, unit="x", rng=rng)
    e = stats.bootstrap_estimate(np.array([1.0, NAN, 3.0]), np.mean, **settings)
    assert (e.value, e.n) == (2.0, 2)
    assert np.isnan(stats.bootstrap_estimate(np.array([NAN]), np.mean, **settings).value)
    assert not stats.bootstrap_estimate(np.array([1.0]), np.mean, **settings).known
