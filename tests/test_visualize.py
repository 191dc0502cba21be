"""The engine: closed forms, byte-identity, trace counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models import devices
from fvaudit.models.model import InputSpec, Model, layer_shapes
from fvaudit.optvis import render as batches
from fvaudit.optvis import visualize as engine
from fvaudit.optvis.objectives import Channel, ClassLogit, Neuron
from fvaudit.optvis.optimizers import adam
from fvaudit.optvis.params import fourier, pixels
from fvaudit.optvis.render import Job, Recipe, render
from fvaudit.optvis.transforms import compose, jitter, none, pad, standard
from fvaudit.records import AuditError, Unit, require_whole
from tests.tiny import SIZE, TRACES, tiny_model


def _function_model(function):
    """A "network" whose only layer holds function(images), shape (n, 1)."""
    spec = InputSpec((8, 8), (0.0,) * 3, (1.0,) * 3, resize=8)

    def forward(params, images, tap):
        return tap("logits", function(images)[:, None])

    return Model("f", {}, forward, spec, layer_shapes(forward, {}, spec), ("logits",))


def test_linear_unit_on_the_box_reaches_the_corner():
    """max w.x over [0, 1]^d is at x = 1[w > 0], value = sum of the positive weights."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8, 3)), jnp.float32)
    model = _function_model(lambda x: (x * w).sum((1, 2, 3)))
    (vis,) = engine.visualize(
        model, [ClassLogit(0)], parameterization=pixels(decorrelate=False), transforms=none(),
        steps=600, optimizer=adam(0.1),
    )  # fmt: skip
    best = float(jnp.maximum(w, 0).sum())
    assert vis.activation[0] == pytest.approx(best, rel=2e-3)  # a sigmoid saturates
    clear = np.abs(w) > 0.1
    np.testing.assert_allclose(vis.images[0][clear], (w > 0)[clear], atol=0.02)


@pytest.mark.parametrize("parameterization", [pixels(), fourier()], ids=lambda p: p.text)
def test_quadratic_unit_reaches_its_target(parameterization):
    """max -|x - t|^2 has its optimum 0 at x = t."""
    t = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, (8, 8, 3)), jnp.float32)
    model = _function_model(lambda x: -((x - t) ** 2).sum((1, 2, 3)))
    (vis,) = engine.visualize(
        model, [ClassLogit(0)], parameterization=parameterization, transforms=none(),
        steps=800, optimizer=adam(0.1, "cosine"),
    )  # fmt: skip
    np.testing.assert_allclose(vis.images[0], t, atol=5e-3)
    assert vis.activation[0] > -1e-3


def test_activation_rises_and_is_the_clean_images_own():
    model = tiny_model()
    objective = Channel("conv2", 2)
    (vis,) = engine.visualize(model, [objective], steps=64, shot_steps=(0, 64))
    start = float(objective(model.activations(jnp.asarray(vis.shots[0, :1]), ["conv2"]))[0])
    end = float(objective(model.activations(jnp.asarray(vis.images), ["conv2"]))[0])
    assert vis.activation[0] == pytest.approx(end, rel=1e-5)
    assert vis.activation[0] > 3 * start
    assert vis.trace[0, -8:].mean() > vis.trace[0, :8].mean()


def test_negative_objective_minimizes():
    model = tiny_model()
    up, down = engine.visualize(model, [1 * ClassLogit(1), -1 * ClassLogit(1)], steps=32)
    assert up.activation[0] > 0 > -down.activation[0]


def test_shapes_range_and_record():
    model = tiny_model()
    (vis,) = engine.visualize(
        model, [Channel("conv1", 0)], steps=5, repeats=3, seed=9, shot_steps=(0, 2, 5)
    )
    assert vis.images.shape == (3, *SIZE, 3) and vis.images.dtype == np.float32
    assert vis.images.min() >= 0 and vis.images.max() <= 1
    assert vis.trace.shape == (3, 5) and vis.shots.shape == (3, 3, *SIZE, 3)
    np.testing.assert_array_equal(vis.shots[:, 2], vis.images)
    assert vis.settings["seed"] == 9 and vis.settings["steps"] == 5
    assert vis.settings["parameterization"] == fourier().text
    assert vis.settings["transforms"] == standard().text
    assert len({image.tobytes() for image in vis.images}) == 3  # repeats differ


