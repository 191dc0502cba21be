"""Known cases on the real network: what path similarity says of photographs and of noise."""

import numpy as np
import pytest

from fvaudit.data import load_images
from fvaudit.evidence.activations import collect
from fvaudit.evidence.path import path_profile
from fvaudit.evidence.similarity import similarity_matrix
from fvaudit.models.zoo import load_model


pytestmark = pytest.mark.slow
LAYERS = ("blocks.5", "blocks.12", "blocks.15", "avgpool", "logits")


@pytest.fixture(scope="module")
def world(shared_data):
    """Vectors of 500 photographs of ten classes and of ten pictures of noise."""
    model = load_model("efficientnet_lite0")
    images = load_images(shared_data / "images" / "imagenette160" / "val", model)
    noise = np.random.default_rng(0).random((10, 224, 224, 3), np.float32)
    pixels = np.concatenate([images.pixels, noise])
    return collect(model, pixels, LAYERS).vectors, images.labels


def _mean_path(world, choose):
    """P per layer, averaged over classes before dividing; `choose` names the pretended FVs."""
    vectors, labels = world
    sums = np.zeros((3, len(LAYERS)))
    for c in np.unique(labels):
        mine = np.flatnonzero(labels == c)
        group, fv = mine[:40], choose(labels, c, mine)
        others = np.flatnonzero(labels != c)
        others = np.setdiff1d(others, fv)

        def pairs(rows, columns):
            return np.stack([similarity_matrix(v[rows], v[columns]) for v in vectors.values()])

        found = path_profile(
            LAYERS, pairs(fv, group), pairs(group, group), pairs(group, others), others,
            level=0.95, replicates=100, rng=np.random.default_rng(0),
        )  # fmt: skip
        sums += [[getattr(r, name).value for r in found.rows] for name in ("fv", "same", "diff")]
    fv, same, diff = sums
    return (fv - diff) / (same - diff)


def test_photographs_of_the_own_class_score_about_1(world):
    p = _mean_path(world, lambda labels, c, mine: mine[40:])
    np.testing.assert_allclose(p, 1, atol=0.3)


def test_photographs_of_other_classes_score_about_0(world):
    def strangers(labels, c, mine):
        return np.concatenate([np.flatnonzero(labels == k)[40:42] for k in range(1000) if k != c])

    p = _mean_path(world, strangers)
    np.testing.assert_allclose(p, 0, atol=0.2)


def test_noise_scores_below_0_where_images_are_told_apart(world):
    p = _mean_path(world, lambda labels, c, mine: np.arange(len(labels), len(labels) + 10))
    assert (p[:3] < 0).all()
