"""CPPN: against a NumPy network, lucid's constants against the numbers they stand for."""

import jax
import numpy as np
import pytest
from scipy import integrate, stats

import fvaudit as fv
from fvaudit.optvis.cppn import EVEN, ODD, coordinates
from fvaudit.records import AuditError


def _latent(channels: int, layers: int, outputs: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    sizes = [2, *[2 * channels] * layers]
    widths = [*[channels] * layers, outputs]
    return [
        {
            "weights": rng.normal(size=(n, m)).astype("f4") / 2,
            "biases": rng.normal(size=m).astype("f4"),
        }
        for n, m in zip(sizes, widths, strict=True)
    ]


def test_image_is_the_network_pixel_by_pixel():
    latent = _latent(channels=3, layers=2, outputs=4)
    image = fv.cppn(channels=3, layers=2).decode(latent, (5, 7, 4))
    root3 = 3**0.5
    for row, y in enumerate(np.linspace(-root3 * 4 / 6, root3 * 4 / 6, 5)):  # square pixels
        for column, x in enumerate(np.linspace(-root3, root3, 7)):
            v = np.array([x, y])
            for layer in latent[:-1]:
                a = np.arctan(v @ layer["weights"] + layer["biases"])
                v = np.concatenate([a / 0.67, a * a / 0.6])
            out = 1 / (1 + np.exp(-(v @ latent[-1]["weights"] + latent[-1]["biases"])))
            np.testing.assert_allclose(image[row, column], out, atol=2e-6)


def test_constants_are_root_mean_squares_under_a_normal():
    odd = integrate.quad(lambda x: np.arctan(x) ** 2 * stats.norm.pdf(x), -12, 12)[0]
    even = integrate.quad(lambda x: np.arctan(x) ** 4 * stats.norm.pdf(x), -12, 12)[0]
    assert (ODD, EVEN) == pytest.approx((odd**0.5, even**0.5), abs=0.006)  # lucid: two digits


@pytest.mark.parametrize("n", [24, 101])
def test_coordinates_have_unit_deviation_on_the_longer_side(n):
    x = coordinates(8, n)[0, :, 0]
    assert x[0] == pytest.approx(-(3**0.5)) and x[-1] == pytest.approx(3**0.5)
    assert x.std() == pytest.approx(1, abs=2 / n)  # sqrt((n + 1) / (n - 1)), exactly
    np.testing.assert_array_equal(coordinates(n, 8)[:, 0, 1], x)
    assert coordinates(1, 1).tolist() == [[[0.0, 0.0]]]


def test_same_weights_at_twice_the_size_are_the_same_picture():
    p, latent = fv.cppn(channels=3, layers=2), _latent(3, 2, 3)
    small, large = p.decode(latent, (9, 9, 3)), p.decode(latent, (17, 17, 3))
    np.testing.assert_allclose(np.asarray(large)[::2, ::2], small, atol=1e-5)


def test_start_is_lucids():
    """Grey for every key; hidden weights N(0, 1 / inputs), biases N(0, 0.1^2); 8 layers of 24."""
    start = jax.jit(lambda key: fv.cppn().init(key, (4, 4, 3)))
    latent = jax.device_get(start(jax.random.key(0, impl="rbg")))
    shapes = [layer["weights"].shape for layer in latent]
    assert shapes == [(2, 24), *[(48, 24)] * 7, (48, 3)]
    assert not latent[-1]["weights"].any() and not latent[-1]["biases"].any()
    hidden = np.concatenate([layer["weights"].ravel() for layer in latent[1:-1]])
    assert hidden.std() * 48**0.5 == pytest.approx(1, abs=0.03)
    biases = np.concatenate([layer["biases"] for layer in latent[:-1]])
    assert biases.std() == pytest.approx(0.1, rel=0.15)
    assert (np.asarray(fv.cppn().decode(latent, (4, 4, 3))) == 0.5).all()


def test_it_learns_a_disc():
    """A tenth of the start's error after some steps of gradient descent: every weight learns.

    Steps that converge: at a rate of 2 the path is chaotic, and where it stands after 600 steps
    hangs on how a processor rounds.
    """
    p, shape = fv.cppn(channels=4, layers=2), (12, 12, 1)
    y, x = np.mgrid[:12, :12] - 5.5
    target = (np.hypot(x, y)[:, :, None] < 4).astype("f4")

    def loss(z):
        return ((p.decode(z, shape) - target) ** 2).mean()

    @jax.jit
    def descend(z):
        return jax.lax.fori_loop(
            0, 600, lambda _, v: jax.tree.map(lambda a, g: a - 0.5 * g, v, jax.grad(loss)(v)), z
        )

    start = p.init(jax.random.key(0, impl="rbg"), shape)
    assert float(loss(start)) == pytest.approx(0.25)
    assert float(loss(descend(start))) < 0.025  # eight keys: 0.003 to 0.005


def test_sizes_must_be_positive():
    with pytest.raises(AuditError, match="must be >= 1, got channels=0, layers=8"):
        fv.cppn(channels=0)
    with pytest.raises(AuditError, match="got channels=24, layers=0"):
        fv.cppn(layers=0)
