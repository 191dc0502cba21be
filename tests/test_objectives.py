"""Objectives: values by hand, algebra exact in value and text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis.objectives import Channel, ClassLogit, Neuron, of_unit, scores, stack
from fvaudit.records import AuditError, Unit


X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
ACTIVATIONS = {"a": jnp.asarray(X), "logits": jnp.asarray([[1.0, 5.0, 2.0], [7.0, 3.0, 4.0]])}


def test_channel_is_the_mean_over_positions():
    np.testing.assert_allclose(Channel("a", 2)(ACTIVATIONS), X[..., 2].mean((1, 2)), rtol=1e-6)


def test_channel_of_a_dense_layer_is_its_value():
    np.testing.assert_array_equal(Channel("logits", 1)(ACTIVATIONS), [5, 3])
    np.testing.assert_array_equal(ClassLogit(1)(ACTIVATIONS), [5, 3])


def test_neuron_without_position_is_the_centre():
    np.testing.assert_array_equal(Neuron("a", 4)(ACTIVATIONS), X[:, 1, 2, 4])
    np.testing.assert_array_equal(Neuron("a", 4, (2, 0))(ACTIVATIONS), X[:, 2, 0, 4])


def test_algebra_is_exact_in_value_and_text():
    a, b, c = Channel("logits", 0), Channel("logits", 1), Channel("logits", 2)
    mixed = a * 1 + 3 * b - 5 * c
    np.testing.assert_allclose(mixed(ACTIVATIONS), [1 + 15 - 10, 7 + 9 - 20])
    assert str(mixed) == "1*(logits:0) + 3*(logits:1) + -1*(5*(logits:2))"
    np.testing.assert_allclose((a - b)(ACTIVATIONS), [-4, 4])
    np.testing.assert_allclose((-a)(ACTIVATIONS), [-1, -7])
    np.testing.assert_allclose((0.8 * a + 0.2 * b)(ACTIVATIONS), [1.8, 6.2], rtol=1e-6)
    assert str(0.8 * a + 0.2 * b) == "0.8*(logits:0) + 0.2*(logits:1)"


def test_operators_leave_their_operands_alone():
    a, b = Channel("logits", 0), Channel("logits", 1)
    before = (str(a), str(b))
    _ = a - b
    assert (str(a), str(b)) == before
    np.testing.assert_allclose(b(ACTIVATIONS), [5, 3])


def test_a_product_of_objectives_is_refused_by_python():
    with pytest.raises(TypeError):
        _ = Channel("a", 0) * Channel("a", 1)  # pyright: ignore[reportOperatorIssue]


def test_weights_must_be_finite():
    with pytest.raises(AuditError, match="must be finite, got nan"):
        _ = float("nan") * Channel("a", 0)


def test_a_batch_may_hold_different_units():
    batch = stack([0.5 * Channel("logits", 1), 2 * Channel("logits", 0)])
    np.testing.assert_allclose(scores(batch, {"logits": ACTIVATIONS["logits"]}), [2.5, 14])


def test_units_of_one_layer_share_one_structure():
    one, other = jax.tree.structure(Channel("a", 0)), jax.tree.structure(Channel("a", 3))
    assert one == other != jax.tree.structure(Channel("b", 0))


def test_of_unit():
    assert str(of_unit(Unit("a", 3))) == "a:3"
    assert str(of_unit(Unit("a", 3, (1, 2)))) == "a:3@1,2"
    assert of_unit(Unit("a", 3, (1, 2))).units == (Unit("a", 3, (1, 2)),)
    assert (Channel("a", 1) + ClassLogit(2)).layers == ("a", "logits")
