"""Regularizers: each, and the four published settings as a whole, against NumPy and SciPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fvaudit.optvis import regularizers
from fvaudit.records import AuditError


MEAN = (123.68, 116.779, 103.939)
SHAPE = (13, 11, 3)
RNG = np.random.default_rng(0)
LATENT = RNG.normal(0, 40, SHAPE)
GRADIENT = RNG.normal(size=SHAPE)


def _apply(regularizer, latent=LATENT, gradient=GRADIENT, t=0):
    with jax.enable_x64(True):
        out = jax.jit(regularizer.apply)(jnp.asarray(latent), jnp.asarray(gradient), t)
        return np.asarray(out)


# the published loop's lines, on x of shape (h, w, c)


def _np_decay(x, g, t, theta):
    return x * (1 - theta)


def _np_blur(x, g, t, sigma, every):
    if t % every == 0:
        return np.stack([ndimage.gaussian_filter(x[..., c], sigma) for c in range(3)], -1)
    return x


def _np_norm(x, g, t, percentile):
    norms = np.linalg.norm(x, axis=-1)
    return x - x * (norms < np.percentile(norms, percentile))[..., None]


def _np_contribution(x, g, t, percentile):
    benefit = np.abs((g * -x).sum(-1))
    return x - x * (benefit < np.percentile(benefit, percentile))[..., None]


def _np_range(x, g, t, mean=MEAN):
    return np.minimum(255.0, np.maximum(0.0, x + mean)) - mean


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (regularizers.decay(0.3), functools.partial(_np_decay, theta=0.3)),
        (regularizers.blur_every(0.5, 4), functools.partial(_np_blur, sigma=0.5, every=4)),
        (regularizers.blur_every(1, 3), functools.partial(_np_blur, sigma=1, every=3)),
        (regularizers.clip_small_norm(50), functools.partial(_np_norm, percentile=50)),
        (regularizers.clip_small_norm(20.5), functools.partial(_np_norm, percentile=20.5)),
        (
            regularizers.clip_small_contribution(90),
            functools.partial(_np_contribution, percentile=90),
        ),
        (regularizers.clip_range(MEAN), functools.partial(_np_range)),
    ],
    ids=lambda value: getattr(value, "text", ""),
)
def test_each_is_the_published_line(ours, theirs):
    moved = False
    for t in (0, 1, 4):
        expected = theirs(LATENT, GRADIENT, t)
        np.testing.assert_allclose(_apply(ours, t=t), expected, rtol=1e-9, atol=1e-9)
        moved |= not np.allclose(expected, LATENT)
    assert moved


def test_the_percentile_is_strict_and_exact_where_it_falls_on_an_entry():
    """Of 11 pixels, the 50th percentile is the 6th smallest norm, which stays; so do its equals."""
    norms = np.array([1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 9.0])
    for order in (norms, norms[::-1]):
        out = _apply(regularizers.clip_small_norm(50), order[None, :, None], order[None, :, None])
        np.testing.assert_array_equal(out[0, :, 0], np.where(order < 6, 0, order))
    for percentile in (10, 30, 90):  # 0.1 * 10 and the like are not whole in binary
        expected = np.where(norms < np.percentile(norms, percentile), 0, norms)
        out = _apply(regularizers.clip_small_norm(percentile), norms[None, :, None])
        np.testing.assert_array_equal(out[0, :, 0], expected)


def test_contribution_is_what_the_score_loses_to_first_order():
    """A linear score: setting a pixel to the mean loses exactly its contribution."""
    kept = _apply(regularizers.clip_small_contribution(60)) != 0
    loss = np.abs((GRADIENT * LATENT).sum(-1))
    assert loss[kept.all(-1)].min() > loss[~kept.any(-1)].max()
    assert abs((~kept.any(-1)).mean() - 0.6) < 0.01


def test_decay_takes_latents_of_any_form():
    latent = {"a": np.ones((2, 3)), "b": (np.full(4, 2.0),)}
    out = regularizers.decay(0.25).apply(latent, latent, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.75 * b), out, latent)


WEIGHTS = RNG.normal(0, 1e-3, (6, *SHAPE))
SETTINGS = {  # decay, blur sigma, every, norm percentile, contribution percentile, rate, steps
    1: (0, 0.5, 4, 50, 0, {"desired": 2.0, "max": 100}, 500),
    2: (0.3, 0, 0, 20, 0, 100, 750),
    3: (0.0001, 1.0, 4, 0, 0, 100, 1000),
    4: (0, 0.5, 4, 0, 90, {"desired": 2.0, "max": 1e8}, 1000),
}
# of the score: so that steps are of some grey levels, and setting 1 meets its highest rate
SCALES = {1: 1.0, 2: 300.0, 3: 300.0, 4: 0.02}


def _slope(x, scale):
    """Of scale * sum_k tanh(w_k . x), in closed form."""
    hidden = np.tanh((WEIGHTS * x).sum((1, 2, 3)))
    return scale * np.tensordot(1 - hidden**2, WEIGHTS, 1)


def _published(number, x, steps, clipped=True):
    """Their loop, line by line; `steps` updates."""
    theta, sigma, every, norm, contribution, policy, _ = SETTINGS[number]
    for t in range(steps):
        x = _np_range(x, None, t) if clipped else x
        g = _slope(x, SCALES[number])
        if isinstance(policy, dict):
            rate = min(policy["max"], policy["desired"] / np.linalg.norm(g) ** 2)
        else:
            rate = policy
        x = (x + rate * g) * (1 - theta)
        if every and sigma > 0:
            x = _np_blur(x, g, t, sigma, every)
        if norm > 0:
            x = _np_norm(x, g, t, norm)
        if contribution > 0:
            x = _np_contribution(x, g, t, contribution)
    return _np_range(x, None, steps)


def _ours(number, start, steps):
    setting = regularizers.yosinski(number, mean=MEAN)
    weights, mean = jnp.asarray(WEIGHTS), jnp.asarray(MEAN)

    def score(z):  # of the image in [0, 1], as networks take it
        x = 255 * setting.parameterization.decode(z, SHAPE) - mean
        return SCALES[number] * jnp.tanh((weights * x).sum((1, 2, 3))).sum()

    @jax.jit
    def run(z):
        def step(t, carry):
            z, state = carry
            slope = jax.grad(score)(z)
            direction: Any
            direction, state = setting.optimizer.direction.update(slope, state, z)
            z = z + setting.optimizer.rate(t, setting.steps) * direction
            return setting.regularizer.apply(z, slope, t), state

        return jax.lax.fori_loop(0, steps, step, (z, setting.optimizer.direction.init(z)))[0]

    return np.asarray(run(start))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_four_settings_are_the_published_loop(number):
    assert regularizers.yosinski(number, mean=MEAN).steps == SETTINGS[number][-1]
    start = 255 * RNG.random(SHAPE) - MEAN
    with jax.enable_x64(True):
        got = _ours(number, jnp.asarray(start), 10)
    np.testing.assert_allclose(got, _published(number, start, 10), rtol=1e-7, atol=1e-7)
    unclipped = _published(number, start, 10, clipped=False)
    assert np.allclose(got, unclipped, rtol=1e-7, atol=1e-7) == (number == 1)  # the rest do clip


def test_the_start_is_the_mean_with_noise_in_grey_levels():
    start = np.asarray(regularizers.raw_pixels(MEAN).init(jax.random.key(0), (60, 60, 3)))
    np.testing.assert_allclose(start.mean((0, 1)), 0, atol=1)
    np.testing.assert_allclose(start.std((0, 1)), 10, rtol=0.05)
    dark = np.asarray(regularizers.raw_pixels((2.0,), 10).init(jax.random.key(0), (20, 20, 1)))
    assert dark.min() == -2.0


def test_decode_inverts_encode_clips_and_passes_the_whole_gradient():
    """`jnp.clip` would pass half a gradient at the edge of the range and none beyond."""
    raw = regularizers.raw_pixels(MEAN)
    assert raw.encode is not None
    image = jnp.asarray(RNG.random(SHAPE), jnp.float32).at[0, 0].set(0.0).at[0, 1].set(1.0)
    np.testing.assert_allclose(raw.decode(raw.encode(image), SHAPE), image, atol=1e-6)
    latent = jnp.asarray(RNG.normal(0, 200, SHAPE), jnp.float32)
    out = np.asarray(raw.decode(latent, SHAPE))
    assert out.min() == 0 and out.max() == 1
    for z in (latent, raw.encode(image)):
        slope = jax.grad(lambda z: (raw.decode(z, SHAPE) * GRADIENT).sum())(z)
        np.testing.assert_allclose(slope, GRADIENT / 255, rtol=1e-5)


def test_texts_make_them_again():
    for number in (1, 2, 3, 4):
        setting = regularizers.yosinski(number, MEAN)
        assert eval(setting.text, dict(vars(regularizers))) is setting
        for part in setting.regularizer.text.split(" > "):
            assert eval(part, dict(vars(regularizers))).text == part
        made = eval(setting.parameterization.text, dict(vars(regularizers)))
        assert made.text == setting.parameterization.text
    assert regularizers.compose().text == "none"
    assert regularizers.yosinski(3, MEAN).regularizer.text == (
        "decay(0.0001) > blur_every(1.0, 4) > clip_range((123.68, 116.779, 103.939))"
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: regularizers.decay(0), "0 < theta < 1, got 0"),
        (lambda: regularizers.blur_every(0, 4), "sigma must be > 0"),
        (lambda: regularizers.blur_every(1.0, 0), "every must be >= 1"),
        (lambda: regularizers.clip_small_norm(0), r"percentile must lie in \(0, 100\), got 0"),
        (lambda: regularizers.clip_small_contribution(100), "percentile must lie in"),
        (lambda: regularizers.clip_range((300.0,)), "colours in 0..255"),
        (lambda: regularizers.raw_pixels(()), "raw_pixels: means are colours"),
        (lambda: regularizers.raw_pixels(MEAN, 0), "sd must be > 0"),
        (lambda: regularizers.raw_pixels(MEAN).init(jax.random.key(0), (4, 4, 1)), "3 means for"),
        (lambda: regularizers.yosinski(5, MEAN), "settings 1 to 4, got 5"),
        (lambda: regularizers.yosinski(1, (-1.0,)), "yosinski: means are colours"),
        (lambda: regularizers.blur_every(1.0, 4).apply({"a": 1}, None, 0), "got dict; use it with"),
        (
            lambda: regularizers.clip_small_norm(5).apply(jnp.ones((2, 3, 3, 3)), None, 0),
            r"got \(2, 3, 3, 3\)",
        ),
    ],
)
def test_messages(make, message):
    with pytest.raises(AuditError, match=message):
        make()
