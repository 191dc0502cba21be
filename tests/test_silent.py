"""Silent branches against PyTorch's convolution, closed forms, and photographs they never saw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.attacks import silent
from fvaudit.attacks.certificate import split
from fvaudit.attacks.silent import find_convolution, silent_units
from fvaudit.models.model import InputSpec, Model, build
from fvaudit.optvis import lowering
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, ImageSet, Unit
from tests.peers import torch
from tests.tiny import SIZE, pictures


UNITS = [Unit("relu2", c) for c in range(8)]


def network(groups: int = 1, seed: int = 0) -> Model:
    """relu1 (12, 12, 8), relu2 (12, 12, 8), a shortcut, logits (5,)."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "first": jax.random.normal(keys[0], (3, 3, 3, 8)) / 4,
        "second": jax.random.normal(keys[1], (3, 3, 8 // groups, 8)) / 6,
        "head": jax.random.normal(keys[2], (8, 5)),
    }
    spec = InputSpec(SIZE, (0.5,) * 3, (0.5,) * 3, resize=SIZE[0])

    def forward(p, images, tap):
        def conv(x, kernel, stride, groups=1):
            return lowering.conv_general_dilated(
                x, kernel, (stride, stride), ((1, 1), (1, 1)),
                dimension_numbers=silent.NHWC, feature_group_count=groups,
            )  # fmt: skip

        x = tap("relu1", jax.nn.relu(conv(spec.normalise(images), p["first"], 2)))
        y = tap("relu2", jax.nn.relu(conv(x, p["second"], 1, groups)))
        return tap("logits", (x + y).mean((1, 2)) @ p["head"])

    return build(forward, params, spec, name="network")


def _length(kernel):
    return np.sqrt((kernel**2).sum((0, 1, 2)))


def photographs(n: int = 40) -> ImageSet:
    """Of low contrast, as photographs are beside what an ascent reaches."""
    return ImageSet(
        0.4 + 0.2 * pictures(n), tuple(map(str, range(n))), np.arange(n) % 5, np.arange(n)
    )


@pytest.fixture(scope="module")
def manipulated():
    target = pictures(1, seed=9)[0]
    return silent_units(target, margin=0.5)(network(), UNITS, photographs(), seed=3)


def test_the_right_convolution_is_found():
    found = find_convolution(network(), "relu2")
    assert (found.place, found.strides, found.padding) == (1, (1, 1), ((1, 1), (1, 1)))
    assert find_convolution(network(), "relu1").place == 0
    with pytest.raises(AuditError, match="logits of network is not the output of a convolution"):
        find_convolution(network(), "logits")


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_filters_have_the_angle_and_the_length_that_were_asked_for(groups, strength):
    model = network(groups)
    convolution = find_convolution(model, "relu2")
    seen, kernel = silent._inputs(model.forward, 1)(model.params, pictures(1))
    filters = silent.decoy_filters(convolution, seen, kernel, strength, 100.0)
    lengths = [_length(np.asarray(k)) for k in (kernel, filters)]
    np.testing.assert_allclose(lengths[1], 100 * lengths[0], rtol=1e-5)
    expected = 1 / np.sqrt(1 + strength**2)
    np.testing.assert_allclose(silent.cosines(kernel, filters), expected, rtol=1e-5)


def test_the_direction_is_the_best_of_its_length_across_the_filter():
    """Among filters of one length at right angles to W, none responds more to the target."""
    model = network()
    convolution = find_convolution(model, "relu2")
    seen, kernel = silent._inputs(model.forward, 1)(model.params, pictures(1))
    filters = np.asarray(silent.decoy_filters(convolution, seen, kernel, 3.0, 1.0))
    kernel = np.asarray(kernel)
    own = _length(kernel)
    across = (filters * np.sqrt(10) - kernel) / 3
    np.testing.assert_allclose((across * kernel).sum((0, 1, 2)) / own**2, 0, atol=1e-5)

    def respond(k):
        return np.asarray(convolution.apply(seen, jnp.asarray(k, jnp.float32))).sum((0, 1, 2))

    best, rng = respond(across), np.random.default_rng(0)
    for _ in range(50):
        drawn = rng.standard_normal(kernel.shape)
        drawn -= (drawn * kernel).sum((0, 1, 2)) / own**2 * kernel
        drawn *= own / _length(drawn)
        assert (respond(drawn) < best).all()


@pytest.mark.extras
def test_the_branch_equals_pytorch():
    target = pictures(1, seed=9)[0]
    found = silent_units(target, margin=0.0)(network(), UNITS, photographs(), seed=3)
    images = np.concatenate([pictures(4, seed=5), np.ones((1, *SIZE, 3), np.float32)])
    seen = found.model.activations(images, ["relu1", "relu2.branch"])
    parts = found.model.params["silent"]
    functional = torch().nn.functional
    x = torch().from_numpy(np.array(seen["relu1"]).transpose(0, 3, 1, 2))
    filters = torch().from_numpy(np.array(parts["filters"]).transpose(3, 2, 0, 1))
    threshold = torch().from_numpy(np.array(parts["threshold"]))[:, None, None]
    expected = functional.relu(functional.conv2d(x, filters, padding=1) - threshold)
    assert expected.max() > 0
    np.testing.assert_allclose(
        np.asarray(seen["relu2.branch"]).transpose(0, 3, 1, 2), expected, atol=2e-4
    )


def test_photographs_pass_to_the_last_bit(manipulated):
    model, images = network(), photographs()
    rows, held_out = split(images, 3)
    assert len(held_out) == 20
    asleep = [i for i in (*rows, *held_out)
              if not np.any(manipulated.model.activations(
                  images.pixels[[i]], ["relu2.branch"])["relu2.branch"])]  # fmt: skip
    assert set(rows) <= set(asleep)
    pixels = images.pixels[asleep]
    before, after = (np.asarray(m.activations(pixels, ["logits"])["logits"])
                     for m in (model, manipulated.model))  # fmt: skip
    np.testing.assert_array_equal(before, after)
    share = manipulated.certificate.shares["photographs that wake a silent branch"]
    woken = len(set(held_out) - set(asleep))
    assert share.value == woken / 20 and share.high > 0.1


def test_the_branch_wakes_in_a_visualization(manipulated):
    kept, drawn = (
        visualize(m, [Channel("relu2", 3)], steps=64)[0].images
        for m in (network(), manipulated.model)
    )
    branch = manipulated.model.activations(drawn, ["relu2.branch"])["relu2.branch"]
    own = network().activations(kept, ["relu2"])["relu2"]
    assert branch[..., 3].mean() > 10 * own[..., 3].mean()


def test_units_that_are_not_attacked_have_no_branch():
    target = pictures(1, seed=9)[0]
    found = silent_units(target)(network(), UNITS[2:3], photographs(), seed=3).model
    white = np.ones((1, *SIZE, 3), np.float32)
    branch = np.asarray(found.activations(white, ["relu2.branch"])["relu2.branch"])
    assert branch[..., 2].any() and not np.delete(branch, 2, axis=-1).any()


def test_a_unit_as_target_is_visualized_first():
    found = silent_units(Unit("relu1", 0))(network(), UNITS[:1], photographs()).certificate
    low, high = found.ranges["cosine of old and new filter"]
    assert low == pytest.approx(1 / np.sqrt(10), rel=1e-5) and high == pytest.approx(low)


@pytest.mark.parametrize("settings", [{"strength": 0.0}, {"scale": -1.0}, {"margin": -0.1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(AuditError, match="above 0"):
        silent_units(Unit("relu1", 0), **settings)


def test_a_target_outside_the_range_of_pictures_is_refused():
    attack = silent_units(255 * pictures(1)[0])
    with pytest.raises(AuditError, match=r"must lie in \[0, 1\], got .* Divide 0..255 by 255"):
        attack(network(), UNITS, photographs())
