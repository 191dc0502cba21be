"""Similarities against SciPy; ties; undefined rows."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fvaudit.evidence.similarity import METRICS, average_ranks, similarity_matrix, standardise
from fvaudit.records import AuditError


RNG = np.random.default_rng(0)
DATA = {
    "continuous": RNG.standard_normal((6, 300)),
    "relu": np.maximum(RNG.standard_normal((6, 300)) - 0.5, 0),
    "ties everywhere": RNG.integers(0, 4, (6, 300)).astype(float),
    "negative minimum ties": np.maximum(RNG.standard_normal((6, 300)), -0.5),
    "one value above": np.eye(6, 300),
}
DATA = {name: x.astype(np.float32) for name, x in DATA.items()}


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_average_ranks_are_scipys(x):
    np.testing.assert_array_equal(average_ranks(x), stats.rankdata(x, axis=1))


@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_spearman_and_pearson_are_scipys(x):
    for metric, reference in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        s = standardise(x, metric)
        found = similarity_matrix(s[:3], s[3:])
        expected: Any = [[reference(a, b)[0] for b in x[3:]] for a in x[:3]]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cosine_is_the_textbooks():
    x = DATA["continuous"]
    s = standardise(x, "cosine")
    expected = (x[0] @ x[1]) / np.linalg.norm(x[0]) / np.linalg.norm(x[1])
    assert similarity_matrix(s, s)[0, 1] == pytest.approx(expected, abs=1e-6)


def test_only_spearman_ignores_increasing_maps():
    x = DATA["relu"]
    warped = np.exp(3 * x)
    for metric in METRICS:
        a, b = (
            similarity_matrix(s, s) for s in (standardise(x, metric), standardise(warped, metric))
        )
        assert np.allclose(a, b, atol=1e-6) == (metric == "spearman")


def test_ordinal_ranks_would_have_been_wrong():
    """Two sparse maps with nothing in common are not alike, whatever their zeros' positions."""
    x = np.zeros((2, 1000), np.float32)
    x[0, :10], x[1, -10:] = RNG.random((2, 10))
    s = standardise(x, "spearman")
    assert abs(similarity_matrix(s, s)[0, 1]) < 0.05
    ordinal = stats.rankdata(x, method="ordinal", axis=1)
    assert np.corrcoef(ordinal)[0, 1] > 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_direction_are_nan_and_stay_alone(metric):
    x = np.stack([DATA["relu"][0], np.zeros(300, np.float32), DATA["relu"][1]])
    s = standardise(x, metric)
    found = similarity_matrix(s, s)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


def test_constant_rows_are_undefined_for_correlations():
    x = np.full((2, 77), 0.1, np.float32)
    assert np.isnan(standardise(x, "pearson")).all() and np.isnan(standardise(x, "spearman")).all()


def test_nan_stays_nan():
    x = DATA["continuous"].copy()
    x[2, 7] = np.nan
    for metric in METRICS:
        s = standardise(x, metric)
        assert np.isnan(s[2]).all() and np.isfinite(np.delete(s, 2, 0)).all()


def test_infinities_have_a_rank_but_no_direction():
    x = np.array([[1, 3, 2, np.inf], [4, 1, 2, 3]], np.float32)
    np.testing.assert_array_equal(average_ranks(x), stats.rankdata(x, axis=1))
    for metric in ("pearson", "cosine"):
        s = standardise(x, metric)
        assert np.isnan(s[0]).all() and np.isfinite(s[1]).all()


def test_messages():
    with pytest.raises(AuditError, match="no similarity 'spearmen'.*did you mean 'spearman'"):
        standardise(DATA["relu"], "spearmen")
    too_long = np.broadcast_to(np.float32(0), (1, 2**24 + 1))
    with pytest.raises(AuditError, match="Cannot rank 16777217 features exactly"):
        average_ranks(too_long)
