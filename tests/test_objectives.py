"""Objectives: values by hand, algebra exact in value and text, and what each must satisfy."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from fvaudit.optvis.custom import Custom
from fvaudit.optvis.directions import Direction, NeuronDirection
from fvaudit.optvis.objectives import (
    Channel,
    ClassLogit,
    ClassProbability,
    Head,
    Layer,
    Neuron,
    Objective,
    of_unit,
    scores,
    stack,
)
from fvaudit.records import AuditError, Unit
from tests.tables import OBJECTIVES, V, W, activations, doubles


X = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
ACTIVATIONS = {"a": jnp.asarray(X), "logits": jnp.asarray([[1.0, 5.0, 2.0], [7.0, 3.0, 4.0]])}


@jax.jit
def _scored(objective, x):
    """Scores, and the gradient of their sum: what the engine sees."""
    score, pull = jax.vjp(objective, x)
    return score, pull(jnp.ones_like(score))[0]


def test_channel_is_the_mean_over_positions():
    np.testing.assert_allclose(Channel("a", 2)(ACTIVATIONS), X[..., 2].mean((1, 2)), rtol=1e-6)


def test_channel_of_a_dense_layer_is_its_value():
    np.testing.assert_array_equal(Channel("logits", 1)(ACTIVATIONS), [5, 3])
    np.testing.assert_array_equal(ClassLogit(1)(ACTIVATIONS), [5, 3])


def test_neuron_without_position_is_the_centre():
    np.testing.assert_array_equal(Neuron("a", 4)(ACTIVATIONS), X[:, 1, 2, 4])
    np.testing.assert_array_equal(Neuron("a", 4, (2, 0))(ACTIVATIONS), X[:, 2, 0, 4])


def test_a_neuron_of_tokens_names_its_token():
    t = np.arange(2 * 3 * 6, dtype=np.float32).reshape(2, 3, 6)
    np.testing.assert_array_equal(Neuron("t", 4, (2,))({"t": jnp.asarray(t)}), t[:, 2, 4])
    np.testing.assert_allclose(Channel("t", 4)({"t": jnp.asarray(t)}), t[..., 4].mean(1))
    assert str(of_unit(Unit.parse("t:4@2"))) == "t:4@2"
    with pytest.raises(AuditError, match="is a neuron, but t has 3 tokens; name one of them"):
        Neuron("t", 4)({"t": jnp.asarray(t)})
    with pytest.raises(AuditError, match="but a has rows and columns; name both"):
        Neuron("a", 4, (2,))(ACTIVATIONS)


def test_a_head_is_the_mean_of_squares_of_its_channels():
    t = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    found = Head("t", 1, 3)({"t": jnp.asarray(t)})
    np.testing.assert_allclose(found, (t[:, :, 2:4] ** 2).mean((1, 2)), rtol=1e-6)
    assert str(Head("t", 1, 3)) == "Head(t, 1 of 3)"
    with pytest.raises(AuditError, match="Head 3 of t does not exist: it has 0 to 2"):
        Head("t", 3, 3)
    with pytest.raises(AuditError, match="t has 6 channels, which are not 4 equal heads"):
        Head("t", 3, 4)({"t": jnp.asarray(t)})


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


# --- values


def test_class_probability_is_the_softmax():
    logits = activations()["logits"]
    expected = scipy.special.softmax(logits, axis=-1)[:, 4]
    np.testing.assert_allclose(ClassProbability(4)(activations()), expected, rtol=1e-6)


def test_layer_is_the_mean_of_squares():
    np.testing.assert_allclose(Layer("a")(ACTIVATIONS), (X**2).mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(Layer("logits")(ACTIVATIONS), [30 / 3, 74 / 3], rtol=1e-6)


def _along(a, v, power):
    """One position, in float64, term by term as Carter et al. write it."""
    dot = float(np.dot(a, v))
    cosine = dot / (np.linalg.norm(a) * np.linalg.norm(v))
    return dot * max(0.1, cosine) ** power


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 4.0])
def test_direction_is_dot_times_a_power_of_the_floored_cosine(power):
    x = doubles()["a"]
    each = np.array([[[_along(a, V, power) for a in row] for row in image] for image in x])
    given = activations()
    over_all = _scored(Direction("a", V, power), given)[0]
    np.testing.assert_allclose(over_all, each.mean((1, 2)), rtol=1e-4)
    centre = _scored(NeuronDirection("a", V, cosine_power=power), given)[0]
    np.testing.assert_allclose(centre, each[:, 2, 2], rtol=1e-4)
    corner = _scored(NeuronDirection("a", V, (3, 0), power), given)[0]
    np.testing.assert_allclose(corner, each[:, 3, 0], rtol=1e-4)


def test_direction_along_a_channel_is_the_channel():
    one_hot = np.eye(6)[2]
    x = activations()
    np.testing.assert_allclose(Direction("a", one_hot)(x), Channel("a", 2)(x), rtol=1e-5)
    np.testing.assert_allclose(NeuronDirection("a", one_hot)(x), Neuron("a", 2)(x), rtol=1e-5)
    dense = Direction("logits", np.eye(7)[3])(x)
    np.testing.assert_allclose(dense, ClassLogit(3)(x), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e4])
def test_the_length_of_a_direction_scales_its_score_and_nothing_else(scale):
    """A cosine that is not divided by |v| would change the balance of dot and cosine."""
    x = activations()
    plain, longer = (_scored(Direction("a", v, 4), x)[0] for v in (V, scale * V))
    np.testing.assert_allclose(longer, scale * plain, rtol=1e-4)


def test_a_power_prefers_what_points_along_the_vector():
    v = np.array([1.0, 0.0])
    along, longer = np.array([1.0, 0.0]), np.array([1.2, 5.0])
    x = {"d": jnp.asarray([along, longer], jnp.float32)}
    dot, powered = Direction("d", v)(x), Direction("d", v, 2)(x)
    assert dot[1] > dot[0] and powered[0] > powered[1]


@pytest.mark.parametrize("x", [0.0, 1e-30, 1e-41, 1e18], ids=str)
@pytest.mark.parametrize("power", [0.0, 1.0, 4.0])
def test_direction_is_finite_at_any_length_zero_included(x, power):
    vector = {"d": jnp.full((1, 6), x, jnp.float32)}
    value, gradient = _scored(Direction("d", np.ones(6), power), vector)
    assert np.isfinite(value) and np.isfinite(gradient["d"]).all()
    if x == 0:  # the floor of the cosine keeps a way out
        np.testing.assert_allclose(gradient["d"], np.full((1, 6), 0.1**power), rtol=1e-5)


# --- algebra


def _terms(rng):
    weights = rng.choice([-1.0, 1.0], 4) * np.round(10.0 ** rng.uniform(-4, 4, 4), 3)
    return weights, [ClassLogit(int(i)) for i in rng.permutation(7)[:4]]


@pytest.mark.parametrize("seed", range(20))
def test_each_weight_acts_on_its_own_term(seed):
    """Others multiply weights cumulatively: a*1 + b*3 + c*-5 would be -15 a - 15 b - 5 c."""
    rng = np.random.default_rng(seed)
    weights, terms = _terms(rng)
    x = activations(seed=seed)
    mixed = weights[0] * terms[0]
    for w, t in zip(weights[1:], terms[1:], strict=True):
        mixed = mixed - (-w) * t if seed % 2 else mixed + t * w
    columns = [int(str(t).split(":")[1]) for t in terms]
    expected = doubles(seed=seed)["logits"][:, columns] @ weights
    np.testing.assert_allclose(mixed(x), expected, rtol=1e-4, atol=1e-4 * np.abs(weights).max())
    if seed % 2 == 0:
        written = [f"{float(w)!r}*({t})" for w, t in zip(weights, terms, strict=True)]
        assert str(mixed) == " + ".join(written).replace(".0*", "*")


@pytest.mark.parametrize("seed", range(10))
def test_minus_is_plus_the_negative_and_its_gradient_too(seed):
    x = activations(seed=seed)
    rng = np.random.default_rng(seed)
    (w, u, *_), (a, b, *_) = _terms(rng)
    np.testing.assert_array_equal((w * a - u * b)(x), (w * a + (-u) * b)(x))
    up, down = (_scored(objective, x)[1] for objective in (a, -a))
    np.testing.assert_array_equal(up["logits"], -down["logits"])


def test_sum_of_a_list():
    a, b, c = ClassLogit(0), ClassLogit(1), ClassLogit(2)
    total = sum([a, b, c])
    assert isinstance(total, Objective)
    assert str(total) == "(logits:0) + (logits:1) + (logits:2)" == str(a + b + c)
    np.testing.assert_allclose(total(ACTIVATIONS), [8, 14])
    with pytest.raises(TypeError):  # a constant changes no gradient: surely a mistake
        _ = 3 + a
    with pytest.raises(TypeError):
        _ = a + 3


def test_division_by_a_number():
    np.testing.assert_allclose((ClassLogit(1) / 4)(ACTIVATIONS), [1.25, 0.75])
    assert str(ClassLogit(1) / 4) == "0.25*(logits:1)"
    for wrong in (0, 0.0, float("inf"), np.float32("nan")):
        with pytest.raises(AuditError, match="divided by a finite number, not 0"):
            _ = ClassLogit(1) / wrong
    with pytest.raises(TypeError):
        _ = ClassLogit(1) / ClassLogit(2)  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("weight", [np.float32(0.5), np.float64(0.5), 0.5], ids=repr)
def test_weights_may_be_numpy_scalars_on_either_side(weight):
    assert str(weight * ClassLogit(1)) == str(ClassLogit(1) * weight) == "0.5*(logits:1)"
    assert str(np.int64(2) * ClassLogit(1)) == "2*(logits:1)"


@pytest.mark.parametrize("weights", [np.ones(2), [1.0], "2"], ids=repr)
def test_weights_must_be_numbers(weights):
    """NumPy would make an array of objectives, and lists would be repeated."""
    with pytest.raises(TypeError):
        _ = weights * ClassLogit(1)
    with pytest.raises(TypeError):
        _ = ClassLogit(1) * weights


def test_layers_and_units_of_a_sum_are_those_of_its_terms():
    mixed = 2 * Channel("a", 1) - 3 * Layer("b") + 1 * Channel("a", 2)
    assert mixed.layers == ("a", "b")
    assert mixed.units == (Unit("a", 1), Unit("a", 2))


# --- directions as data


def test_the_text_of_a_direction_names_its_numbers():
    text = str(Direction("a", V, 4))
    assert text == str(Direction("a", np.array(V, np.float32), 4)) == str(Direction("a", [*V], 4))
    assert text.startswith("Direction(a, 6 numbers sha256:") and text.endswith(
        ", cosine_power=4.0)"
    )
    nudged = V.astype(np.float32)
    nudged[3] = np.nextafter(nudged[3], np.float32(9))
    others = [Direction("a", nudged, 4), Direction("a", V), NeuronDirection("a", V, None, 4)]
    others += [NeuronDirection("a", V, (1, 2), 4), NeuronDirection("a", V, (2, 1), 4)]
    assert len({text, *map(str, others)}) == 6
    assert str(Direction("a", [0.0, 1])) == str(Direction("a", [-0.0, 1]))


def test_a_direction_keeps_its_own_copy():
    vector = V.copy()
    direction = Direction("a", vector)
    before = str(direction)
    vector[:] = 0
    assert str(direction) == before
    with pytest.raises(ValueError, match="read-only"):
        direction.vector[0] = 1


@pytest.mark.parametrize(
    "vector, message",
    [
        (np.zeros(6), r"not all 0; got shape \(6,\), all 0"),
        (np.ones((2, 3)), r"shape \(c,\), and not all 0; got shape \(2, 3\)\."),
        ([1.0, float("nan")], "vector must be finite"),
        ("north", "vector must be an array of numbers, got 'north'"),
    ],
)
def test_directions_that_are_none(vector, message):
    with pytest.raises(AuditError, match=message):
        Direction("a", vector)
    with pytest.raises(AuditError, match=message):
        NeuronDirection("a", vector)


@pytest.mark.parametrize("power", [-1, float("nan"), float("inf")])
def test_cosine_powers_that_are_none(power):
    with pytest.raises(AuditError, match="cosine_power must be 0 or more and finite"):
        Direction("a", V, power)


def test_directions_that_do_not_fit_the_layer():
    with pytest.raises(
        AuditError, match="direction of a has 5 numbers, but the layer has 6 channels"
    ):
        Direction("a", np.ones(5))(activations())
    with pytest.raises(AuditError, match="position 4,0 does not exist: a has 4 x 5 positions"):
        NeuronDirection("a", V, (4, 0))(activations())
    with pytest.raises(AuditError, match="is a neuron, but logits has no positions"):
        NeuronDirection("logits", np.ones(7))(activations())


# --- custom


def half(seen):
    return seen["a"].mean((1, 2, 3)) / 2


def test_custom_is_the_function():
    x = activations()
    np.testing.assert_allclose(Custom(half, ("a",))(x), x["a"].mean((1, 2, 3)) / 2, rtol=1e-6)
    assert str(Custom(half, ("a",))) == "Custom(half, a)"
    assert str(Custom(lambda x: half(x), ("a",), "mine")) == "Custom(mine, a)"
    assert Custom(half, ("a",)) == Custom(half, ("a",))
    assert Custom(half, ("a",), "x") != Custom(lambda x: half(x), ("a",), "x")


@pytest.mark.parametrize(
    "function",
    [lambda x: half(x), np.random.default_rng(0).normal, np.vectorize(half)],
    ids=["lambda", "method", "callable object"],
)
def test_custom_functions_without_a_name_of_their_own_need_a_text(function):
    with pytest.raises(AuditError, match="has no name of its own.*give Custom"):
        Custom(function, ("a",))


@pytest.mark.parametrize(
    "function, got",
    [
        (lambda x: x["a"].mean(), r"float32 of shape \(\)"),
        (lambda x: x["a"].mean((1, 2)), r"float32 of shape \(3, 6\)"),
        (lambda x: x["a"].argmax(-1)[:, 0, 0], r"int.* of shape \(3,\)"),
        (lambda x: 10, r"int.* of shape \(\)"),
    ],
)
def test_custom_must_score_every_image(function, got):
    with pytest.raises(AuditError, match=rf"one float per image, shape \(3,\); got {got}"):
        Custom(function, ("a",), "wrong")(activations())


def test_custom_reads_only_what_it_announced():
    with pytest.raises(AuditError, match="reads 'logits', which its layers do not name"):
        Custom(lambda x: x["logits"][:, 0], ("a",), "sly")(activations())


@pytest.mark.parametrize("layers", ["a", ()])
def test_custom_layers_are_several_names(layers):
    with pytest.raises(AuditError, match="layers is a sequence of names"):
        Custom(half, layers)


# --- what every objective must satisfy


EVERY = pytest.mark.parametrize("row", OBJECTIVES.values(), ids=OBJECTIVES)


@EVERY
def test_scores_are_one_finite_float32_per_image_and_jit_changes_none(row):
    objective, x = row.make(), activations()
    eager, (jitted, gradient) = objective(x), _scored(objective, x)
    assert eager.shape == jitted.shape == (3,) and eager.dtype == jitted.dtype == jnp.float32
    np.testing.assert_allclose(jitted, eager, rtol=1e-4, atol=1e-6)
    assert np.isfinite(eager).all()
    moved = {layer for layer, g in gradient.items() if np.isfinite(g).all() and np.any(g)}
    assert moved == set(row.layers)


@EVERY
def test_layers_are_those_it_reads_and_no_others(row):
    objective, x = row.make(), activations()
    assert objective.layers == row.layers
    assert {unit.layer for unit in objective.units} <= set(row.layers)
    for missing in row.layers:
        with pytest.raises(KeyError, match=missing):
            objective({layer: x[layer] for layer in row.layers if layer != missing})


@EVERY
def test_gradients_are_the_differences(row):
    with jax.enable_x64(True):
        objective = row.make()
        x = {k: jnp.asarray(v) for k, v in doubles(seed=5).items() if k in row.layers}
        score = jax.jit(lambda x: objective(x))
        check_grads(score, (x,), order=1, modes=["rev"], eps=1e-6)


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_value_and_gradient_are_finite_on_flat_activations(row, value):
    flat = {k: jnp.full_like(v, value) for k, v in activations().items()}
    score, gradient = _scored(row.make(), flat)
    assert np.isfinite(score).all()
    assert all(np.isfinite(g).all() for g in gradient.values())


@EVERY
def test_an_image_depends_on_its_set_only_by_design(row):
    objective, x = row.make(), activations()
    changed = {k: jnp.concatenate([v[:1], 1 - v[1:]]) for k, v in x.items()}
    first, other = _scored(objective, x)[0][0], _scored(objective, changed)[0][0]
    alone = {k: v[:1] for k, v in x.items()}
    if row.couples:
        with pytest.raises(AuditError, match="compares the images of a set"):
            objective(alone)
    else:
        np.testing.assert_allclose(other, first, rtol=1e-5)
        np.testing.assert_allclose(_scored(objective, alone)[0], [first], rtol=1e-4)


@EVERY
def test_pytree_round_trip_changes_nothing(row):
    objective = row.make()
    leaves, structure = jax.tree.flatten(objective)
    again = jax.tree.unflatten(structure, leaves)
    assert again == objective and hash(again) == hash(objective) and str(again) == str(objective)
    assert pickle.loads(pickle.dumps(objective)) == objective


@EVERY
def test_other_data_share_the_program_and_not_the_text(row):
    one, other = row.make(), row.like()
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert (one == other) == (str(one) == str(other)) == (not jax.tree.leaves(one))


@EVERY
def test_a_stack_scores_as_its_members(row):
    members, x = [row.make(), row.like()], activations()
    together = jax.jit(jax.vmap(lambda o, _: o(x)))(stack(members), jnp.arange(2))
    each = [_scored(member, x)[0] for member in members]
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-5)


def test_no_two_objectives_share_a_text():
    texts = [str(make()) for row in OBJECTIVES.values() for make in (row.make, row.like)]
    distinct = len(OBJECTIVES) + sum(row.make() != row.like() for row in OBJECTIVES.values())
    assert len(set(texts)) == distinct


def test_records_are_frozen_and_compare_by_value():
    assert Direction("a", V) == Direction("a", V) != Direction("a", W)
    assert len({Direction("a", V), Direction("a", V), Direction("a", W), Channel("a", 1)}) == 3
    assert Channel("a", 1) == Channel("a", np.int64(1)) != Channel("b", 1)
    assert hash(Channel("a", 1)) == hash(Channel("a", np.int64(1)))
    with pytest.raises(AttributeError):
        Channel("a", 1).index = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_the_text_of_a_traced_direction_says_so():
    texts = []
    jax.jit(lambda o: texts.append(str(o)) or 0)(Direction("a", V))
    assert texts == ["Direction(a, 6 numbers sha256:traced, cosine_power=0.0)"]
