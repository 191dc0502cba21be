"""The gate: its arithmetic against PyTorch, its training on pictures that are easy to tell."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvaudit.attacks import gate as gates
from fvaudit.attacks import gate_training, trajectories
from fvaudit.attacks.gate_training import Images
from fvaudit.data import load_images
from fvaudit.models.zoo import random_model
from fvaudit.optvis.objectives import Channel
from fvaudit.optvis.visualize import visualize
from fvaudit.records import AuditError, Unit
from tests.peers import torch
from tests.tiny import pictures, tiny_model


def images(seed: int, units: int = 3, photographs: int = 20) -> Images:
    """Smooth pictures as photographs; noise around grey as ascents, the same at every moment."""
    rng = np.random.default_rng(seed)
    smooth = np.round(255 * pictures(photographs, seed)).astype(np.uint8)
    noise = rng.integers(64, 192, (units, len(trajectories.MOMENTS), 24, 24, 3), np.uint8)
    return Images(smooth, noise)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return gate_training.train(images(0), tmp_path_factory.mktemp("gate"), steps=60, batch=16)


@pytest.mark.extras
def test_the_network_equals_pytorch():
    gate = gates.small(jax.random.key(3))
    x = pictures(3, seed=1)
    functional = torch().nn.functional
    y = torch().from_numpy(2 * x.transpose(0, 3, 1, 2) - 1)
    for i, (size, stride, _) in enumerate(gates.LAYERS):
        kernel, bias = (np.array(gate.params[f"conv{i}"][part]) for part in ("kernel", "bias"))
        total = max((-(-y.shape[-1] // stride) - 1) * stride + size - y.shape[-1], 0)
        low = total // 2  # TensorFlow's rule, which XLA's SAME follows
        y = functional.pad(y, (low, total - low, low, total - low))
        weight = torch().from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        y = functional.relu(functional.conv2d(y, weight, torch().from_numpy(bias), stride))
    head = np.array(gate.params["head"]["kernel"])
    expected = y.mean((2, 3)).numpy() @ head
    found = gate.logit(gate.params, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_held_out_is_told_apart(trained):
    found = gate_training.rates(trained, images(1))
    assert found.photographs.value == found.ascents.value == 0
    assert found.photographs.n == 20 and found.ascents.n == 3
    assert found.photographs.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert [moment for moment, _ in found.moments] == list(trajectories.MOMENTS)


def test_errors_are_counted(trained):
    swapped = images(2)
    wrong = Images(swapped.ascents[:, 0], np.stack([swapped.photographs[:16]] * 2))
    found = gate_training.rates(trained, wrong)
    assert found.photographs.value == found.ascents.value == 1
    assert all(share == 1 for _, share in found.moments)


def test_a_training_that_was_interrupted_ends_the_same(trained, tmp_path):
    def stop(step, steps, loss):
        raise KeyboardInterrupt

    gate_training.SAVED, before = 20, gate_training.SAVED
    try:
        with pytest.raises(KeyboardInterrupt):
            gate_training.train(images(0), tmp_path, steps=60, batch=16, tell=stop)
    finally:
        gate_training.SAVED = before
    again = gate_training.train(images(0), tmp_path, steps=60, batch=16)
    for one, two in zip(*(jax.tree.leaves(g.params) for g in (trained, again)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_gate_that_gives_one_answer_is_refused(tmp_path):
    grey = np.full((8, 24, 24, 3), 128, np.uint8)
    same = Images(grey, np.stack([np.concatenate([grey, grey])] * 2))
    with pytest.raises(AuditError, match="learnt nothing"):
        gate_training.train(same, tmp_path, steps=4, batch=8)


def test_a_saved_gate_is_the_same_gate(trained, tmp_path):
    gate_training.save(trained, tmp_path / "mine.safetensors", {"steps": 60})
    found = gates.load(tmp_path / "mine.safetensors")
    x = jnp.asarray(pictures(4))
    np.testing.assert_array_equal(found.logit(found.params, x), trained.logit(trained.params, x))
    assert found.name == "mine"


def test_another_file_is_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    gate = gates.small(jax.random.key(0))
    params = {**gate.params, "head": {"kernel": jnp.zeros(5), "bias": jnp.zeros(())}}
    gate_training.save(gate._replace(params=params), other, {})
    with pytest.raises(AuditError, match="no gate of fvaudit"):
        gates.load(other)


def test_networks_without_a_gate_say_how_to_train_one():
    with pytest.raises(AuditError, match="No gate ships for 'alexnet'"):
        gates.packaged("alexnet")


def test_ascents_are_kept_at_every_moment_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "STEPS", 8)
    monkeypatch.setattr(trajectories, "MOMENTS", (0, 4, 8))
    units = [Unit("conv1", 1), Unit("conv2", 2), Unit("conv1", 3)]
    files = trajectories.make(tiny_model(), units, tmp_path)
    assert [f.name for f in files] == ["conv1-1.npz", "conv2-2.npz", "conv1-3.npz"]
    first = trajectories.load(files[0])
    assert first.shape == (3, 24, 24, 3) and np.std(first[0]) < np.std(first[2])
    stamp = files[1].stat().st_mtime_ns
    trajectories.make(tiny_model(), units, tmp_path)
    assert files[1].stat().st_mtime_ns == stamp


def test_files_of_ascents_stay_in_their_folder_whatever_a_layer_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "STEPS", 4)
    monkeypatch.setattr(trajectories, "MOMENTS", (0, 4))
    tiny, foreign = tiny_model(), "/layer1/relu"  # as ONNX files call theirs

    def forward(params, images, tap):
        return tiny.forward(params, images, lambda n, x: tap(foreign if n == "conv1" else n, x))

    shapes = {foreign if name == "conv1" else name: s for name, s in tiny.shapes.items()}
    model = dataclasses.replace(tiny, forward=forward, shapes=shapes, trunk=tuple(shapes))
    (file,) = trajectories.make(model, [Unit(foreign, 1)], tmp_path)
    assert file.parent == tmp_path and file.name.startswith("_layer1_relu-")
    assert trajectories.load(file).shape == (2, 24, 24, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "googlenet"])
def test_the_gate_that_ships_tells_samples_from_the_first_noise(name):
    """Photographs that ship in packages, of which it saw none, and the start of an ascent.

    Neither depends on the network's weights.
    """
    model = random_model(name, seed=0)
    gate, said = gates.packaged(name), gates.facts(name)
    natural = jax.jit(gate.natural)
    photographs = jnp.asarray(load_images("samples", model).pixels)
    assert natural(gate.params, photographs).mean() > 0.8
    (vis,) = visualize(model, [Channel(model.layers[1], 7)], steps=1, shot_steps=(0,))
    assert not natural(gate.params, jnp.asarray(vis.shots[0])).any()
    assert said["model"] == name
    assert said["photographs taken for visualizations"]["high"] < 0.1
    assert set(said["share of units misjudged after so many updates"]) == {
        str(moment) for moment in trajectories.MOMENTS
    }