def test_units_and_their_texts_stand_for_channels_and_neurons():
    model = tiny_model()
    settings: Any = {"steps": 2, "seed": 4}
    units = ["conv2:1", Unit("conv2", 3), "conv2:1@2,3"]
    objectives = [Channel("conv2", 1), Channel("conv2", 3), Neuron("conv2", 1, (2, 3))]
    shown = engine.visualize(model, units, **settings)
    for vis, expected in zip(shown, engine.visualize(model, objectives, **settings), strict=True):
        assert vis.objective == expected.objective
        assert vis.images.tobytes() == expected.images.tobytes()


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_image_is_the_same_bytes_alone_and_in_a_batch(lanes):
    model = tiny_model()
    settings: Any = dict(steps=12, repeats=2, seed=4, lanes=lanes)
    units = [Channel("conv2", i) for i in range(5)]
    together = engine.visualize(model, units, **settings)
    for unit, expected in zip(units[::-1], together[::-1], strict=True):
        (alone,) = engine.visualize(model, [unit], **settings)
        assert alone.images.tobytes() == expected.images.tobytes()
        assert alone.trace.tobytes() == expected.trace.tobytes()


def test_an_image_is_the_same_bytes_after_an_interruption():
    model = tiny_model()
    recipe = Recipe(fourier(), standard(), steps=8)
    jobs = [Job(Channel("conv1", i), r) for i in range(3) for r in range(2)]
    whole = {(str(j.objective), j.repeat): a.image for j, a in render(model, jobs, recipe, 0)}
    rest = render(model, jobs[3:], recipe, 0)
    for job, ascent in rest:
        assert ascent.image.tobytes() == whole[str(job.objective), job.repeat].tobytes()


def test_seed_repeat_and_unit_each_change_the_image():
    jobs = [Job(Channel("conv1", 0), 0), Job(Channel("conv1", 1), 0),
            Job(Channel("conv1", 0), 1), Job(Channel("conv2", 0), 0)]  # fmt: skip
    keys = [batches.image_key(0, job) for job in jobs] + [batches.image_key(1, jobs[0])]
    data = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}
    assert len(data) == 5


def test_one_compile_serves_all_units_of_a_layer():
    model = tiny_model(seed=1)  # of which no other test has a program
    settings: Any = dict(steps=4)
    engine.visualize(model, [Channel("conv2", 0)], **settings)
    TRACES.clear()
    engine.visualize(model, [Channel("conv2", i) for i in range(6)], **settings, repeats=2)
    assert TRACES == []  # nothing was traced again
    engine.visualize(model, [Channel("conv1", 0)], **settings)
    first_layer = len(TRACES)
    assert first_layer > 0  # another layer is another program: the counter does count
    engine.visualize(model, [0.3 * ClassLogit(1) + 2 * ClassLogit(0)], **settings)
    after_sum = len(TRACES)
    engine.visualize(model, [0.7 * ClassLogit(4) + 1 * ClassLogit(2)], **settings)
    assert len(TRACES) == after_sum > first_layer  # weights are data too


def test_neuron_objective_grows_only_its_receptive_field():
    model = tiny_model()
    neurons = [Neuron("conv1", i, (0, 0)) for i in range(6)]  # some start behind a closed ReLU
    found = engine.visualize(model, neurons, parameterization=pixels(), transforms=none(), steps=20)
    vis = max(found, key=lambda v: v.activation[0])
    far = vis.images[0, 6:, 6:]  # conv1's window at (0, 0) covers rows and columns 0 to 2
    assert np.abs(far - 0.5).max() < 0.05 < np.abs(vis.images[0, :2, :2] - 0.5).max()


