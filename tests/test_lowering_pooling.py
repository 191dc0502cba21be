"""Max pooling and response norm equal lax's own value and gradient, ties included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from fvaudit.optvis import lowering


# (rows, columns, channels, window, strides, pads)
POOLS = [
    (14, 14, 5, (3, 3), (2, 2), ((0, 1), (0, 1))),
    (15, 12, 3, (3, 3), (2, 2), ((1, 1), (1, 1))),
    (9, 11, 4, (3, 3), (1, 1), ((1, 1), (1, 1))),
    (12, 12, 2, (2, 2), (2, 2), ((0, 0), (0, 0))),
    (13, 10, 3, (3, 3), (2, 2), ((0, 0), (0, 0))),  # rows that no window reads
    (11, 16, 2, (2, 3), (3, 4), ((0, 1), (1, 2))),  # a stride beyond the window
    (10, 10, 2, (5, 4), (2, 3), ((2, 2), (1, 3))),
    (8, 8, 2, (12, 12), (1, 1), ((5, 6), (5, 6))),  # more taps than an int8 can number
]


def _stock_pool(x, window, strides, pads):
    dims, steps = (1, *window, 1), (1, *strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, dims, steps, ((0, 0), *pads, (0, 0)))


def _pictures(kind, shape, rng):
    """Random; or tied as networks tie: after a ReLU, after a pool, or all equal."""
    x = rng.standard_normal(shape)
    if kind == "rectified":
        return jnp.asarray(np.maximum(np.round(x), 0))
    if kind == "pooled":
        return _stock_pool(jnp.asarray(x), (3, 3), (1, 1), ((1, 1), (1, 1)))
    return jnp.asarray(x if kind == "random" else np.zeros(shape))


def _assert_same(ours, stock, x, rng, **tolerance):
    def both(function):
        def call(x, g):
            value, pull = jax.vjp(function, x)
            return value, pull(g)[0]

        return jax.jit(call)

    g = jnp.asarray(rng.standard_normal(jax.eval_shape(stock, x).shape), x.dtype)
    for got, want in zip(both(ours)(x, g), both(stock)(x, g), strict=True):
        np.testing.assert_allclose(got, want, **tolerance)


@pytest.mark.parametrize("kind", ["random", "rectified", "pooled", "equal"])
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_max_pool_equals_lax(case, kind):
    h, w, c, window, strides, pads = case
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = _pictures(kind, (2, h, w, c), rng)
        ours = partial(lowering.max_pool, window=window, strides=strides, pads=pads)
        stock = partial(_stock_pool, window=window, strides=strides, pads=pads)
        _assert_same(ours, stock, x, rng, rtol=1e-12, atol=1e-12)


def test_max_pool_equals_lax_for_drawn_settings():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for _ in range(12):
            window, strides, size = (_pair(rng.integers(*r, 2)) for r in ((1, 5), (1, 5), (5, 14)))
            pads = _pair(rng.integers(0, window[0], 2)), _pair(rng.integers(0, window[1], 2))
            x = _pictures("rectified", (1, *size, 2), rng)
            ours = partial(lowering.max_pool, window=window, strides=strides, pads=pads)
            stock = partial(_stock_pool, window=window, strides=strides, pads=pads)
            _assert_same(ours, stock, x, rng, rtol=1e-12, atol=1e-12)


def _pair(values) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


NORMS = [  # size, alpha, beta, k
    (5, 1e-4, 0.75, 1.0),
    (5, 2.0, 0.75, 1.0),
    (9, 9e-4, 0.5, 1.0),
    (4, 0.5, 0.6, 2.0),
    (1, 1.0, 0.75, 1.0),
]


def _stock_norm(x, size, alpha, beta, k):
    """lucid's and TensorFlow's definition, channel by channel in a padded copy."""
    below = (size - 1) // 2
    padded = jnp.pad(x * x, ((0, 0),) * 3 + ((below, size - 1 - below),))
    energy = jnp.stack([padded[..., c : c + size].sum(-1) for c in range(x.shape[-1])], axis=-1)
    return x * (k + alpha / size * energy) ** -beta


@pytest.mark.parametrize("settings", NORMS, ids=str)
@pytest.mark.parametrize("channels", [3, 20])
def test_response_norm_equals_its_definition(settings, channels):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x = jnp.asarray(10 * rng.standard_normal((2, 4, 5, channels)))
        ours = lambda x: lowering.local_response_norm(x, *settings)  # noqa: E731
        _assert_same(ours, lambda x: _stock_norm(x, *settings), x, rng, rtol=1e-12, atol=1e-12)


@pytest.mark.extras
def test_response_norm_equals_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).standard_normal((1, 3, 4, 11)).astype(np.float32) * 20
    expected = torch.nn.functional.local_response_norm(
        torch.tensor(x.transpose(0, 3, 1, 2)), 5, alpha=0.1, beta=0.75, k=1.0
    )
    got = lowering.local_response_norm(jnp.asarray(x), 5, 0.1, 0.75, 1.0)
    np.testing.assert_allclose(got, expected.numpy().transpose(0, 2, 3, 1), rtol=2e-6)


RULES = {"pool": lowering.max_pool, "norm": lowering.local_response_norm}
STOCK = {
    "pool": lambda x: _stock_pool(x, (3, 3), (2, 2), ((0, 1), (0, 1))),
    "norm": lambda x: _stock_norm(x, 5, 1e-4, 0.75, 1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_serve_under_jit_vmap_and_shard_map(name):
    x = np.random.default_rng(4).standard_normal((2, 1, 8, 8, 6)).astype(np.float32)

    def slope(f):
        return jax.vmap(jax.grad(lambda x: (f(x) ** 2).sum()))

    expected = slope(STOCK[name])(x)
    mesh, spec = Mesh(np.array(jax.devices()[:1]), "d"), PartitionSpec("d")
    mapped = jax.shard_map(slope(RULES[name]), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(slope(RULES[name]))(x), expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(mapped)(x), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_backends_without_a_rule_keep_the_stock_lowering(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    primitives = str(jax.make_jaxpr(RULES[name])(jnp.zeros((1, 8, 8, 6))))
    assert "reduce_window" in primitives
    assert "custom_vjp" not in primitives
