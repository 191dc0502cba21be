"""Penalties: SciPy and NumPy norms, closed forms, references as data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis.objectives import stack
from fvaudit.optvis.penalties import L1, L2, Proximity, TotalVariation
from fvaudit.records import AuditError
from tests.tables import P, activations, doubles


@jax.jit
def _summed(penalty, x):
    return jax.value_and_grad(lambda x: penalty(x).sum())(x)


def _rows(layer, origin):
    return (doubles()[layer] - origin).reshape(3, -1)


@pytest.mark.parametrize("layer, origin", [("input", 0.5), ("a", 0.0), ("logits", 0.0)])
def test_l1_and_l2_are_norms_from_mid_grey_or_zero(layer, origin):
    x = activations()
    rows = _rows(layer, origin)
    np.testing.assert_allclose(L1(layer)(x), np.linalg.norm(rows, 1, axis=1), rtol=1e-5)
    np.testing.assert_allclose(L2(layer)(x), np.linalg.norm(rows, 2, axis=1), rtol=1e-5)
    assert str(L1(layer)) == f"L1({layer}, constant={origin})"


def test_l1_and_l2_from_another_constant():
    x = activations()
    rows = _rows("input", 0.25)
    np.testing.assert_allclose(L1(constant=0.25)(x), np.abs(rows).sum(1), rtol=1e-5)
    expected = np.sqrt(2.0 + (rows**2).sum(1))
    np.testing.assert_allclose(L2(constant=0.25, epsilon=2)(x), expected, rtol=1e-5)
    assert L1(constant=0) != L1() and str(L1(constant=0)) == "L1(input, constant=0.0)"
    assert str(L2()) == "L2(input, constant=0.5, epsilon=1e-06)"


def test_a_grey_image_has_no_penalty_and_no_gradient():
    grey = {"input": jnp.full((2, 6, 5, 3), 0.5)}
    for penalty, least in ((L1(), 0), (L2(), 1e-3), (TotalVariation(), 0)):
        value, gradient = _summed(penalty, grey)
        np.testing.assert_allclose(value, 2 * least, rtol=1e-5)
        np.testing.assert_array_equal(gradient["input"], 0)


def test_total_variation_of_an_edge_is_its_height_times_its_length():
    image = np.zeros((3, 6, 5, 3), np.float32)
    image[0, :, 2:] = 0.75  # upright edge, 6 rows, 3 colours
    image[1, 4:, :, 1] = 0.5  # level edge, 5 columns, 1 colour
    image[2, 3, 2, 0] = 1.0  # one pixel: 4 neighbours
    expected = [0.75 * 6 * 3, 0.5 * 5, 4]
    np.testing.assert_allclose(TotalVariation()({"input": jnp.asarray(image)}), expected, rtol=1e-6)


def test_total_variation_does_not_wrap_around():
    ramp = np.broadcast_to(
        np.linspace(0, 1, 5, dtype=np.float32)[None, None, :, None], (1, 6, 5, 3)
    )
    np.testing.assert_allclose(TotalVariation()({"input": jnp.asarray(ramp)}), [6 * 3], rtol=1e-5)


def test_total_variation_needs_positions():
    with pytest.raises(AuditError, match="compares neighbours, but logits has no rows and columns"):
        TotalVariation("logits")(activations())


def test_proximity_is_the_mean_squared_distance():
    x = activations()
    expected = ((doubles()["a"] - P) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(Proximity("a", P)(x), expected, rtol=1e-5)
    each = activations(seed=9)["a"]
    expected = ((doubles()["a"] - each) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(Proximity("a", each)(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(Proximity("a", x["a"])(x), np.zeros(3))


def test_subtracted_proximity_pulls_towards_the_reference():
    x = activations()
    step = _summed(-1.0 * Proximity("a", P), x)[1]["a"]
    np.testing.assert_allclose(step, 2 * (P - x["a"]) / P.size, rtol=1e-4, atol=1e-7)


def test_references_are_data_of_one_shape():
    one, per_image = Proximity("a", P), Proximity("a", np.stack([P, P, P]))
    assert jax.tree.structure(one) != jax.tree.structure(per_image)
    assert jax.tree.structure(one) == jax.tree.structure(Proximity("a", P + 1))
    assert str(one).startswith("Proximity(a, 4 x 5 x 6 numbers sha256:")
    assert len({str(one), str(per_image), str(Proximity("a", P + 1))}) == 3
    assert stack([one, Proximity("a", P + 1)]).layers == ("a",)


@pytest.mark.parametrize("shape", [(5, 4, 6), (2, 4, 5, 6), (1, 4, 5, 6), (6,), ()])
def test_references_must_have_the_layers_shape(shape):
    with pytest.raises(AuditError, match=r"must have shape \(4, 5, 6\) or \(3, 4, 5, 6\), got \("):
        Proximity("a", np.ones(shape))(activations())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: L1(constant=float("nan")), "constant must be one finite number, got nan"),
        (lambda: L2(constant=[0.5, 0.5]), r"constant must be one finite number, got \[0.5, 0.5\]"),
        (lambda: L1(constant="grey"), "constant must be one finite number, got 'grey'"),
        (lambda: L2(epsilon=0), "epsilon must be positive and finite, got 0"),
        (lambda: Proximity("a", [np.inf]), "reference must be finite"),
        (lambda: Proximity("a", "near"), "reference must be an array of numbers, got 'near'"),
    ],
)
def test_settings_that_are_none(make, message):
    with pytest.raises(AuditError, match=message):
        make()
