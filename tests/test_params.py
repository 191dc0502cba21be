"""Parameterizations: the contract that every one keeps, round trips, constants, closed forms."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fvaudit as fv
from fvaudit.optvis.params import Parameterization
from fvaudit.records import AuditError


def _photographs(n: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Random smooth pictures whose channels are correlated, in [0, 1]."""
    rng = np.random.default_rng(seed)
    h, w, c = shape
    noise = rng.normal(size=(n, h, w, c)) @ (np.eye(c) + 0.5)
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])[None, :, :, None]
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) / np.maximum(f, 1 / max(h, w))
    return (1 / (1 + np.exp(-np.fft.irfft2(spectrum, s=(h, w), axes=(1, 2)) / 3))).astype("f4")


MINE = fv.fit_statistics(_photographs(6, (12, 14, 3)))
GREY, FIVE = (fv.fit_statistics(_photographs(6, (12, 14, c), seed=c)) for c in (1, 5))
# keys of the generator that compiles in a fifth of the default one's time
KEYS = jax.random.split(jax.random.key(3, impl="rbg"), 30)
EVEN, ODD, TALL = (16, 14, 3), (15, 17, 3), (16, 9, 3)

# (parameterization, shapes it is tried at): whoever adds a factory adds rows here
TABLE: list[tuple[Parameterization, list[tuple[int, int, int]]]] = [
    (fv.pixels(), [EVEN, (8, 9, 4)]),
    (fv.pixels(decorrelate=False), [EVEN]),
    (fv.pixels(statistics=MINE), [EVEN]),
    (fv.fourier(), [EVEN, ODD, (8, 8, 1), (7, 8, 5)]),
    (fv.fourier(sd=0.1, decay=0.5), [TALL]),
    (fv.fourier(decay=None, statistics=MINE), [TALL]),
    (fv.maco(), [EVEN, ODD]),
    (fv.maco(statistics=MINE), [TALL]),
    (fv.maco(statistics=GREY), [(15, 16, 1)]),
    (fv.maco(statistics=FIVE), [(8, 7, 5)]),
    (fv.cppn(channels=5, layers=2), [EVEN, (8, 9, 1)]),
    (fv.with_alpha(fv.fourier()), [(8, 9, 1)]),
    (fv.with_alpha(fv.maco()), [EVEN]),
    (fv.with_alpha(fv.cppn(channels=4, layers=1), opacity=0.9), [EVEN]),
]
PAIRS = [(p, shape) for p, shapes in TABLE for shape in shapes]
# those whose encode inverts decode for every image, not only for images that decode makes
COMPLETE = [(p, shape) for p, shape in PAIRS if p.encode and "maco" not in p.text]
PLAIN = [(p, shape) for p, shape in PAIRS if "digest" not in p.text and shape == EVEN]


def _named(value) -> str:
    return str(getattr(value, "text", value))


@functools.cache
def _start(p: Parameterization, shape: tuple[int, int, int]):
    """The compiled map from a key to the first image."""
    return jax.jit(lambda key: p.decode(p.init(key, shape), shape))


class Trial(NamedTuple):
    """What the contract asks about one row."""

    latent: Any  # of one key
    other: Any  # of another
    image: np.ndarray  # decode(latent)
    gradient: Any  # of a random weighting of the image
    returned: np.ndarray  # decode(encode(given))
    given: np.ndarray


@functools.cache
def _tried(p: Parameterization, shape: tuple[int, int, int]) -> Trial:
    rng = np.random.default_rng(0)
    given = rng.uniform(0.05, 0.95, (*shape[:2], shape[2] + p.alpha)).astype("f4")
    weights = rng.normal(size=given.shape).astype("f4")

    @jax.jit  # once for all tests of the row
    def everything():
        starts = jax.vmap(lambda key: p.init(key, shape))(KEYS[:2])
        latent, other = (jax.tree.map(operator.itemgetter(k), starts) for k in (0, 1))
        gradient = jax.grad(lambda z: (weights * p.decode(z, shape)).sum())(latent)
        returned = p.decode(p.encode(jnp.asarray(given)), shape) if p.encode else given
        return latent, other, p.decode(latent, shape), gradient, returned

    latent, other, image, gradient, returned = jax.device_get(everything())
    return Trial(latent, other, image, gradient, returned, given)


@pytest.mark.parametrize("p, shape", PAIRS, ids=_named)
def test_start_is_an_image_in_range_near_grey(p, shape):
    image = _tried(p, shape).image
    h, w, c = shape
    assert image.shape == (h, w, c + p.alpha) and image.dtype == np.float32
    assert 0 <= image.min() and image.max() <= 1
    assert abs(float(image[:, :, :c].mean()) - 0.5) < 0.05


