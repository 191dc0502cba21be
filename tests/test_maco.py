"""MACO: the magnitude is fixed for every phase, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fvaudit as fv
from fvaudit.optvis.colours import COLOURS
from fvaudit.optvis.maco import fixed_magnitude, signal
from fvaudit.optvis.natural import natural, resampled
from fvaudit.optvis.params import Parameterization
from fvaudit.records import AuditError


SIZES = [(16, 16), (15, 15), (16, 15), (15, 16), (9, 24), (1, 8), (8, 1)]


def _phases(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-9, 9, (h, w // 2 + 1, 3)).astype(np.float32)


def _encoded(p: Parameterization, image) -> jax.Array:
    assert p.encode is not None
    return p.encode(jnp.asarray(image, jnp.float32))


def _magnitude_of(z) -> np.ndarray:
    return np.abs(np.fft.rfft2(np.asarray(z, np.float64), axes=(0, 1), norm="ortho"))


@pytest.mark.parametrize("h, w", SIZES)
def test_magnitude_is_kept_whatever_the_phases(h, w):
    shape = (h, w, 3)
    fixed = fixed_magnitude(natural(), shape)
    for seed in range(3):
        found = _magnitude_of(signal(_phases(h, w, seed), fixed, shape))
        np.testing.assert_allclose(found, fixed, rtol=1e-5, atol=1e-6)
    assert (fixed[0, 0] == 0).all() and (fixed.reshape(-1, 3)[1:] > 0).all()


def test_magnitude_is_kept_to_1e_5_at_full_size_in_float32():
    shape = (224, 224, 3)
    fixed = fixed_magnitude(natural(), shape).astype(np.float64)
    found = _magnitude_of(
        jax.jit(lambda p: signal(p, fixed_magnitude(natural(), shape), shape))(_phases(224, 224))
    )
    where = fixed > 0
    assert np.abs(found[where] / fixed[where] - 1).max() < 1e-5  # 6e-6 as measured
    assert found[~where].max() < 1e-5


@pytest.mark.parametrize("h, w", SIZES)
def test_fixed_magnitude_is_the_photographs_where_an_image_has_one_bin(h, w):
    found, plain = fixed_magnitude(natural(), (h, w, 3)), resampled(natural(), (h, w, 3))
    paired = {0, w // 2} if w % 2 == 0 else {0}
    for column in range(w // 2 + 1):
        expected = plain[:, column].copy()
        if column in paired:  # holds k and -k
            expected = (expected + np.roll(expected[::-1], 1, axis=0)) / 2
        if column == 0:
            expected[0] = 0
        np.testing.assert_allclose(found[:, column], expected, rtol=1e-6)


@pytest.mark.parametrize("h, w", SIZES[:4])
def test_image_is_numpys_inverse_transform(h, w):
    """The half spectrum of a real image's phases, transformed in float64."""
    shape = (h, w, 3)
    phases = np.angle(np.fft.rfft2(np.random.default_rng(0).normal(size=shape), axes=(0, 1)))
    fixed = fixed_magnitude(natural(), shape).astype(np.float64)
    z = np.fft.irfft2(fixed * np.exp(1j * phases), s=(h, w), axes=(0, 1)) * np.sqrt(h * w)
    expected = 1 / (1 + np.exp(-z @ COLOURS.T))
    image = fv.maco().decode(jnp.asarray(phases, jnp.float32), shape)
    np.testing.assert_allclose(image, expected, atol=3e-6)


def test_phases_of_an_image_come_back():
    shape = (15, 16, 3)
    z = np.random.default_rng(0).normal(size=shape)
    z -= z.mean(axis=(0, 1))
    given = 1 / (1 + np.exp(-z @ COLOURS.T))
    spectrum = np.fft.rfft2(z, axes=(0, 1))
    spectrum[0, 0] = 1  # the constant is 0 and has no phase
    latent = np.array(_encoded(fv.maco(), given))
    latent[0, 0] = 0
    np.testing.assert_allclose(np.exp(1j * latent), spectrum / np.abs(spectrum), atol=2e-4)
    fixed = fixed_magnitude(natural(), shape)
    made = np.fft.rfft2(np.asarray(signal(latent, fixed, shape), np.float64), axes=(0, 1))
    made[0, 0] = 1
    np.testing.assert_allclose(made / np.abs(made), spectrum / np.abs(spectrum), atol=2e-4)


