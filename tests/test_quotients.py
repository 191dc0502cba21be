"""Quotients by constants and by what was broadcast become products of the same value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from scipy import special

from fvaudit.optvis.quotients import as_products


X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
STD = np.array([0.229, 0.224, 0.225, 0.3, 0.7, 1.1, 3], np.float32)


@pytest.mark.parametrize(
    ("function", "expected", "left"),
    [
        (lambda x: x / STD, lambda x: x / STD, 0),
        (lambda x: x / 3, lambda x: x / 3, 0),
        (lambda x: x.mean(0), lambda x: x.mean(0), 0),
        (lambda x: x / x.sum(1, keepdims=True), lambda x: x / x.sum(1, keepdims=True), 0),
        (lambda x: x / jnp.cosh(x), lambda x: x / np.cosh(x), 1),
        (lambda x: x.astype(int) // 2, lambda x: x.astype(int) // 2, None),
    ],
)
def test_they_are_products_of_the_same_value(function, expected, left):
    closed = jax.make_jaxpr(function)(X)
    changed = as_products(closed.jaxpr)
    if left is not None:
        assert sum(e.primitive.name == "div" for e in changed.eqns) == left
    (found,) = core.jaxpr_as_fun(core.ClosedJaxpr(changed, list(closed.consts)))(X)
    np.testing.assert_allclose(found, expected(X.astype(np.float64)), rtol=3e-6)


def test_a_softmaxs_gradient_has_none_left():
    def loss(x):
        return (jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True))[:, 0].sum()

    closed = jax.make_jaxpr(jax.grad(loss))(X)
    changed = as_products(closed.jaxpr)
    assert not [e for e in changed.eqns if e.primitive.name == "div"]
    (found,) = core.jaxpr_as_fun(core.ClosedJaxpr(changed, list(closed.consts)))(X)
    p = special.softmax(X.astype(np.float64), axis=1)
    slope = p[:, :1] * (np.eye(7)[0] - p)
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-7)
