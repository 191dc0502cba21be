"""Transforms: ranges really drawn, identity, independence, composition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fvaudit.optvis import transforms
from fvaudit.records import AuditError


KEYS = jax.random.split(jax.random.key(0), 4000)
IMAGE = jnp.asarray(np.random.default_rng(0).random((21, 19, 3)), jnp.float32)


def _draws(part):
    return jax.vmap(part.draw)(KEYS)


def test_jitter_draws_every_whole_shift_of_its_square_equally():
    shifts = np.asarray(_draws(transforms.jitter(8)).shift)
    assert set(np.unique(shifts)) == set(range(-4, 4))
    counts = np.unique(shifts, return_counts=True)[1]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 7 / 8)


def test_scale_draws_all_its_factors():
    factors = (0.9, 1.0, 1.1)
    matrices = np.asarray(_draws(transforms.scale(factors)).matrix)
    np.testing.assert_allclose(np.unique(1 / matrices[:, 0, 0].round(6)), factors, rtol=1e-5)
    np.testing.assert_array_equal(matrices[:, 0, 1], 0)


def test_rotation_draws_all_its_angles_and_keeps_lengths():
    matrices = np.asarray(_draws(transforms.rotate((-10, 0, 10))).matrix)
    angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    np.testing.assert_allclose(np.unique(angles.round(3)), [-10, 0, 10], atol=1e-2)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-6)


def test_a_quarter_turn_is_numpys():
    turned = transforms.compose(transforms.rotate((90,))).apply(KEYS[0], IMAGE[:19])
    np.testing.assert_allclose(turned, np.rot90(IMAGE[:19]), atol=1e-4)


def test_magnifying_agrees_with_scipy():
    got = transforms.compose(transforms.scale((1.25,))).apply(KEYS[0], IMAGE)
    centre = (np.array(IMAGE.shape[:2]) - 1) / 2
    offset: Any = centre * 0.2
    expected = np.stack(
        [
            ndimage.affine_transform(np.asarray(IMAGE[..., c]), np.eye(2) / 1.25, offset, order=1)
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_neutral_parameters_change_nothing():
    neutral = transforms.compose(
        transforms.jitter(1), transforms.scale((1.0,)), transforms.rotate((0,))
    )
    np.testing.assert_allclose(neutral.apply(KEYS[0], IMAGE), IMAGE, atol=1e-5)
    assert transforms.none().apply(KEYS[0], IMAGE) is IMAGE


def test_standard_keeps_shape_and_range_and_differs_by_key():
    out = jax.vmap(transforms.standard().apply, (0, None))(KEYS[:50], IMAGE)
    assert out.shape == (50, *IMAGE.shape)
    assert 0 <= out.min() and out.max() <= 1
    assert len(np.unique(np.asarray(out).reshape(50, -1).mean(1))) > 45
    again = transforms.standard().apply(KEYS[7], IMAGE)
    np.testing.assert_allclose(again, out[7], atol=1e-6)


def test_composition_applies_parts_in_order():
    """Moving a point up by jitter and then magnifying magnifies the shift as well."""
    point = jnp.zeros((21, 21, 1)).at[10, 10].set(1.0)
    move = transforms.Geometric(
        "up", lambda key: transforms.Affine(jnp.eye(2), jnp.array([2.0, 0.0])), 1.0
    )
    double = transforms.scale((2.0,))
    first_move = transforms.compose(move, double).apply(KEYS[0], point)
    first_double = transforms.compose(double, move).apply(KEYS[0], point)
    assert np.unravel_index(int(first_move.argmax()), (21, 21)) == (6, 10)
    assert np.unravel_index(int(first_double.argmax()), (21, 21)) == (8, 10)


def test_ground_is_grey():
    moved = transforms.compose(
        transforms.Geometric(
            "far", lambda key: transforms.Affine(jnp.eye(2), jnp.array([100.0, 0.0])), 1.0
        )
    ).apply(KEYS[0], IMAGE)
    np.testing.assert_allclose(moved, 0.5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: transforms.jitter(0), "at least 1 pixel, got 0"),
        (lambda: transforms.scale(()), "factors > 0"),
        (lambda: transforms.scale((0.0, 1.0)), "factors > 0"),
        (lambda: transforms.rotate(()), "at least one angle"),
    ],
)
def test_messages(make, message):
    with pytest.raises(AuditError, match=message):
        make()
