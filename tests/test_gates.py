"""`fvaudit train-gate`: a config in, a gate and its measured errors out."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from fvaudit import gates, store
from fvaudit.attacks import gate as small
from fvaudit.attacks import gate_training
from fvaudit.config import Photographs
from fvaudit.records import AuditError
from tests.tiny import pictures, tiny_model


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "load_model", lambda *_, **__: tiny_model())
    for name, seed in (("train", 0), ("test", 1)):
        (tmp_path / name).mkdir()
        for i, pixels in enumerate(pictures(6, seed)):
            picture = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
            picture.save(tmp_path / name / f"{i}.png")
    said = {
        "model": "tiny",
        "train": [{"source": "train"}],
        "test": [{"source": "test"}],
        "units": [
            {"layer": "conv2", "train": 2, "test": 1},
            {"layer": "logits", "train": 1, "test": 1, "test_below": 2},
        ],
        "steps": 120,
        "batch": 8,
    }
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(said))
    return tmp_path / "gate.yaml"


def test_a_gate_comes_out_with_its_errors(config, tmp_path):
    facts = gates.train_gate(config, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / gates.RATES).read_text())
    assert stored == json.loads(json.dumps(facts))
    assert facts["units"] == {"train": 3, "test": 2}
    assert facts["photographs"] == {"train": 6, "test": 6}
    gate = small.load(tmp_path / "out" / gates.GATE)
    unseen = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "test").iterdir())])
    wrong = int(
        (np.asarray(gate.logit(gate.params, jnp.asarray(unseen / np.float32(255)))) <= 0).sum()
    )
    assert facts["photographs taken for visualizations"]["value"] == wrong / 6


@pytest.mark.slow
def test_interrupted_it_ends_in_the_same_bytes(config, tmp_path, monkeypatch):
    gates.train_gate(config, tmp_path / "whole")
    saved = gate_training.save_state

    def dies(file, step, state, begun):
        saved(file, step, state, begun)
        raise KeyboardInterrupt

    monkeypatch.setattr(gate_training, "save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        gates.train_gate(config, tmp_path / "killed")
    monkeypatch.setattr(gate_training, "save_state", saved)
    gates.train_gate(config, tmp_path / "killed")
    for name in (gates.GATE, gates.RATES):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_units_of_training_and_test_are_disjoint():
    said = gates.GateTraining.model_validate({
        "model": "tiny", "train": [{"source": "a"}], "test": [{"source": "b"}],
        "units": [{"layer": "conv2", "train": 4, "test": 2},
                  {"layer": "logits", "train": 3, "test": 2, "test_below": 2}],
    })  # fmt: skip
    ours, theirs = gates.units_of(said, tiny_model())
    assert len(ours) == 7 and len(theirs) == 4 and not set(ours) & set(theirs)
    assert [u.channel for u in theirs if u.layer == "logits"] == [0, 1]


def test_what_is_wrong_is_said(config, tmp_path):
    with pytest.raises(AuditError, match="has 6 channels; 5 to train on and 2"):
        gates.train_gate(config, tmp_path / "x", overrides=[
            "units=[{layer: conv2, train: 5, test: 2}]"])  # fmt: skip
    assert not (tmp_path / "x").exists()
    with pytest.raises(AuditError, match="has 5 channels, 2 of them below 2; 1 to train on and 3"):
        gates.train_gate(config, tmp_path / "x", overrides=[
            "units=[{layer: logits, train: 1, test: 3, test_below: 2}]"])  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / store.CONFIG).write_text("{}")
    with pytest.raises(AuditError, match="another config"):
        gates.train_gate(config, tmp_path / "other")
    with pytest.raises(AuditError, match="train.0.labels: there is no such key"):
        gates.train_gate(config, tmp_path / "y", overrides=["train.0.labels=true"])


def test_errors_are_those_of_what_training_did_not_see(config, tmp_path):
    def refused(match, *overrides):
        with pytest.raises(AuditError, match=match):
            gates.train_gate(config, tmp_path / "out", overrides=overrides)

    refused(
        "6 of the 6 photographs to test on are there to train on too: 0.png",
        "test=[{source: train}]",
    )
    refused("units names a layer twice: conv2. Merge", "units.1={layer: conv2, train: 1, test: 1}")
    refused("test: errors are counted in photographs", "test=[{source: test, crops: 2}]")
    assert not (tmp_path / "out").exists()


def test_a_picture_of_two_sources_and_two_images_of_a_photograph_count_once(tmp_path):
    pixels = np.round(255 * pictures(6)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels[:4], group=[0, 0, 1, 2])
    np.savez(tmp_path / "b.npz", images=pixels[2:])
    sources = [Photographs(source="a.npz"), Photographs(source="b.npz")]
    train, test = (
        gates._photographs(sources, tmp_path, tiny_model(), one_each=each) for each in (False, True)
    )
    assert np.array_equal(train.pixels, pixels) and len(train.names) == 6
    assert np.array_equal(test.pixels, pixels[[0, 2, 3, 4, 5]])
