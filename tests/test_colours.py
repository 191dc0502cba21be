"""Statistics of images: colours and spectrum against NumPy, sizes against Parseval."""

import jax.numpy as jnp
import numpy as np
import pytest

import fvaudit as fv
from fvaudit.optvis.colours import COLOURS, fitted_root, root, to_image, to_latent
from fvaudit.optvis.natural import LEVEL, natural, radial, resampled
from fvaudit.records import AuditError


def _images(n: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    mix = np.random.default_rng(9).uniform(0.2, 1, (shape[2], shape[2])) + np.eye(shape[2])
    z = np.random.default_rng(seed).normal(size=(n, *shape)) @ mix.T
    return (1 / (1 + np.exp(-z / 2))).astype(np.float32)


def _sampled(size: tuple[int, int], n: int = 3) -> np.ndarray:
    """The same trigonometric polynomials (up to 3 cycles) seen by cameras of different size."""
    rng = np.random.default_rng(1)
    y, x = (np.arange(s)[:, None] / s for s in size)
    waves = [(k, m) for k in range(-3, 4) for m in range(4)]
    total = np.zeros((n, *size, 2))
    for k, m in waves:
        phase = 2 * np.pi * (k * y + m * x.T)[None, :, :, None]
        a, b = rng.normal(size=(2, n, 1, 1, 2)) / (1 + k**2 + m**2)
        total += a * np.cos(phase) + b * np.sin(phase)
    return 1 / (1 + np.exp(-total))


def _energy(magnitude: np.ndarray, w: int) -> np.ndarray:
    """Sum of squares over the full spectrum, from the half that a real image needs."""
    columns = np.arange(w // 2 + 1)
    twice = np.where((columns == 0) | (2 * columns == w), 1, 2)
    return (twice[None, :, None] * magnitude.astype(np.float64) ** 2).sum(axis=(0, 1))


def test_colour_matrix_is_lucids_divided_by_its_largest_column_norm():
    lucid = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    norm = np.sqrt((lucid**2).sum(0)).max()
    np.testing.assert_allclose(COLOURS, lucid / norm, rtol=1e-6)
    assert norm == pytest.approx(0.461952, abs=1e-6)
    # as printed by MACO's authors (their rows are our columns), four decimals
    theirs = [[0.5628, 0.5845, 0.5845], [0.1948, 0.0, -0.1948], [0.0433, -0.1082, 0.0649]]
    np.testing.assert_allclose(COLOURS.T, theirs, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channel_counts_are_left_alone(channels):
    np.testing.assert_array_equal(root(channels, decorrelate=True), np.eye(channels))


def test_colours_there_and_back():
    image = _images(1, (5, 6, 3))[0]
    z = np.log(image / (1 - image.astype(np.float64))) @ np.linalg.inv(COLOURS.T.astype(np.float64))
    np.testing.assert_allclose(to_latent(jnp.asarray(image), COLOURS), z, atol=2e-5)
    np.testing.assert_allclose(to_image(jnp.asarray(z, jnp.float32), COLOURS), image, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_fitted_colours_are_a_root_of_numpys_covariance(channels):
    images = _images(5, (9, 8, channels))
    fitted = fv.fit_statistics(images).colours
    covariance = np.cov(images.astype(np.float64).reshape(-1, channels), rowvar=False)
    covariance = np.atleast_2d(covariance)
    largest = np.linalg.eigvalsh(covariance)[-1]  # the largest squared column norm of a root
    np.testing.assert_allclose(fitted @ fitted.T, covariance / largest, atol=1e-6)
    norms = np.linalg.norm(fitted, axis=0)
    assert norms[0] == pytest.approx(1, abs=1e-6) and (np.diff(norms) <= 0).all()
    assert (np.take_along_axis(fitted, np.abs(fitted).argmax(0)[None], 0) > 0).all()


def test_a_known_covariance_gives_a_known_root():
    np.testing.assert_allclose(
        fitted_root(np.array([[4.0, 0.0], [0.0, 9.0]])), [[0, 2 / 3], [1, 0]], atol=1e-12
    )


@pytest.mark.parametrize("size", [(8, 10), (9, 7), (6, 5)], ids=str)
def test_magnitude_is_numpys_mean_over_images(size):
    images = _images(4, (*size, 3))
    images[0, 0, 0] = [0, 1, 0.5]  # black and white have no finite latent: half a grey level inside
    statistics = fv.fit_statistics(images)
    inside = np.clip(images.astype(np.float64), 1 / 512, 511 / 512)
    root64 = statistics.colours.astype(np.float64)
    z = np.einsum("ij,nhwj->nhwi", np.linalg.inv(root64), np.log(inside / (1 - inside)))
    expected = np.abs(np.fft.fft2(z, axes=(1, 2))).mean(0)[:, : size[1] // 2 + 1]
    expected /= np.sqrt(size[0] * size[1])
    np.testing.assert_allclose(statistics.magnitude, expected, rtol=1e-5, atol=1e-6)
    assert statistics.n == 4 and statistics.shape == (*size, 3) and LEVEL == 1 / 512


def test_parseval_of_one_image():
    image = _images(1, (9, 10, 2))[0]
    statistics = fv.fit_statistics(np.stack([image, image]), colours=np.eye(2))
    z = np.log(image / (1 - image.astype(np.float64)))
    measured = _energy(statistics.magnitude, 10) / 90
    np.testing.assert_allclose(measured, (z**2).mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (15, 13), (24, 18), (11, 30)], ids=str)
def test_resampled_is_what_other_cameras_measure(size):
    """No photograph has detail beyond either size here, so the resampled spectrum is exact."""
    stored = fv.fit_statistics(_sampled((14, 12)), colours=np.eye(2))
    measured = fv.fit_statistics(_sampled(size), colours=np.eye(2))
    found = resampled(stored, (*size, 2))
    assert found.shape == measured.magnitude.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, measured.magnitude, atol=2e-5)
    variance = _energy(found, size[1]) / np.prod(size)
    np.testing.assert_allclose(variance, _energy(stored.magnitude, 12) / (14 * 12), rtol=1e-4)


def test_beyond_the_stored_size_the_spectrum_falls_as_one_over_f():
    found = resampled(natural(), (448, 448, 3))
    own = natural().magnitude * 2  # sqrt(448^2 / 224^2)
    np.testing.assert_allclose(found[:112, :113], own[:112], rtol=1e-6)
    np.testing.assert_allclose(found[0, 224], own[0, 112] / 2, rtol=1e-6)
    np.testing.assert_allclose(found[200, 200], own[112, 112] * 112 / 200, rtol=1e-6)
    np.testing.assert_allclose(found[-200, 100], own[-112, 56] * 112 / 200, rtol=1e-6)


def test_photographs_spectrum_predicts_nearly_the_same_contrast_at_every_size():
    def contrast(h, w):
        magnitude = resampled(natural(), (h, w, 3)).copy()
        magnitude[0, 0] = 0
        return np.sqrt(_energy(magnitude, w) / (h * w))

    at_224 = contrast(224, 224)
    assert ((1.5 < at_224) & (at_224 < 2.5)).all()  # 2.05, 1.75, 1.88 as measured
    for h, w in [(448, 448), (160, 160), (112, 96), (64, 64), (33, 32)]:
        ratio = contrast(h, w) / at_224
        assert ((0.8 < ratio) & (ratio < 1.1)).all()  # what is lost is detail too fine for the size


def test_radial_of_an_isotropic_power_law_is_the_power_law():
    f = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None])
    law = 1 / np.maximum(f, 1 / 64)
    made = fv.ImageStatistics((64, 64, 1), np.eye(1), 7 * law[:, :, None], 2)
    found = radial(made, (64, 64, 1))[:, :, 0]
    np.testing.assert_allclose(found, law, rtol=0.5)  # rings are one cycle wide
    assert np.median(np.abs(found / law - 1)) < 0.02
    assert (found**2).mean() == pytest.approx((law**2).mean(), rel=1e-5)


def test_radial_stays_finite_where_images_have_nothing():
    stored = fv.fit_statistics(_sampled((14, 12)), colours=np.eye(2))
    found = radial(stored, (32, 32, 2))
    assert np.isfinite(1 / found).all() and (found > 0).all()


def test_packaged_spectrum_is_small_mirrored_and_of_photographs():
    found = natural()
    assert found.n == 1000 and found.shape == (224, 224, 3) and found is natural()
    np.testing.assert_array_equal(found.colours, COLOURS)
    np.testing.assert_array_equal(found.magnitude[1:], found.magnitude[:0:-1])
    f = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224)[None])
    band = (f >= 2 / 224) & (f <= 0.25)
    for channel in range(3):  # experiments/spectrum: 1.23, 1.20, 1.07
        slope = np.polyfit(np.log(f[band]), np.log(found.magnitude[band, channel]), 1)[0]
        assert -1.3 < slope < -1.0


