"""Units over tokens, on ViT-B/16 with random weights (test_zoo.py holds its values)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fvaudit as fv
from fvaudit.evidence.activations import collect
from fvaudit.evidence.similarity import similarity_matrix
from fvaudit.models.model import InputSpec, build
from fvaudit.models.nets import vit
from fvaudit.models.zoo import random_model
from fvaudit.records import AuditError, Unit
from tests.tiny import pictures


@functools.cache
def network():
    return random_model("vit_b_16", 0)


def tokens_model(patches: int = 6, width: int = 8):
    """Layers `tokens` (t, c), its views and `logits`, from a small linear embedding."""
    rng = np.random.default_rng(0)
    side = 24 // patches
    params = rng.normal(size=(side * side * 3, width)).astype(np.float32)

    def forward(p, images, tap):
        cut = images.reshape(-1, patches, side, patches, side, 3).swapaxes(2, 3)
        x = cut.reshape(len(images), patches**2, -1) @ p
        x = tap("tokens", jnp.concatenate([x.mean(1, keepdims=True) ** 2, x], axis=1))
        cls = tap("tokens.cls", x[:, 0])
        grid = tap("tokens.patches", x[:, 1:].reshape(-1, patches, patches, width))
        return tap("logits", cls + jnp.tanh(grid).sum((1, 2)))

    spec = InputSpec((24, 24), (0.0,) * 3, (1.0,) * 3, resize=24)
    return build(forward, jnp.asarray(params), spec, name="tokens")


MODEL = tokens_model()


def test_shapes_of_a_block():
    shapes = network().shapes
    assert shapes["blocks.3"] == shapes["blocks.3.heads"] == (197, 768)
    assert shapes["blocks.3.mlp"] == (197, 3072)
    assert shapes["blocks.3.mlp.patches"] == (14, 14, 3072)
    assert shapes["blocks.3.cls"] == (768,) and shapes["logits"] == (1000,)
    assert network().path_to("blocks.1.mlp") == ("embedding", "blocks.0", "blocks.1.mlp")


def test_units_of_tokens_exist_or_are_refused():
    for text in ("blocks.3.mlp:3071@196", "blocks.3.mlp:17", "blocks.3.patches:5@13,0"):
        network().require_unit(Unit.parse(text))
    for text, message in [
        ("blocks.3.mlp:17@197", "has 197 tokens, layer:channel@token"),
        ("blocks.3.mlp:17@1,1", "has 197 tokens, layer:channel@token"),
        ("blocks.3.patches:17@5", "has 14 x 14 positions, layer:channel@row,column"),
        ("blocks.3.cls:17@0", "has no positions"),
    ]:
        with pytest.raises(AuditError, match=message):
            network().require_unit(Unit.parse(text))


@pytest.mark.slow
def test_edits_of_views_take_effect_downstream():
    """Each edit of a view equals the edit of the whole layer that it stands for."""
    model = network()
    image = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
    whole = {
        "blocks.10": lambda params, x: x.at[:, 0].multiply(params),
        "blocks.10.mlp": lambda params, x: x.at[:, 1 + 14 * 2 + 3].multiply(params),
    }
    views = {
        "blocks.10.cls": lambda params, x: x * params,
        "blocks.10.mlp.patches": lambda params, x: x.at[:, 2, 3].multiply(params),
    }
    plain = _logits(model, image)
    for (layer, edit), (view, same) in zip(whole.items(), views.items(), strict=True):
        wanted = _logits(model.edited(layer, edit, 3.0), image)
        found = _logits(model.edited(view, same, 3.0), image)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert np.abs(wanted - plain).max() > 1e-4


def test_views_that_nobody_edits_leave_no_trace():
    def untouched(x):
        return (vit._viewed("a", x, lambda name, x: x) ** 3).sum()

    program = str(jax.jit(jax.grad(untouched)).lower(jnp.ones((1, 197, 8))).compile().as_text())
    assert not re.search(r"\b(concatenate|slice|pad|copy)\(", program), program


def _logits(model, image):
    return model.activations(image, ["logits"])["logits"]


@pytest.mark.parametrize(
    "metric, reference", [("spearman", stats.spearmanr), ("pearson", stats.pearsonr)]
)
@pytest.mark.parametrize("variant", ["spatial", "pooled"])
def test_similarity_over_tokens_is_scipys(metric, reference, variant):
    """Features are tokens x channels, or means of channels over all tokens."""
    images = pictures(4)
    found = collect(MODEL, images, ["tokens"], metric=metric, variant=variant)
    x = np.asarray(MODEL.activations(images, ["tokens"])["tokens"])
    np.testing.assert_allclose(found.responses["tokens"], x.mean(1), rtol=1e-5, atol=1e-6)
    rows = x.mean(1) if variant == "pooled" else x.reshape(4, -1)
    pairs = similarity_matrix(found.vectors["tokens"], found.vectors["tokens"])
    for i in range(4):
        for j in range(4):
            assert abs(pairs[i, j] - reference(rows[i], rows[j]).statistic) < 1e-5


@pytest.mark.parametrize(
    "text",
    [
        "tokens:2@5",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("tokens.patches:2@1,0", "tokens:2")),
    ],
)
def test_exemplars_of_a_neuron_are_its_own(text):
    """The response of a neuron is its activation at its place, not its channel's mean."""
    unit = Unit.parse(text)
    images = fv.ImageSet(pictures(12), tuple(map(str, range(12))), None, np.arange(12))
    vis = fv.visualize(MODEL, [_objective(unit)], steps=2)
    result = fv.path_similarity(MODEL, unit, vis, images, group=4, replicates=20)
    x = np.asarray(MODEL.activations(images.pixels, [unit.layer])[unit.layer])[..., 2]
    response = x.mean(1) if unit.position is None else x[(slice(None), *unit.position)]
    order = np.argsort(-response)[:6]
    assert result.exemplars == tuple(str(i) for i in order)
    np.testing.assert_allclose(result.exemplar_responses, response[order], rtol=1e-5)
    np.testing.assert_allclose(result.fv_responses, vis[0].activation, rtol=1e-4)


def _objective(unit):
    from fvaudit.optvis.objectives import of_unit

    return of_unit(unit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        fv.Channel("blocks.3.mlp", 17),
        fv.Neuron("blocks.3.mlp", 17, (90,)),
        fv.Neuron("blocks.2.patches", 5),
        fv.Head("blocks.3.heads", 2, 12),
    ],
    ids=str,
)
def test_visualizing_raises_the_activation(objective):
    """Beyond every one of 40 pictures of noise, coarse to fine.

    What a head says is a mean over values that are normalized: with random weights it can rise by
    a fifth or so and not without end, as a channel can.
    """
    (vis,) = fv.visualize(network(), [objective], steps=24, shot_steps=(0,))
    images = np.concatenate([vis.shots[:, 0], vis.images, noises()])
    start, end, *others = np.asarray(objective(network().activations(images, objective.layers)))
    assert end > max(others) and vis.alive.all()
    assert isinstance(objective, fv.Head) or end > start + abs(start)


def noises() -> np.ndarray:
    """Pictures (40, 224, 224, 3) of uniform noise in squares of 4 to 56 pixels."""
    rng = np.random.default_rng(0)
    sides = np.resize([4, 8, 16, 28, 56], 40)
    drawn = [
        rng.random((224 // s, 224 // s, 3), np.float32).repeat(s, 0).repeat(s, 1) for s in sides
    ]
    return np.stack(drawn)