@pytest.mark.parametrize("p, shape", PAIRS, ids=_named)
def test_start_differs_between_keys_in_every_part_that_has_noise(p, shape):
    trial = _tried(p, shape)
    pairs = list(zip(*map(jax.tree.leaves, (trial.latent, trial.other)), strict=True))
    assert all(a.dtype == np.float32 for a, _ in pairs)
    assert all(a.any() == (not np.array_equal(a, b)) for a, b in pairs)
    assert any(a.any() for a, _ in pairs)


@pytest.mark.parametrize("p, shape", PAIRS, ids=_named)
def test_gradient_is_finite_and_not_nothing(p, shape):
    leaves = jax.tree.leaves(_tried(p, shape).gradient)
    assert all(np.isfinite(g).all() for g in leaves)
    assert sum(np.abs(g).sum() for g in leaves) > 0


@pytest.mark.parametrize("p, shape", PLAIN, ids=_named)
def test_uncompiled_and_again_and_several_at_once_are_the_same(p, shape):
    trial = _tried(p, shape)
    start = jax.jit(lambda key: p.init(key, shape))
    starts = [jax.tree.leaves(start(KEYS[0])) for _ in range(2)]
    assert [x.tobytes() for x in starts[0]] == [x.tobytes() for x in starts[1]]
    np.testing.assert_allclose(p.decode(trial.latent, shape), trial.image, atol=2e-6)
    both = jax.tree.map(lambda *z: jnp.stack(z), trial.other, trial.latent)
    images = jax.jit(jax.vmap(lambda z: p.decode(z, shape)))(both)
    np.testing.assert_allclose(images[1], trial.image, atol=2e-6)


@pytest.mark.parametrize("p, shape", COMPLETE, ids=_named)
def test_round_trip_image_latent_image(p, shape):
    trial = _tried(p, shape)
    np.testing.assert_allclose(trial.returned, trial.given, atol=1e-5)


@pytest.mark.parametrize("p", [fv.pixels(), fv.fourier(), fv.with_alpha(fv.pixels())])
def test_black_and_white_survive_the_round_trip(p):
    image = jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, 9, 3 + p.alpha)), jnp.float32)
    np.testing.assert_allclose(p.decode(p.encode(image), (8, 9, 3)), image, atol=1e-3)


def test_a_network_of_coordinates_has_no_inverse():
    assert fv.cppn().encode is None and fv.with_alpha(fv.cppn()).encode is None


@pytest.mark.parametrize("p", [p for p, _ in TABLE if "digest" not in p.text], ids=lambda p: p.text)
def test_text_makes_the_same_object_again(p):
    names = {
        name: getattr(fv, name) for name in ("pixels", "fourier", "maco", "cppn", "with_alpha")
    }
    assert eval(p.text, names).text == p.text


def test_texts_differ():
    assert len({p.text for p, _ in TABLE}) == len(TABLE)
    assert f"statistics={MINE}" in fv.fourier(statistics=MINE).text


def test_factories_are_cached_so_nothing_is_traced_twice():
    assert fv.fourier() is fv.fourier() and fv.pixels(sd=0.02) is fv.pixels(sd=0.02)
    same = fv.ImageStatistics(MINE.shape, MINE.colours, MINE.magnitude, MINE.n)
    assert fv.fourier(statistics=MINE) is fv.fourier(statistics=same)
    assert fv.maco(statistics=MINE) is fv.maco(statistics=same)
    assert fv.with_alpha(fv.maco()) is fv.with_alpha(fv.maco())


