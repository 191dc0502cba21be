"""Activation streams: ranks are SciPy's, comparing is collecting, collected once serves all."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

import fvaudit as fv
from fvaudit.evidence import similarity
from fvaudit.evidence.activations import collect, compare
from fvaudit.evidence.similarity import centred_ranks, kept, similarity_matrix
from tests.tiny import pictures, tiny_model


MODEL = tiny_model()
LAYERS = ("conv1", "conv2")


@pytest.fixture(scope="module")
def images():
    ids = tuple(f"{i}.png" for i in range(12))
    return fv.ImageSet(pictures(12), ids, None, np.arange(12))


@pytest.fixture(scope="module")
def visualization():
    (vis,) = fv.visualize(MODEL, [fv.Channel("conv2", 1)], steps=4, repeats=2)
    return vis


@pytest.mark.parametrize("size, kind", [(7, np.int16), (32768, np.int16), (32769, np.int32)])
@pytest.mark.parametrize("data", ["signed", "after relu", "tied", "constant"])
def test_centred_ranks_are_scipys_and_fit_their_type(size, kind, data):
    rows = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    rows[0, :2] = 0.0, -0.0  # equal numbers with other bits
    if data == "after relu":
        rows = np.maximum(rows, 0)
    elif data == "tied":
        rows = np.round(rows)
    elif data == "constant":
        rows[:] = 3
    found = centred_ranks(rows)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, 2 * stats.rankdata(rows, axis=1) - (size + 1))


@pytest.mark.parametrize("variant", ["spatial", "pooled"])
@pytest.mark.parametrize("metric", ["spearman", "pearson", "cosine"])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_comparing_streams_what_collecting_keeps(images, metric, variant, count):
    """Raw activations ranked and multiplied here; blocks of 2 images leave a rest to pad."""
    known = collect(MODEL, pictures(3, seed=9), LAYERS, metric=metric, variant=variant)
    shown = images.pixels[:count]
    found = compare(MODEL, shown, known, lanes=2)
    raw = MODEL.activations(shown, LAYERS)
    for layer in LAYERS:
        a = np.asarray(raw[layer])
        flat = a.mean((1, 2)) if variant == "pooled" else a.reshape(count, -1)
        expected = similarity_matrix(kept(flat, metric), known.vectors[layer])
        assert found[layer].shape == (count, 3)
        np.testing.assert_allclose(found[layer], expected, atol=2e-5)


def test_comparing_uses_the_known_subset_of_features(images):
    known = collect(MODEL, pictures(3, seed=9), LAYERS, max_features=50, seed=3)
    again = collect(MODEL, images.pixels, LAYERS, max_features=50, seed=3)
    found = compare(MODEL, images.pixels, known)
    for layer in LAYERS:
        assert known.vectors[layer].shape == (3, 50)
        expected = similarity_matrix(again.vectors[layer], known.vectors[layer])
        np.testing.assert_allclose(found[layer], expected, atol=1e-5)


def test_natural_images_collected_once_serve_every_call(images, visualization):
    unit = fv.Unit("conv2", 1)
    known = fv.collect_natural(MODEL, images)
    found = fv.path_similarity(MODEL, unit, visualization, known, group=5)
    anew = fv.path_similarity(MODEL, unit, visualization, images, group=5)
    assert found.exemplars == anew.exemplars and len(found.path) == 2
    for a, b in zip(found.path, anew.path, strict=True):
        assert (a.layer, a.resolvable) == (b.layer, b.resolvable)
        once, again = ([x.fv.value, x.same.value, x.diff.value] for x in (a, b))
        np.testing.assert_allclose(once, again, atol=1e-5)


def test_natural_images_collected_otherwise_are_refused(images, visualization):
    unit = fv.Unit("conv2", 1)
    known = fv.collect_natural(MODEL, images, metric="cosine")
    with pytest.raises(fv.AuditError, match="metric='cosine'.* asks for .*metric='spearman'"):
        fv.path_similarity(MODEL, unit, visualization, known)
    with pytest.raises(fv.AuditError, match="collected with another model than this tiny"):
        fv.path_similarity(tiny_model(seed=1), unit, visualization, known, metric="cosine")
    with pytest.raises(fv.AuditError, match="has no layer 'conv9'"):
        fv.collect_natural(MODEL, images, layers=["conv9"])


def test_layers_beside_the_trunk_are_asked_for(images, visualization):
    model = dataclasses.replace(MODEL, trunk=("conv1", "logits"))
    unit = fv.Unit("conv2", 1)
    with pytest.raises(fv.AuditError, match=r"lack conv2. Call .* with layers=\['conv2'\]"):
        fv.path_similarity(model, unit, visualization, fv.collect_natural(model, images))
    known = fv.collect_natural(model, images, layers=["conv2"])
    found = fv.path_similarity(model, unit, visualization, known, group=5)
    assert [row.layer for row in found.path] == ["conv1", "conv2"]


def test_an_fv_that_no_gradient_reached_is_not_judged(images, visualization):
    dead = dataclasses.replace(visualization, alive=np.array([True, False]))
    found = fv.path_similarity(MODEL, fv.Unit("conv2", 1), dead, images, group=5)
    assert found.dead == 1 and not found.score.known and np.isnan(found.p_value)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_pairs_of_a_set_with_itself_do_not_depend_on_blocks(rows, monkeypatch):
    """Symmetric, and SciPy's values but for float32's products: 1.5e-6 was seen at a diagonal."""
    x = np.maximum(np.random.default_rng(4).standard_normal((6, 3000)), 0).astype(np.float32)
    monkeypatch.setattr(similarity, "BLOCK", rows * x.shape[1])
    ranks = kept(x, "spearman")
    found = similarity_matrix(ranks, ranks)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, np.asarray(stats.spearmanr(x.T)[0]), atol=3e-6)
