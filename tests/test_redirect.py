"""Redirected gradients: lucid's rule as a truth table, one image at a time, and that it acts."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis import redirect


XS = (-1.5, 0.0, 2.5, 6.0, 7.5)  # below, kink, live, relu6's kink, above
FUNCTIONS = {
    "relu": (redirect.relu, jax.nn.relu, lambda x: float(x > 0), math.inf),
    "relu6": (redirect.relu6, jax.nn.relu6, lambda x: float(0 < x < 6), 6.0),
    "gelu": (
        redirect.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: 0.5 * math.erfc(-x / 2**0.5) + x * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
        math.inf,
    ),
}


def _rule(name, x, g, active):
    """The rule, entry by entry; x and g of shape (images, entries)."""
    slope, top = FUNCTIONS[name][2:]
    out = np.zeros_like(g)
    for i in range(len(x)):
        ordinary = [slope(float(a)) * b for a, b in zip(x[i], g[i], strict=True)]
        use = active and all(v == 0 for v in ordinary)
        for j, (a, b) in enumerate(zip(x[i], g[i], strict=True)):
            pushes_away = (a < 0 and b > 0) or (a > top and b < 0)
            out[i, j] = (0.0 if pushes_away else b) if use else ordinary[j]
    return out


def _gradient(function, x, g, active):
    def pull(x, g, active):
        with redirect.redirecting(active):
            return jax.vjp(function, x)[1](g)[0]

    return pull(x, g, active)


def _table():
    """Each x with each sign of gradient, in an image without and with a live unit beside it."""
    rows = [(x, g, 1.0, live) for x in XS for g in (-0.5, 0.0, 0.5) for live in (0.0, 0.25)]
    # the second entry is x = 1 (live in all functions), through which `live` flows
    x = np.array([[a, b] for a, _, b, _ in rows], np.float32)
    g = np.array([[g, live] for _, g, _, live in rows], np.float32)
    return x, g


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_truth_table(name, active, traced):
    x, g = _table()
    function = FUNCTIONS[name][0]
    if traced:
        pull = jax.jit(lambda x, g, a: _gradient(function, x, g, a))
        got = pull(x, g, jnp.asarray(active))
    else:
        got = _gradient(function, x, g, active)
    expected = _rule(name, x, g, active)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-9)
    reached = (expected != _rule(name, x, g, False)).sum()  # rows in which the rule does act
    assert reached == (0 if not active else {"relu": 3, "relu6": 6, "gelu": 0}[name])


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_each_case_in_words(name):
    """Dead images: (x, gradient) -> gradient, with descent's sign."""
    function = FUNCTIONS[name][0]
    cases = [(-1.0, 0.5, 0.0), (-1.0, -0.5, -0.5), (0.0, 0.5, 0.5), (0.0, -0.5, -0.5)]
    above = [(7.0, -0.5, 0.0), (7.0, 0.5, 0.5)] if name == "relu6" else []
    for x, g, expected in cases + above:
        got = _gradient(function, jnp.array([[x]]), jnp.array([[g]]), True)
        assert float(got[0, 0]) == expected, (x, g)


def test_gelu_is_redirected_where_its_derivative_underflows():
    x = jnp.array([[-40.0, -30.0], [-40.0, 1.0]])
    g = jnp.array([[-1.0, 1.0], [-1.0, 1.0]])
    got = np.asarray(_gradient(redirect.gelu, x, g, True))
    np.testing.assert_array_equal(got[0], [-1.0, 0.0])
    assert got[1, 0] == 0 and got[1, 1] > 1  # the second image is alive
    np.testing.assert_array_equal(_gradient(redirect.gelu, x, g, False)[0], 0)