@pytest.mark.parametrize("h, w", [(16, 16), (12, 20)])
def test_fourier_is_lucids_formula(h, w):
    """Plain NumPy of lucid's param.fft_image and to_valid_rgb, with its own scale factor."""
    latent = np.random.default_rng(0).normal(0, 0.5, (2, h, w // 2 + 1, 3)).astype(np.float32)
    f = np.sqrt(np.fft.fftfreq(h)[:, None] ** 2 + np.fft.fftfreq(w)[None, : w // 2 + 1] ** 2)
    scale = np.sqrt(w * h) / np.maximum(f, 1.0 / max(w, h))
    z = np.fft.irfft2(scale[:, :, None] * (latent[0] + 1j * latent[1]), axes=(0, 1)) / 4.0
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    root /= np.max(np.linalg.norm(root, axis=0))
    expected = 1 / (1 + np.exp(-np.dot(z.reshape(-1, 3), root.T).reshape(h, w, 3)))
    np.testing.assert_allclose(fv.fourier().decode(latent, (h, w, 3)), expected, atol=2e-6)


def test_one_spectral_line_is_a_cosine():
    h, w = 8, 8
    latent = np.zeros((2, h, w // 2 + 1, 3), np.float32)
    latent[0, 0, 2] = 3.0  # horizontal frequency 2 / 8 in every colour
    image = fv.fourier(decorrelate=False).decode(jnp.asarray(latent), (h, w, 3))
    # irfft2 of one line: 2 * value / sqrt(h w) * cos; scale 1 / f; lucid's division by 4
    wave = 2 * 3.0 / (2 / 8) / np.sqrt(h * w) / 4 * np.cos(2 * np.pi * 2 * np.arange(w) / w)
    expected = 1 / (1 + np.exp(-wave))
    np.testing.assert_allclose(
        image, np.broadcast_to(expected[None, :, None], (h, w, 3)), atol=1e-6
    )


def test_parseval_of_the_fourier_start():
    """At decay 0 the transform is orthonormal: pixel variance is the spectrum's, over 4 squared."""
    p, shape = fv.fourier(sd=1.0, decay=0.0, decorrelate=False), (32, 32, 3)
    images = [_start(p, shape)(key) for key in KEYS]
    z = np.log(np.stack(images)) - np.log1p(-np.stack(images))
    # real and imaginary parts both have variance 1, so E|s|^2 = 2
    assert np.var(z) * 16 == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("factory", [fv.pixels, fv.fourier])
def test_channels_without_a_measurement_are_the_sigmoid_alone(factory):
    key, p, plain = KEYS[0], factory(), factory(decorrelate=False)
    for shape in [(8, 6, 1), (8, 6, 4)]:
        np.testing.assert_array_equal(_start(p, shape)(key), _start(plain, shape)(key))
    assert not np.array_equal(_start(p, (8, 6, 3))(key), _start(plain, (8, 6, 3))(key))


def test_fitted_colours_are_used():
    z = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    expected = 1 / (1 + np.exp(-np.einsum("ij,hwj->hwi", MINE.colours, z)))
    image = fv.pixels(statistics=MINE).decode(jnp.asarray(z), (4, 5, 3))
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_fitted_spectrum_starts_with_the_energy_of_one_over_f():
    mine = fv.fourier(sd=0.5, decay=None, statistics=MINE)
    law, shape = fv.fourier(sd=0.5, statistics=MINE), (24, 24, 3)

    def energy(p):
        images = np.stack([_start(p, shape)(key) for key in KEYS])
        return np.var((np.log(images) - np.log1p(-images)) @ np.linalg.inv(MINE.colours.T))

    assert energy(mine) == pytest.approx(energy(law), rel=0.15)


@pytest.mark.parametrize("sd", [0.0, -1.0, float("nan")])
def test_sd_must_be_positive(sd):
    with pytest.raises(AuditError, match="sd must be > 0"):
        fv.fourier(sd=sd)
    with pytest.raises(AuditError, match="sd must be > 0"):
        fv.pixels(sd=sd)


def test_decay_must_not_be_negative_or_missing():
    with pytest.raises(AuditError, match="decay must be >= 0, got -1"):
        fv.fourier(decay=-1.0)
    with pytest.raises(AuditError, match="decay must be >= 0, got nan"):
        fv.fourier(decay=float("nan"))
    with pytest.raises(AuditError, match="decay=None takes the spectrum of statistics"):
        fv.fourier(decay=None)


@pytest.mark.parametrize("factory", [fv.pixels, fv.fourier])
def test_statistics_must_fit(factory):
    with pytest.raises(AuditError, match="decorrelate=False forbids them"):
        factory(decorrelate=False, statistics=MINE)
    p = factory(statistics=MINE)
    with pytest.raises(AuditError, match="images with 3 channels, the network takes 1"):
        _start(p, (8, 8, 1))(KEYS[0])


def test_start_opacity_is_the_one_asked_for():
    p = fv.with_alpha(fv.pixels(), opacity=0.8)
    alpha = np.asarray(_start(p, (32, 32, 3))(KEYS[0]))[:, :, 3]
    assert float(alpha.mean()) == pytest.approx(0.8, abs=0.01)
    assert float(alpha.std()) > 0


def test_opacity_leaves_the_colours_alone():
    trial = _tried(fv.with_alpha(fv.maco()), EVEN)
    base = fv.maco().decode(trial.latent["image"], EVEN)
    np.testing.assert_allclose(trial.image[:, :, :3], base, atol=2e-6)


def test_opacity_needs_a_base_without_and_a_value_between():
    with pytest.raises(AuditError, match="has an opacity channel already"):
        fv.with_alpha(fv.with_alpha(fv.pixels()))
    for opacity in (0.0, 1.0, float("nan")):
        with pytest.raises(AuditError, match=r"must lie inside \(0, 1\)"):
            fv.with_alpha(fv.pixels(), opacity=opacity)
