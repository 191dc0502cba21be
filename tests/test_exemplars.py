"""Exemplars against a plain loop: one per photograph, ordered, NaN left out."""

import numpy as np
import pytest

from fvaudit.evidence.exemplars import first_of_each, strongest, strongest_of_each, weakest


RESPONSE = np.array([0.3, 0.9, 0.5, 0.9, np.nan, 0.1])
PHOTOGRAPH = np.array([0, 0, 1, 2, 3, 4])


def test_by_hand():
    assert strongest(RESPONSE, PHOTOGRAPH, 10).tolist() == [1, 3, 2, 5]  # equal: lower index first
    assert strongest(RESPONSE, PHOTOGRAPH, 2).tolist() == [1, 3]
    assert weakest(RESPONSE, PHOTOGRAPH, 2).tolist() == [5, 0]
    assert first_of_each(np.array([5, 0, 1, 2]), PHOTOGRAPH).tolist() == [5, 0, 2]
    assert strongest_of_each(RESPONSE, PHOTOGRAPH).tolist() == [0.9, 0.5, 0.9, 0.1]


def _by_loop(response, photograph, sign):
    """Best crop of each photograph, best photographs first."""
    best = {}
    for i, (r, p) in enumerate(zip(response, photograph, strict=True)):
        if not np.isnan(r) and (p not in best or sign * r > sign * response[best[p]]):
            best[p] = i
    return sorted(best.values(), key=lambda i: (-sign * response[i], i))


@pytest.mark.parametrize("seed", range(20))
def test_a_plain_loop_agrees(seed):
    """Ties between photographs and between crops of one, shuffled crops, gaps in numbering."""
    rng = np.random.default_rng(seed)
    response = rng.integers(0, 6, 40) / 2
    response[rng.random(40) < 0.1] = np.nan
    photograph = 3 * rng.integers(0, 12, 40)
    assert strongest(response, photograph, 40).tolist() == _by_loop(response, photograph, 1)
    assert weakest(response, photograph, 40).tolist() == _by_loop(response, photograph, -1)
    for count in (0, 1, 5):
        assert (
            strongest(response, photograph, count).tolist()
            == (_by_loop(response, photograph, 1)[:count])
        )
    best = [response[i] for i in _by_loop(response, photograph, 1)]
    assert sorted(strongest_of_each(response, photograph)) == sorted(best)


def test_a_photograph_of_undefined_responses_is_left_out():
    nothing = np.full(3, np.nan)
    assert strongest(nothing, np.arange(3), 3).tolist() == []
    assert weakest(nothing, np.arange(3), 3).tolist() == []
    assert strongest_of_each(nothing, np.arange(3)).tolist() == []