@pytest.mark.parametrize("h, w", [(16, 16), (15, 17)])
def test_what_decode_makes_is_encoded_and_decoded_unchanged(h, w):
    p, shape = fv.maco(), (h, w, 3)
    image = p.decode(jnp.asarray(_phases(h, w)), shape)
    np.testing.assert_allclose(p.decode(_encoded(p, image), shape), image, atol=1e-5)


def test_a_photograph_with_the_average_magnitude_is_itself():
    """Statistics of one image (twice), grey on average: its own phases decode to it."""
    z = np.random.default_rng(3).normal(size=(12, 11, 3))
    z -= z.mean(axis=(0, 1))
    image = (1 / (1 + np.exp(-z @ COLOURS.T))).astype(np.float32)
    p = fv.maco(statistics=fv.fit_statistics(np.stack([image, image]), colours=COLOURS))
    np.testing.assert_allclose(p.decode(_encoded(p, image), image.shape), image, atol=2e-5)


def test_gradient_is_the_slope_of_an_independent_float64_decoder():
    h, w = 8, 10
    fixed = fixed_magnitude(natural(), (h, w, 3)).astype(np.float64)
    rng = np.random.default_rng(0)
    weights, direction = rng.normal(size=(h, w, 3)), rng.normal(size=(h, w // 2 + 1, 3))
    phases = _phases(h, w).astype(np.float64) / 9

    def score(values):  # each free phase set twice, as e^{i phi} and its mirror image's
        full = np.zeros((h, w, 3), complex)
        for k in range(h):
            for m in range(w // 2 + 1):
                mirrored = (-k % h, -m % w)
                if mirrored == (k, m):
                    full[k, m] = fixed[k, m] * np.sign(np.cos(values[k, m]))
                elif not (m in (0, w // 2) and k > h / 2):
                    full[k, m] = fixed[k, m] * np.exp(1j * values[k, m])
                    full[mirrored] = full[k, m].conj()
        z = np.fft.ifft2(full, axes=(0, 1)).real * np.sqrt(h * w)
        return (weights / (1 + np.exp(-z @ COLOURS.T))).sum()

    def ours(values):
        return (weights.astype("f4") * fv.maco().decode(values, (h, w, 3))).sum()

    start = jnp.asarray(phases, jnp.float32)
    assert float(ours(start)) == pytest.approx(score(phases), abs=1e-4)
    slope = (score(phases + 1e-5 * direction) - score(phases - 1e-5 * direction)) / 2e-5
    gradient = np.asarray(jax.grad(ours)(start))
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-3)
    idle = np.zeros((h, w // 2 + 1), bool)
    idle[np.ix_([0, *range(h // 2, h)], [0, w // 2])] = True  # own mirrors, and second halves
    assert (gradient[idle] == 0).all() and (gradient[~idle] != 0).all()


def test_every_step_of_every_optimizer_keeps_the_spectrum():
    """Phases are the only latent: however far they go, nothing else can move."""
    shape = (12, 12, 3)
    fixed = fixed_magnitude(natural(), shape)
    target = jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)

    @jax.jit
    def step(z):
        return z - 50 * jax.grad(lambda v: ((fv.maco().decode(v, shape) - target) ** 2).sum())(z)

    latent = fv.maco().init(jax.random.key(0), shape)
    assert latent.shape == (12, 7, 3)
    for _ in range(5):
        latent = step(latent)
        np.testing.assert_allclose(_magnitude_of(signal(latent, fixed, shape)), fixed, atol=2e-5)


def test_start_is_uniform_in_phase():
    latent = np.asarray(fv.maco().init(jax.random.key(1), (64, 64, 3)))
    assert -np.pi <= latent.min() and latent.max() < np.pi
    assert latent.std() == pytest.approx(np.pi / np.sqrt(3), rel=0.03)
    assert abs(latent.mean()) < 0.06


def test_channels_must_be_those_of_the_statistics():
    with pytest.raises(AuditError, match="maco: its statistics are of images with 3 channels"):
        fv.maco().decode(jnp.zeros((8, 5, 1)), (8, 8, 1))
    with pytest.raises(AuditError, match="the network takes 1"):
        _encoded(fv.maco(), np.zeros((8, 8, 1)))
