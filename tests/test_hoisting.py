"""Hoisting: same values, and the loop really holds what does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis.hoisting import split


PARAMS = {"a": jnp.arange(12.0).reshape(3, 4) / 7, "b": jnp.arange(4.0)}
X = jnp.linspace(-1, 1, 6).reshape(2, 3)


@jax.jit
def _squared(a):
    return a.T @ a


def _step(params, x, t):
    kernel = params["a"] @ _squared(params["a"])  # depends on parameters alone
    y = jnp.tanh(x @ kernel + params["b"])
    return {"loss": (y**2).sum() * t, "shape": y.shape[0], "y": y}


def _rest(function, params, *varying):
    """The jaxpr that would run at every step."""
    held, rest = split(function, params, *varying)
    return jax.make_jaxpr(lambda h, *v: rest(h, *v))(held, *varying).jaxpr


def _primitives(jaxpr):
    return [e.primitive.name for e in jaxpr.eqns]


def test_split_changes_no_value():
    held, rest = split(_step, PARAMS, X, 2.0)
    for x, t in ((X, 2.0), (X + 1, -3.0)):
        got, want = rest(held, x, t), _step(PARAMS, x, t)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_products_of_parameters_leave_the_loop_even_from_inside_jitted_calls():
    assert _primitives(_rest(_step, PARAMS, X, 2.0)).count("dot_general") == 1
    direct = jax.make_jaxpr(_step)(PARAMS, X, 2.0).jaxpr
    assert _primitives(direct).count("dot_general") == 2  # and one more inside the jitted call


def test_gradients_of_custom_rules_are_split_too():
    @jax.custom_vjp
    def product(x, w):
        return x @ (w @ w.T)

    product.defvjp(
        lambda x, w: (product(x, w), (w, w @ w.T)),
        lambda saved, g: (g @ saved[1].T, jnp.zeros_like(saved[0])),
    )

    def slope(w, x):
        return jax.grad(lambda x: (product(x, w) ** 2).sum())(x)

    square = jnp.eye(3) + 0.1
    held, rest = split(slope, square, X)
    np.testing.assert_allclose(rest(held, X), slope(square, X), rtol=1e-6)
    # x @ held, and its gradient; of the products of parameters, none
    assert _primitives(_rest(slope, square, X)).count("dot_general") == 2


def test_broadcasts_and_constants_stay_in_the_loop():
    def step(params, x):
        wide = jnp.broadcast_to(params["b"], (100, 4)) + jnp.ones((100, 4))
        return wide * x

    held, rest = split(step, PARAMS, jnp.ones((100, 4)))
    assert sum(h.size for h in held) <= 4
    np.testing.assert_allclose(
        rest(held, 2 * jnp.ones((100, 4))), 2 * (PARAMS["b"] + 1) * jnp.ones((100, 1))
    )


def test_what_nobody_reads_is_not_held():
    def step(params, x):
        _ = params["a"] @ params["a"].T  # dead
        return x + params["b"][0]

    held, _ = split(step, PARAMS, 1.0)
    assert [h.size for h in held] == [1] or [h.size for h in held] == [4]


def test_it_works_inside_a_jitted_loop():
    @jax.jit
    def run(params, x):
        held, rest = split(lambda p, x: x + 0.1 * jnp.tanh(x @ _squared(p["a"])), params, x)
        return jax.lax.fori_loop(0, 5, lambda _, x: rest(held, x), x)

    x = jnp.ones((2, 4))
    want = x
    for _ in range(5):
        want = want + 0.1 * jnp.tanh(want @ (PARAMS["a"].T @ PARAMS["a"]))
    np.testing.assert_allclose(run(PARAMS, x), want, rtol=1e-5)


@pytest.mark.parametrize("name", ["cos", "argsort"])
def test_unused_parameters_and_integer_outputs(name):
    def step(params, x):
        return getattr(jnp, name)(x)

    held, rest = split(step, PARAMS, X)
    assert held == []
    np.testing.assert_array_equal(rest(held, X), getattr(jnp, name)(X))
