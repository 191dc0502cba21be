"""The ball: a projection, and the closed forms of linear and single-frequency units on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis import visualize as engine
from fvaudit.optvis.alpha import with_alpha
from fvaudit.optvis.ball import on_ball
from fvaudit.optvis.objectives import ClassLogit
from fvaudit.optvis.optimizers import adam
from fvaudit.optvis.params import fourier, pixels
from fvaudit.optvis.transforms import none
from fvaudit.records import AuditError
from tests.test_visualize import _function_model


SHAPE = (8, 8, 3)
RADIUS = 1.0  # so small that the best image lies well inside [0, 1]


def _best(w, parameterization):
    """The engine's image for max w.x, and the unit's value there."""
    model = _function_model(lambda x: (x * w).sum((1, 2, 3)))
    (vis,) = engine.visualize(
        model, [ClassLogit(0)], parameterization=parameterization, transforms=none(),
        steps=1500, optimizer=adam(0.05, "cosine"),
    )  # fmt: skip
    return vis.images[0], float(vis.activation[0])


@pytest.mark.parametrize("base", [pixels(decorrelate=False), fourier()], ids=lambda p: p.text)
def test_a_linear_unit_reaches_the_balls_far_side(base):
    """max w.x over the ball is 1/2 sum(w) + r ||w||, at 1/2 + r w / ||w||."""
    w = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    image, value = _best(jnp.asarray(w), on_ball(base, RADIUS))
    length = float(np.linalg.norm(w))
    assert value == pytest.approx(float(w.sum()) / 2 + RADIUS * length, abs=1e-5 * RADIUS * length)
    np.testing.assert_allclose(image, 0.5 + RADIUS * w / length, atol=1e-4)


def test_a_single_frequency_unit_gets_its_wave_and_nothing_else():
    """The unit <x, cos(2 pi (2 column / 8 + row / 8))>: one line of the spectrum has it all."""
    row, column = np.mgrid[:8, :8]
    wave = np.cos(2 * np.pi * (2 * column + row) / 8).astype(np.float32)
    w = np.repeat(wave[:, :, None], 3, axis=2)
    image, value = _best(jnp.asarray(w), on_ball(fourier(), RADIUS))
    assert value == pytest.approx(RADIUS * np.linalg.norm(w), rel=1e-5)
    spectrum = np.abs(np.fft.rfft2(image.mean(axis=2) - 0.5)) ** 2
    assert spectrum[1, 2] / spectrum.sum() > 0.999


def test_it_is_the_closest_point_of_the_ball():
    x = jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, SHAPE), jnp.float32)
    base = pixels()
    assert base.encode is not None
    latent = base.encode(x)
    inside = on_ball(base, 100).decode(latent, SHAPE)
    np.testing.assert_allclose(inside, x, atol=1e-5)
    outside = np.asarray(on_ball(base, 1).decode(latent, SHAPE)) - 0.5
    assert np.linalg.norm(outside) == pytest.approx(1, rel=1e-5)
    away = np.asarray(x) - 0.5
    np.testing.assert_allclose(outside, away / np.linalg.norm(away), atol=1e-5)


def test_grey_has_a_finite_gradient():
    slope = jax.grad(lambda z: on_ball(pixels(), 1).decode(z, SHAPE).sum())(jnp.zeros(SHAPE))
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_messages_and_text():
    assert on_ball(pixels(), 2).text == "on_ball(pixels(sd=0.01, decorrelate=True), radius=2.0)"
    assert on_ball(pixels(), 2) is on_ball(pixels(), 2)
    with pytest.raises(AuditError, match="radius must be > 0, got 0"):
        on_ball(pixels(), 0)
    with pytest.raises(AuditError, match="has an opacity channel"):
        on_ball(with_alpha(pixels()), 1)
