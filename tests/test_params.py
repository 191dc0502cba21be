"""Parameterizations: round trips, constants, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis.colours import COLOURS
from fvaudit.optvis.params import fourier, pixels
from fvaudit.records import AuditError


ALL = [pixels(), pixels(decorrelate=False), fourier(), fourier(decay=0.5), fourier(sd=0.1)]


@pytest.mark.parametrize("p", ALL, ids=lambda p: p.text)
@pytest.mark.parametrize("size", [(16, 16), (15, 17), (12, 9)], ids=str)
def test_round_trip_image_latent_image(p, size):
    image = np.random.default_rng(0).uniform(0.05, 0.95, (*size, 3)).astype(np.float32)
    np.testing.assert_allclose(
        p.decode(p.encode(jnp.asarray(image)), image.shape), image, atol=1e-5
    )


@pytest.mark.parametrize("p", ALL, ids=lambda p: p.text)
def test_start_is_seeded_near_grey_and_in_range(p):
    key = jax.random.key(3)
    image = p.decode(p.init(key, (32, 32, 3)), (32, 32, 3))
    assert image.shape == (32, 32, 3) and image.dtype == jnp.float32
    assert 0 <= image.min() and image.max() <= 1
    assert abs(float(image.mean()) - 0.5) < 0.05
    np.testing.assert_array_equal(p.init(key, (32, 32, 3)), p.init(key, (32, 32, 3)))
    other = p.init(jax.random.key(4), (32, 32, 3))
    assert not np.array_equal(p.init(key, (32, 32, 3)), other)


def test_colour_matrix_is_lucids_divided_by_its_largest_column_norm():
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    norm = np.sqrt((root**2).sum(0)).max()  # 0.4619...
    np.testing.assert_allclose(COLOURS, root / norm, rtol=1e-6)
    assert norm == pytest.approx(0.461952, abs=1e-6)


def test_one_spectral_line_is_a_cosine():
    h, w = 8, 8
    latent = np.zeros((2, h, w // 2 + 1, 3), np.float32)
    latent[0, 0, 2] = 3.0  # horizontal frequency 2 / 8 in every colour
    image = fourier(decorrelate=False).decode(jnp.asarray(latent), (h, w, 3))
    # irfft2 of one line: 2 * value / sqrt(h w) * cos; scale 1 / f; lucid's division by 4
    wave = 2 * 3.0 / (2 / 8) / np.sqrt(h * w) / 4 * np.cos(2 * np.pi * 2 * np.arange(w) / w)
    expected = 1 / (1 + np.exp(-wave))
    np.testing.assert_allclose(
        image, np.broadcast_to(expected[None, :, None], (h, w, 3)), atol=1e-6
    )


def test_parseval_of_the_fourier_start():
    """At decay 0 the transform is orthonormal: pixel variance is the spectrum's, over 4 squared."""
    p = fourier(sd=1.0, decay=0.0, decorrelate=False)
    images = [p.decode(p.init(jax.random.key(i), (32, 32, 3)), (32, 32, 3)) for i in range(20)]
    z = np.log(np.stack(images)) - np.log1p(-np.stack(images))
    # real and imaginary parts both have variance 1, so E|s|^2 = 2
    assert np.var(z) * 16 == pytest.approx(2.0, rel=0.05)


def test_factories_are_cached_so_nothing_is_traced_twice():
    assert fourier() is fourier() and pixels(sd=0.02) is pixels(sd=0.02)


@pytest.mark.parametrize("sd", [0.0, -1.0, float("nan")])
def test_sd_must_be_positive(sd):
    with pytest.raises(AuditError, match="sd must be > 0"):
        fourier(sd=sd)
    with pytest.raises(AuditError, match="sd must be > 0"):
        pixels(sd=sd)


def test_decay_must_not_be_negative():
    with pytest.raises(AuditError, match="decay must be >= 0, got -1"):
        fourier(decay=-1.0)