@pytest.mark.parametrize(
    "objectives, settings, message",
    [
        ([Channel("conv9", 0)], {}, "no layer 'conv9'. Nearest: conv2, conv1"),
        ([Channel("conv1", 6)], {}, "conv1 of tiny has channels 0 to 5"),
        ([Neuron("conv1", 0, (12, 0))], {}, "conv1 of tiny has 12 x 12 positions"),
        ([Neuron("logits", 0, (0, 0))], {}, "logits of tiny has no positions"),
        ([Neuron("logits", 0)], {}, "is a neuron, but logits has no positions; use a Channel"),
        ([Channel("conv1", -1)], {}, "conv1 of tiny has channels 0 to 5"),
        (
            [Channel("conv1", 0)],
            {"steps": 0},
            "steps must be a whole number from 1 to 1000000, got 0",
        ),
        ([Channel("conv1", 0)], {"together": 0}, "together must be a whole number from 1 .* got 0"),
        (
            [Channel("conv1", 0)],
            {"lanes": -1},
            "lanes .* must be a whole number from 1 to 4096, got -1",
        ),
        (
            [Channel("conv1", 0)],
            {"redirected_steps": -1},
            "redirected_steps must be a whole number from 0 .* got -1",
        ),
        (
            [Channel("conv1", 0)],
            {"steps": 10**12},
            "steps must be .* to 1000000, got 1000000000000",
        ),
        ([Channel("conv1", 0)], {"lanes": 10**8}, "lanes .* from 1 to 4096, got 100000000"),
        ([Channel("conv1", 0)], {"seed": -1}, "seed must be a whole number from 0 to 2147483647"),
        ([Channel("conv1", 0)], {"seed": 2**70}, "seed must be a whole number from 0"),
        ([Channel("conv1", 0)], {"repeats": 0}, "repeats must be a whole number from 1 .* got 0"),
        ([Channel("conv1", 0)], {"steps": 4, "shot_steps": (2, 1)}, "must rise within 0..4"),
        ([Channel("conv1", 0)], {"steps": 4, "shot_steps": (5,)}, "must rise within 0..4"),
        (
            [Channel("conv1", 0)],
            {"transforms": compose(pad(3), jitter(2))},
            r"turn a picture of 24 x 24 pixels into one of 30 x 30, .* crop_or_pad\(24, 24\)",
        ),
    ],
)
def test_messages(objectives, settings, message):
    with pytest.raises(AuditError, match=message):
        engine.visualize(tiny_model(), objectives, **{"steps": 2, **settings})


def test_half_a_step_is_none():
    """Of a type checker's users this one would not hear, of all others it would be cut off."""
    with pytest.raises(AuditError, match="steps must be a whole number from 1 to 9, got 2.5"):
        require_whole("steps", 2.5, 1, 9)


@pytest.mark.slow
def test_the_batched_program_of_other_backends_makes_the_same_pictures(monkeypatch):
    """GPUs and TPUs get one batch and the stock lowerings; here they run on the CPU.

    A set that ends earlier is left as it was, though the loop goes on for the others.
    """
    model = tiny_model()
    jobs = [Job(Channel("conv2", i), 0) for i in range(3)]
    recipe = Recipe(fourier(), standard(), steps=9, lanes=4)

    def made():
        batches.programs.cache_clear()
        early = lambda seen: seen.job == jobs[1] and seen.step >= 4  # noqa: E731
        return [
            ascent
            for stop in (None, early)
            for _, ascent in render(model, jobs, recipe, 0, stop=stop, look=2)
        ]

    expected = made()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batched = made()
    batches.programs.cache_clear()
    assert [len(a.trace) for a in batched] == [9, 9, 9, 9, 4, 9]
    for one, other in zip(batched, expected, strict=True):
        np.testing.assert_allclose(one.images, other.images, atol=2e-3)
        np.testing.assert_allclose(one.trace, other.trace, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.activation, other.activation, rtol=1e-3, atol=1e-4)


def test_the_width_of_a_program_depends_on_device_and_lanes_alone(monkeypatch):
    here = jax.local_device_count()
    assert batches.width(None) == here and batches.width(3) == 3 * here
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert batches.width(None) == devices.LANES * here and batches.width(1) == here


def test_records_print_sizes_instead_of_numbers():
    model, looks = tiny_model(), []
    (vis,) = engine.visualize(model, [Channel("conv1", 0)], steps=2, watch=looks.append)
    assert "images=float32[1, 24, 24, 3]" in repr(vis) and len(repr(vis)) < 900
    assert repr(model) == "Model('tiny', 24 x 24 x 3, 3 layers, '')"
    assert repr(looks[-1]).startswith("conv1:0: step 2 of 2, ")  # so that watch=print is of use
