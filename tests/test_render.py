"""The batch runner: looking, stopping, starting from an image, sets, dead units, devices."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.models.model import InputSpec, Model, build, layer_shapes
from fvaudit.optvis import visualize as engine
from fvaudit.optvis.alpha import with_alpha
from fvaudit.optvis.couplings import Diversity
from fvaudit.optvis.custom import Custom
from fvaudit.optvis.objectives import Channel, ClassLogit
from fvaudit.optvis.optimize import STRETCH
from fvaudit.optvis.optimizers import adam
from fvaudit.optvis.params import fourier, pixels
from fvaudit.optvis.penalties import L1
from fvaudit.optvis.render import Job, Progress, Recipe, _marks, plateau, render
from fvaudit.optvis.transforms import none, standard
from fvaudit.records import AuditError
from tests.tiny import SIZE, pictures, tiny_model


def _made(model, jobs, recipe, **settings):
    return {
        (str(job.objective), job.repeat): a for job, a in render(model, jobs, recipe, 3, **settings)
    }


def test_looking_shots_and_stretches_change_no_byte():
    model = tiny_model()
    jobs = [Job(Channel("conv2", i), 0) for i in range(3)]
    plain = _made(model, jobs, Recipe(fourier(), standard(), steps=STRETCH + 9))
    shots = (0, 1, 30, STRETCH + 9)
    looked = _made(
        model, jobs, Recipe(fourier(), standard(), steps=STRETCH + 9, shot_steps=shots),
        watch=lambda progress: None, look=7,
    )  # fmt: skip
    for name, ascent in plain.items():
        assert looked[name].images.tobytes() == ascent.images.tobytes()
        assert looked[name].trace.tobytes() == ascent.trace.tobytes()
        assert looked[name].shots.shape == (4, 1, *SIZE, 3)
        np.testing.assert_array_equal(looked[name].shots[-1], ascent.images)
        assert len(ascent.trace) == STRETCH + 9 and ascent.shots.shape[0] == 0


def test_a_watcher_sees_every_look_with_trace_and_images():
    model, seen = tiny_model(), []
    job = Job(Channel("conv1", 2), 0)
    (made,) = _made(
        model, [job], Recipe(fourier(), standard(), steps=10), watch=seen.append, look=4
    ).values()
    assert [p.step for p in seen] == [4, 8, 10]
    assert all(p.job == job and p.total == 10 and len(p.trace) == p.step for p in seen)
    np.testing.assert_array_equal(seen[-1].images, made.images)
    np.testing.assert_array_equal(seen[1].trace, made.trace[:8])


def test_stopping_ends_each_job_where_it_was_told_to():
    model = tiny_model()
    ends = {"conv1:0": 8, "conv1:1": 20}

    def stop(progress):
        return progress.step >= ends[str(progress.job.objective)]

    jobs = [Job(Channel("conv1", i), 0) for i in range(2)]
    stopped = _made(model, jobs, Recipe(fourier(), standard(), steps=40), stop=stop, look=4)
    for name, steps in ends.items():
        whole = _made(
            model, [j for j in jobs if str(j.objective) == name],
            Recipe(fourier(), standard(), steps=40, shot_steps=(steps,)),
        )[name, 0]  # fmt: skip
        assert len(stopped[name, 0].trace) == steps
        np.testing.assert_array_equal(stopped[name, 0].images, whole.shots[0])
        own = model.activations(jnp.asarray(stopped[name, 0].images), ["conv1"])["conv1"]
        channel = int(name[-1])
        assert stopped[name, 0].activation[0] == pytest.approx(
            float(own[..., channel].mean()), rel=1e-5
        )


def test_stopped_traces_end_in_nan_in_the_record():
    first = iter([True] + 99 * [False])
    (vis,) = engine.visualize(
        tiny_model(), [Channel("conv1", 0)], steps=64, repeats=2, stop=lambda p: next(first)
    )
    steps = np.isfinite(vis.trace).sum(axis=1)
    assert sorted(steps) == [32, 64] and vis.trace.shape == (2, 64)


def test_plateau_stops_flat_traces_and_lets_rising_ones_go():
    job, image = Job(Channel("a", 0), 0), np.zeros((1, 2, 2, 3), np.float32)

    def asked(trace):
        return plateau(window=8, gain=0.01)(Progress(job, len(trace), 99, trace, image))

    assert not asked(np.ones(15))  # too short to say
    assert asked(np.ones(16))
    assert not asked(np.linspace(1, 2, 16))
    assert asked(np.linspace(1, 1.01, 16))
    assert not asked(np.full(16, np.nan))


def test_a_start_image_is_where_it_begins():
    picture = pictures(1)[0] * 0.9 + 0.05
    (vis,) = engine.visualize(
        tiny_model(), [Channel("conv1", 0)], start=picture, steps=3, shot_steps=(0,), repeats=2
    )
    np.testing.assert_allclose(vis.shots[:, 0], np.stack([picture] * 2), atol=1e-5)
    assert vis.settings["start"].startswith("image sha256:")
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    assert vis.settings["start"].endswith(digest[:12])
    assert not np.array_equal(vis.images[0], vis.images[1])  # transforms differ by repeat


@pytest.mark.parametrize(
    "start, message",
    [
        (np.zeros((5, 5, 3), np.float32), r"must have shape \(24, 24, 3\) for fourier"),
        (np.full((*SIZE, 3), 2.0, np.float32), r"must lie in \[0, 1\], got \[2, 2\]"),
        (np.full((*SIZE, 3), np.nan, np.float32), r"must lie in \[0, 1\]"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start, message):
    with pytest.raises(AuditError, match=message):
        engine.visualize(tiny_model(), [Channel("conv1", 0)], start=start, steps=2)


def test_images_of_a_set_are_made_jointly_and_differ():
    model = tiny_model()
    (vis,) = engine.visualize(model, [Channel("conv2", 1)], together=3, repeats=2, steps=6)
    assert vis.images.shape == (6, *SIZE, 3) and vis.activation.shape == (6,)
    assert vis.trace.shape == (2, 6) and len({i.tobytes() for i in vis.images}) == 6
    again = model.activations(jnp.asarray(vis.images), ["conv2"])["conv2"][..., 1].mean((1, 2))
    np.testing.assert_allclose(vis.activation, again, rtol=1e-5)


def _gated(bias: float) -> Model:
    """One unit, relu(mean of the image - bias): dead from any start if the bias is large."""
    spec = InputSpec((8, 8), (0.0,) * 3, (1.0,) * 3, resize=8)

    def forward(params, images, tap):
        return tap("logits", jax.nn.relu(images.mean((1, 2, 3)) - params)[:, None])

    params = jnp.float32(bias)
    return Model("gated", params, forward, spec, layer_shapes(forward, params, spec), ("logits",))


def test_dead_units_are_reported():
    """Networks that use the plain ReLU have nothing to redirect: the unit stays dead."""
    settings: Any = dict(steps=4, repeats=2)
    (dead,) = engine.visualize(_gated(0.9), [ClassLogit(0)], **settings)
    (live,) = engine.visualize(_gated(0.1), [ClassLogit(0)], **settings)
    assert not dead.alive.any() and live.alive.all()
    assert (dead.activation == 0).all()


@pytest.mark.parametrize("steps", [1, 6])
def test_a_gradient_that_is_no_number_ends_an_ascent_and_is_reported(steps):
    """sqrt has no slope at 0; jnp.where picks the other value, but not the other gradient."""

    def forward(params, images, tap):
        x = jnp.maximum(images - params, 0).mean((1, 2))
        length = jnp.sqrt((x[:, :2] ** 2).sum(1, keepdims=True))
        return tap("logits", jnp.where(length > 0, x / length, 0))

    spec = InputSpec(SIZE, (0.0,) * 3, (1.0,) * 3, SIZE[0])
    model = build(forward, jnp.asarray(0.9), spec, name="no slope")
    start = np.full((*SIZE, 3), 0.25, np.float32)
    (vis,) = engine.visualize(
        model, [ClassLogit(0)], steps=steps, start=start, parameterization=pixels()
    )
    assert not vis.alive.any()
    np.testing.assert_allclose(vis.images[0], start, atol=1e-6)  # not NaN, which PNGs show as black


@pytest.mark.parametrize(
    "steps, shots, look, expected",
    [
        (10, (), None, [10]),
        (10, (0, 4), None, [0, 4, 10]),
        (10, (), 4, [4, 8, 10]),
        (2 * STRETCH + 1, (), None, [STRETCH, 2 * STRETCH, 2 * STRETCH + 1]),
        (STRETCH + 8, (4,), None, [4, 4 + STRETCH, STRETCH + 8]),
    ],
)
def test_marks_hold_every_shot_and_no_stretch_is_too_long(steps, shots, look, expected):
    recipe = Recipe(fourier(), standard(), steps=steps, shot_steps=shots)
    assert _marks(recipe, look) == expected


DEVICES = """
import hashlib
import jax
jax.config.update("jax_num_cpu_devices", {count})
import fvaudit as fv
from fvaudit.models.zoo import random_model
from tests import tiny
assert jax.local_device_count() == {count}
units = [fv.Channel("{layer}", i) for i in range(3)]
found = fv.visualize({model}, units, steps=9, repeats=1)
print(hashlib.sha256(b"".join(v.images.tobytes() + v.trace.tobytes() for v in found)).hexdigest())
"""


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("tiny.tiny_model()", "conv2"),
        ("tiny.attentive_model()", "attention"),
        pytest.param("fv.load_model('efficientnet_lite0')", "blocks.7", marks=pytest.mark.slow),
        pytest.param("random_model('vit_b_16', seed=0)", "blocks.1", marks=pytest.mark.slow),
        pytest.param("random_model('googlenet', seed=0)", "mixed4a", marks=pytest.mark.slow),
    ],
)
def test_two_devices_make_the_same_bytes_as_one(model, layer):
    def digest(count):
        code = DEVICES.format(count=count, model=model, layer=layer)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        root = os.path.dirname(os.path.dirname(__file__))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert digest(1) == digest(2)


def test_pixels_and_no_transform_leave_the_start_of_a_zero_objective_alone():
    (vis,) = engine.visualize(
        tiny_model(), [0.0 * Channel("conv1", 0)], parameterization=pixels(), transforms=none(),
        steps=5, shot_steps=(0,),
    )  # fmt: skip
    np.testing.assert_array_equal(vis.images, vis.shots[:, 0])
    assert not vis.alive.any()


def test_opacity_is_optimized_too_and_a_penalty_on_it_clears_the_picture():
    model, alpha = tiny_model(), with_alpha(fourier())
    unit = Channel("conv2", 1)
    settings: Any = dict(parameterization=alpha, steps=24, optimizer=adam(0.1))
    free, held = engine.visualize(  # one program, since weights are data
        model, [1 * unit - weight * L1("opacity") for weight in (0.0, 1.0)], **settings
    )
    assert free.images.shape == (1, *SIZE, 4)
    assert held.images[..., 3].mean() < 0.7 * free.images[..., 3].mean()
    image = free.images[..., :3] * free.images[..., 3:] + 0.5 * (1 - free.images[..., 3:])
    own = model.activations(jnp.asarray(image), ["conv2"])["conv2"][..., 1].mean()
    assert free.activation[0] == pytest.approx(float(own), rel=1e-4)


def test_opacity_needs_a_parameterization_that_has_one():
    with pytest.raises(AuditError, match="reads the opacity, but images of fourier.* have none"):
        engine.visualize(tiny_model(), [Channel("conv2", 1) - L1("opacity")], steps=2)


@pytest.mark.slow
def test_images_of_a_diverse_set_differ_more():
    model = tiny_model()
    unit = Channel("conv2", 1)
    settings: Any = dict(together=3, steps=48, seed=2)
    alike, diverse = engine.visualize(
        model, [1 * unit - weight * Diversity("conv2") for weight in (0.0, 10.0)], **settings
    )

    def likeness(vis):
        a = np.asarray(model.activations(jnp.asarray(vis.images), ["conv2"])["conv2"])
        flat = a.reshape(3, -1, a.shape[-1])
        grams = np.einsum("npc,npd->ncd", flat, flat).reshape(3, -1)
        grams /= np.linalg.norm(grams, axis=1, keepdims=True)
        return (grams @ grams.T)[np.triu_indices(3, 1)].mean()

    assert likeness(diverse) < likeness(alike)


def test_penalties_see_the_images_without_their_transforms():
    """ "input" is what is optimized: its L1 at the last step is that of the image before it."""
    model = tiny_model()
    seen = engine.visualize(
        model, [1 * L1("input")], steps=3, shot_steps=(0, 1, 2), redirected_steps=0
    )[0]
    own = np.abs(seen.shots[0] - 0.5).sum((1, 2, 3))
    np.testing.assert_allclose(seen.trace[0], own, rtol=1e-5)


def test_two_objectives_of_one_text_are_refused():
    def bright(activations):
        return activations["input"].mean((1, 2, 3))

    def dark(activations):
        return -activations["input"].mean((1, 2, 3))

    twins = [Custom(f, layers=("input",), text="mean") for f in (bright, dark)]
    with pytest.raises(AuditError, match=r"Two different objectives have the text 'Custom\(mean"):
        engine.visualize(tiny_model(), twins, steps=2)
