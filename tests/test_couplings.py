"""Objectives of a whole set: loops in NumPy, closed forms, signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.optvis.couplings import Alignment, Diversity, Interpolation
from fvaudit.optvis.objectives import Channel, ClassLogit, scores, stack
from fvaudit.records import AuditError, Unit
from tests.tables import activations, doubles


@jax.jit
def _scores(objective, x):
    return objective(x)


@jax.jit
def _gradient(objective, x):
    return jax.grad(lambda x: objective(x).sum())(x)


def test_interpolation_goes_from_left_to_right():
    x = activations(5)
    between = Interpolation(Channel("a", 1), ClassLogit(2))
    left, right = x["a"][..., 1].mean((1, 2)), x["logits"][:, 2]
    expected = [(1 - i / 4) * left[i] + i / 4 * right[i] for i in range(5)]
    np.testing.assert_allclose(between(x), expected, rtol=1e-5)
    assert str(between) == "Interpolation(a:1, logits:2)"
    assert between.units == (Unit("a", 1), Unit("logits", 2))
    assert Interpolation(Channel("a", 1), Channel("a", 2)).layers == ("a",)


def test_the_ends_of_an_interpolation_are_pure():
    x = activations(4)
    between = Interpolation(Channel("a", 1), ClassLogit(2))
    gradient = _gradient(between, x)
    assert not gradient["logits"][0].any() and not gradient["a"][3].any()
    assert gradient["a"][0].any() and gradient["logits"][3].any()


@pytest.mark.parametrize("n", [2, 3, 5, 7])
@pytest.mark.parametrize("layer", ["a", "logits"])
def test_alignment_sums_to_its_formula(n, layer):
    x = activations(n)
    v = doubles(n)[layer]
    pairs = [(i, i + d, d) for d in (1, 2, 3, 4) for i in range(n - d)]
    expected = -sum(((v[a] - v[b]) ** 2).mean() / 3.0**d for a, b, d in pairs)
    np.testing.assert_allclose(_scores(Alignment(layer, decay=3), x).sum(), expected, rtol=1e-5)


def test_alignment_shares_a_pairs_penalty_equally():
    x = {"a": jnp.asarray([[0.0], [2.0], [2.0]])}
    # pairs (0, 1): 4 / 2, (1, 2): 0, (0, 2): 4 / 4
    np.testing.assert_allclose(Alignment("a")(x), [-(1 + 0.5), -1, -0.5])


def test_alignment_is_a_reward_best_for_equal_images():
    equal = {"a": jnp.ones((4, 3, 3, 2))}
    np.testing.assert_array_equal(Alignment("a")(equal), np.zeros(4))
    x = activations(4)
    closer = np.asarray(x["a"] + 0.1 * _gradient(Alignment("a"), x)["a"])
    assert closer.std(0).sum() < np.asarray(x["a"]).std(0).sum()


@pytest.mark.parametrize("decay", [0, -1, float("nan"), float("inf")])
def test_alignment_needs_a_positive_decay(decay):
    with pytest.raises(AuditError, match="decay must be positive and finite"):
        Alignment("a", decay)


def _likeness(one, other):
    """Cosine of two Gram matrices, in float64."""
    grams = [f.reshape(-1, f.shape[-1]) for f in (one, other)]
    one, other = ((f.T @ f).ravel() for f in grams)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("layer", ["a", "logits"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_diversity_is_the_mean_cosine_of_gram_matrices(n, layer, scale):
    v = doubles(n)[layer]
    x = {layer: jnp.asarray(scale * v, jnp.float32)}
    pairs = np.array([[_likeness(a, b) for b in v] for a in v])
    expected = (pairs.sum(1) - 1) / (n - 1)
    out = np.asarray(_scores(Diversity(layer), x))
    np.testing.assert_allclose(out, expected, rtol=1e-4)
    off = pairs[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(out.sum() / n, off.mean(), rtol=1e-4)


def test_diversity_is_one_for_equal_textures_and_zero_for_disjoint_ones():
    image = activations(1)["a"][0]
    shifted = jnp.roll(image, (1, 2), (0, 1))  # the same texture elsewhere
    np.testing.assert_allclose(
        _scores(Diversity("a"), {"a": jnp.stack([image, shifted])}), 1, rtol=1e-5
    )
    disjoint = np.zeros((2, 4, 4, 2), np.float32)
    disjoint[0, ..., 0] = disjoint[1, ..., 1] = 3
    np.testing.assert_array_equal(_scores(Diversity("a"), {"a": jnp.asarray(disjoint)}), [0, 0])


def test_subtracting_diversity_pulls_textures_apart():
    x = activations(3)
    apart = {**x, "a": x["a"] + 0.5 * _gradient(-1.0 * Diversity("a"), x)["a"]}
    assert _scores(Diversity("a"), apart).sum() < _scores(Diversity("a"), x).sum()


def test_a_dead_image_is_like_nothing_and_has_a_finite_gradient():
    x = doubles(3)["a"]
    x[1] = 0
    given = {"a": jnp.asarray(x, jnp.float32)}
    value, gradient = _scores(Diversity("a"), given).sum(), _gradient(Diversity("a"), given)["a"]
    np.testing.assert_allclose(value, _likeness(x[0], x[2]), rtol=1e-5)  # 2 pairs of 3, over 2
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "coupling",
    [Interpolation(Channel("a", 0), Channel("a", 1)), Alignment("a"), Diversity("a")],
    ids=str,
)
def test_a_set_of_one_is_refused_and_so_is_an_objective_per_image(coupling):
    with pytest.raises(AuditError, match="compares the images of a set, and got a set of one"):
        coupling(activations(1))
    with pytest.raises(AuditError, match="Optimize at least 2 images together"):
        scores(stack([coupling, coupling]), activations(2))