def test_images_of_a_batch_do_not_see_each_other():
    rng = np.random.default_rng(0)
    x = -np.abs(rng.normal(size=(4, 3, 3, 2))).astype(np.float32)
    x[1, 2, 0, 1] = 1.0  # one live unit in one image
    g = rng.normal(size=x.shape).astype(np.float32)
    together = np.asarray(_gradient(redirect.relu, x, g, True))
    for i in range(4):
        alone = _gradient(redirect.relu, x[i : i + 1], g[i : i + 1], True)
        np.testing.assert_array_equal(together[i], alone[0])
    assert np.count_nonzero(together[1]) == 1
    np.testing.assert_array_equal(together[[0, 2, 3]], np.minimum(g, 0)[[0, 2, 3]])
    mapped = jax.vmap(lambda x, g: _gradient(redirect.relu, x[None], g[None], True)[0])(x, g)
    np.testing.assert_array_equal(mapped, together)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_single_axis_is_the_images(name):
    x, g = np.array([[-20.0, 3.0, -20.0], [0.5, 0.5, -0.5]], np.float32)
    got = _gradient(FUNCTIONS[name][0], x, g, True)
    np.testing.assert_allclose(got, [0, g[1] * FUNCTIONS[name][2](3.0), g[2]], rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_layers_side_by_side_are_asked_each_on_its_own(shape):
    """Values and gradients are those of `relu` of each layer, whichever of them are dead."""
    rng, widths = np.random.default_rng(2), (1, 3, 2)
    layers = [rng.normal(size=(*shape, w)).astype(np.float32) for w in widths]
    for i, layer in enumerate(layers):  # image 0: all live; the others: layer i of image i + 1 dead
        layer[i + 1] = -np.abs(layer[i + 1])
    slopes = [rng.normal(size=layer.shape).astype(np.float32) for layer in layers]

    def gradients(function, active):
        with redirect.redirecting(active):
            values, pull = jax.vjp(lambda xs: function(xs), layers)
            return values, pull(slopes)[0]

    for active in (True, False, jnp.asarray(True), jnp.asarray(False)):
        got = gradients(redirect.relus, active)
        expected = gradients(lambda xs: [redirect.relu(x) for x in xs], active)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    for i, (x, g) in enumerate(zip(layers, slopes, strict=True)):
        ordinary = np.where(x > 0, g, 0)
        ordinary[i + 1] = np.minimum(g, 0)[i + 1]  # the rule for the only dead image
        got = gradients(redirect.relus, True)[1][i]
        np.testing.assert_array_equal(got[jnp.array([0, i + 1])], ordinary[[0, i + 1]])


def test_layers_side_by_side_are_stock_ones_outside_the_context():
    layers = [jnp.ones((2, 3)), jnp.ones((2, 1))]

    def program(f):
        return str(jax.make_jaxpr(jax.grad(lambda xs: sum(y.sum() for y in f(xs))))(layers))

    assert program(redirect.relus) == program(lambda xs: [jax.nn.relu(x) for x in xs])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_jaxs_to_the_bit(name):
    function, stock = FUNCTIONS[name][:2]
    x = jnp.asarray(np.random.default_rng(1).normal(0, 5, (7, 11)), jnp.float32)
    with redirect.redirecting(True):
        np.testing.assert_array_equal(function(x), stock(x))
    np.testing.assert_array_equal(function(x), stock(x))
    tanh = redirect.gelu(x, approximate=True)
    np.testing.assert_array_equal(tanh, jax.nn.gelu(x, approximate=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outside_the_context_the_program_is_the_stock_one(name):
    function, stock = FUNCTIONS[name][:2]
    x = jnp.ones((2, 3))

    def program(f):
        text = jax.jit(jax.grad(lambda y: f(y).sum())).lower(x).as_text()
        return text.replace("jit__lambda", "")

    assert program(lambda y: function(y)) == program(lambda y: stock(y))
    with redirect.redirecting(False):
        assert program(lambda y: function(y)) == program(lambda y: stock(y))
    with redirect.redirecting(True):
        assert program(lambda y: function(y)) != program(lambda y: stock(y))
    assert program(lambda y: function(y)) == program(lambda y: stock(y))


def test_an_inner_jit_is_traced_again_in_each_context():
    """Otherwise a jitted block of a network would keep the rule it was first traced with."""
    block = jax.jit(redirect.relu)
    x, g = jnp.array([[-1.0]]), jnp.array([[-1.0]])
    pull = jax.jit(lambda active: _gradient(block, x, g, active))
    pull_again = jax.jit(lambda active: _gradient(block, x, g, active) + 0)
    assert float(jax.vjp(block, x)[1](g)[0][0, 0]) == 0
    assert float(pull(jnp.asarray(True))[0, 0]) == -1
    assert float(pull_again(jnp.asarray(True))[0, 0]) == -1
    assert float(pull(jnp.asarray(False))[0, 0]) == 0
    assert float(_gradient(block, x, g, True)[0, 0]) == -1
    assert float(jax.vjp(block, x)[1](g)[0][0, 0]) == 0


def test_float64():
    with jax.enable_x64(True):
        x = jnp.array([[-1.0, -2.0]], jnp.float64)
        g = jnp.array([[-1e-300, 1.0]], jnp.float64)
        for function in (redirect.relu, redirect.relu6):
            got = _gradient(function, x, g, True)
            assert got.dtype == jnp.float64
            np.testing.assert_array_equal(got, [[-1e-300, 0.0]])
            # the squares underflow, the gradient does not: this image is alive
            alive = _gradient(function, -x, jnp.array([[1e-300, 0.0]]), True)
            np.testing.assert_array_equal(alive, [[1e-300, 0.0]])


def _ascend(active_steps, rate=0.2):
    """A dead two-layer network: every hidden unit starts far below 0 on every input near 0."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)

    def score(z):
        return redirect.relu6(redirect.relu(z[None] @ weights - 3.0) @ jnp.ones((4, 1)) - 1.0).sum()

    def step(t, z):
        with redirect.redirecting(t < active_steps):
            gradient = jax.grad(lambda z: -score(z))(z)
        return z - rate * gradient

    return float(score(jax.lax.fori_loop(0, 40, step, jnp.zeros(6))))


def test_a_dead_network_comes_alive_with_it_and_stays_dead_without():
    assert _ascend(redirect.STEPS) > 0.5
    assert _ascend(0) == 0.0


def test_the_rule_stops_after_its_steps():
    """Two small steps do not reach the threshold, and after them the network is dead again."""
    assert _ascend(2, rate=0.03) == 0.0
    assert _ascend(40, rate=0.03) > 0.5


def test_contexts_nest_and_close_after_errors():
    x, g = jnp.array([[-1.0]]), jnp.array([[-1.0]])
    with redirect.redirecting(True):
        assert float(_gradient(redirect.relu, x, g, False)[0, 0]) == 0
        assert float(jax.vjp(redirect.relu, x)[1](g)[0][0, 0]) == -1
    with pytest.raises(ZeroDivisionError), redirect.redirecting(True):
        raise ZeroDivisionError
    assert float(jax.vjp(redirect.relu, x)[1](g)[0][0, 0]) == 0


@pytest.mark.parametrize("active", [3, jnp.arange(2) < 1, np.float32(1.0)])
def test_active_must_be_one_boolean(active):
    with pytest.raises(Exception, match="one boolean|violates type hint|did not match|parameter"):
        with redirect.redirecting(active):
            pass


def test_what_is_kept_for_the_backward_pass_is_one_byte_an_entry():
    x = jnp.ones((2, 8, 8, 3))
    for function in (redirect.relu, redirect.relu6):
        with redirect.redirecting(True):
            kept = jax.tree.leaves(jax.vjp(function, x)[1])
        assert sum(k.nbytes for k in kept) <= x.size + 8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whether_a_gradient_is_dead_is_asked_in_redirected_steps_only(name):
    """The question takes a pass over the whole gradient: it stands inside a condition."""

    def slope(x, active):
        with redirect.redirecting(active):
            return jax.grad(lambda x: FUNCTIONS[name][0](x).sum())(x)

    jaxpr = jax.make_jaxpr(slope)(jnp.ones((2, 5)), jnp.asarray(True))
    asked = [e.primitive.name for e in jaxpr.eqns]
    inside = [str(e) for e in jaxpr.eqns if e.primitive.name == "cond"]
    assert not {"reduce_or", "reduce_and"} & set(asked)
    assert len(inside) == 1 and "reduce_and" in inside[0]


def test_signs_and_kinks_agree_with_jax_when_alive():
    """With a live unit beside, every entry's gradient is the stock one, kinks included."""
    pairs = np.array(list(itertools.product(XS, (-1.0, 1.0))), np.float32)
    x, g = (np.stack([pairs[:, i], np.ones(len(pairs), np.float32)], 1) for i in (0, 1))
    for name, (function, stock, _, _) in FUNCTIONS.items():
        got = _gradient(function, x, g, True)
        expected = jax.vjp(stock, x)[1](g)[0]
        np.testing.assert_array_equal(got, expected, err_msg=name)