def test_statistics_are_equal_by_content_and_cannot_be_changed():
    a, b, c = (fv.fit_statistics(_images(3, (6, 6, 3), seed)) for seed in (0, 0, 1))
    assert a == b and hash(a) == hash(b) and a != c and a != "a"
    assert str(a) == f"ImageStatistics(n=3, shape=(6, 6, 3), digest='{a.digest}')"
    assert a.digest != c.digest and len(a.digest) == 12
    with pytest.raises(ValueError, match="read-only"):
        a.magnitude[0] = 0


def test_images_are_made_one_at_a_time():
    made = []

    class Lazy(list):
        def __getitem__(self, number):
            made.append(number)
            return _images(1, (6, 6, 3), seed=number)[0]

    lazy = fv.fit_statistics(Lazy(range(4)))
    # twice in order; the type checker of the tests looks at some more before and after
    assert "001230123" in "".join(map(str, made))
    assert lazy == fv.fit_statistics(np.concatenate([_images(1, (6, 6, 3), s) for s in range(4)]))


def test_bad_images_are_refused():
    images = _images(3, (6, 6, 3))
    with pytest.raises(AuditError, match="two images or more, got 1"):
        fv.fit_statistics(images[:1])
    with pytest.raises(AuditError, match=r"shape \(h, w, c\), got \(6, 3\)"):
        fv.fit_statistics(list(images[0]))
    with pytest.raises(AuditError, match=r"image 1 has shape \(5, 6, 3\), the first"):
        fv.fit_statistics([images[0], images[1, :5]])
    with pytest.raises(AuditError, match=r"image 1 must lie in \[0, 1\], got \[0, 255"):
        fv.fit_statistics([images[0], np.arange(256, step=2.3790)[:108].round().reshape(6, 6, 3)])
    with pytest.raises(AuditError, match=r"image 2 must lie in \[0, 1\], got \[nan"):
        fv.fit_statistics([*images[:2], np.full((6, 6, 3), np.nan)])


def test_channels_that_do_not_vary_are_refused():
    grey = np.repeat(_images(3, (6, 6, 1)), 3, axis=3)
    with pytest.raises(AuditError, match="do not vary independently"):
        fv.fit_statistics(grey)
    flat = np.full((2, 4, 4, 1), 0.5)
    with pytest.raises(AuditError, match="do not vary independently"):
        fv.fit_statistics(flat)
    with pytest.raises(AuditError, match="same value in every pixel"):
        fv.fit_statistics(flat, colours=np.eye(1))
    with pytest.raises(AuditError, match=r"must have shape \(3, 3\).*got \(2, 2\)"):
        fv.fit_statistics(_images(2, (4, 4, 3)), colours=np.eye(2))


def test_records_that_do_not_fit_together_are_refused():
    with pytest.raises(AuditError, match=r"magnitude of images \(4, 4, 1\).*got shape \(4, 2, 1\)"):
        fv.ImageStatistics((4, 4, 1), np.eye(1), np.ones((4, 2, 1)), 2)
    with pytest.raises(AuditError, match="colours of images"):
        fv.ImageStatistics((4, 4, 1), np.full((1, 1), np.inf), np.ones((4, 3, 1)), 2)
