"""Winograd equals lax's convolution for every tile, piece by piece, and its kernels can be held."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from fvaudit.optvis import hoisting
from fvaudit.optvis.lowering import winograd


module = importlib.import_module("fvaudit.optvis.lowering.winograd")  # the name is the function's
TILES = [(3, 2), (3, 3), (3, 4), (5, 2), (5, 3)]  # (kernel, tile)
PADS = ((1, 2), (0, 3))


def _stock(x, kernel, pads):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _draw(shape, kernel_shape, dtype):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, kernel_shape))


def _both(function, x, kernel):
    """The value, and the gradient of half its squared norm."""

    def call(x, kernel):
        value, pull = jax.vjp(lambda x: function(x, kernel), x)
        return value, pull(value)[0]

    return jax.jit(call)(x, kernel)


@pytest.mark.parametrize("r, m", TILES)
def test_matrices_multiply_polynomials(r, m):
    into, weigh, out = module.matrices(m, r)
    signal, taps = np.random.default_rng(1).standard_normal((2, m + r - 1))
    got = out @ ((weigh @ taps[:r]) * (into @ signal))
    np.testing.assert_allclose(got, np.correlate(signal, taps[:r]), atol=1e-13)


@pytest.mark.parametrize("cache", [1 << 24, 9000], ids=["whole", "pieces"])
@pytest.mark.parametrize("r, m", TILES)
def test_every_tile_equals_lax(r, m, cache, monkeypatch):
    monkeypatch.setattr(module, "_CACHE", cache)
    with jax.enable_x64(True):
        for n in (1, 2):
            x, kernel = _draw((n, 11, 9, 5), (r, r, 5, 6), float)
            value, slope = _both(lambda x, k: winograd(x, k, PADS, m, m), x, kernel)
            want, slope_want = _both(lambda x, k: _stock(x, k, PADS), x, kernel)
            np.testing.assert_allclose(value, want, atol=1e-12)
            np.testing.assert_allclose(slope, slope_want, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("r, m", TILES)
def test_float32_keeps_five_digits(r, m):
    x, kernel = _draw((1, 20, 20, 32), (r, r, 32, 32), jnp.float32)
    exact = np.asarray(_stock(x, kernel, PADS))
    got = np.asarray(jax.jit(lambda x, k: winograd(x, k, PADS, m, m))(x, kernel))
    assert np.abs(got - exact).max() < 2e-5 * np.abs(exact).max()


def test_serves_under_jit_vmap_and_shard_map():
    x, kernel = _draw((2, 1, 8, 8, 4), (3, 3, 4, 4), jnp.float32)

    def slope(f):
        return jax.vmap(jax.grad(lambda x: (f(x) ** 2).sum()))

    expected = slope(lambda x: _stock(x, kernel, PADS))(x)
    ours = slope(lambda x: winograd(x, kernel, PADS, 2, 4))
    mesh, spec = Mesh(np.array(jax.devices()[:1]), "d"), PartitionSpec("d")
    mapped = jax.shard_map(ours, mesh=mesh, in_specs=spec, out_specs=spec)
    for f in (ours, mapped):
        np.testing.assert_allclose(jax.jit(f)(x), expected, rtol=1e-3, atol=2e-3)


def test_transformed_kernels_are_held():
    x, kernel = _draw((1, 8, 8, 3), (3, 3, 3, 7), jnp.float32)

    def slope(kernel, x):
        return jax.grad(lambda x: (winograd(x, kernel, PADS, 2, 4) ** 2).sum())(x)

    held, rest = hoisting.split(slope, kernel, x)
    assert {h.shape for h in held} == {(16, 3, 7), (36, 7, 3)}
    np.testing.assert_allclose(rest(held, x), slope(kernel, x), rtol=1e-5, atol=1e-4)
