"""`fvaudit manipulate`: a config in; model, certificate and pictures out."""

import json
import re

import numpy as np
import pytest
import yaml

from fvaudit.cli import main
from fvaudit.manipulation import manipulate
from fvaudit.models import builders
from fvaudit.models.zoo import load_model
from fvaudit.records import AuditError


SILENT = {
    "model": "efficientnet_lite0",
    "images": {"source": "samples", "limit": 12},
    "units": {"layer": "blocks.1.expand", "channels": [3, 5]},
    "attack": {"kind": "silent_units", "target": "blocks.0:4"},
    "shown": 1,
}


def written(tmp_path, **changes):
    path = tmp_path / "attack.yaml"
    path.write_text(yaml.safe_dump(SILENT | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"atack": 1}, "atack: there is no such key; did you mean 'attack'"),
        ({"attack": {"kind": "silent_units"}}, "target"),
        (
            {"attack": {"kind": "silent_units", "target": "a:1", "decoy": 2}},
            "attack.silent_units.decoy: there is no such key$",
        ),
        (
            {
                "attack": {
                    "kind": "finetuned",
                    "goal": {"kind": "push", "direction": "up", "margn": 1},
                }
            },
            "attack.finetuned.goal.push.margn: there is no such key; did you mean 'margin'",
        ),
        (
            {"attack": {"kind": "magic"}},
            "attack: expected a `kind`, one of fooling_circuit, silent_units, finetuned, got {",
        ),
        (
            {"attack": {"kind": "finetuned", "goal": {"target": "a:1"}}},
            "attack.finetuned.goal: expected a `kind`, one of slingshot, proxpulse, push, got {",
        ),
        ({"atack": 1}, "`fvaudit schema manipulate` prints all keys"),
        ({"units": {"layer": "blocks.99"}}, "no layer 'blocks.99'"),
        ({"attack": {"kind": "silent_units", "target": "nowhere.png"}}, "does not name a unit"),
        ({"attack": {"kind": "fooling_circuit", "decoy": 1, "gate": "no.safetensors"}}, "no such"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, match):
    with pytest.raises(AuditError, match=re.compile(match, re.MULTILINE)):
        manipulate(written(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_config_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AuditError, match="holds a manipulation with another config. Choose anoth"):
        manipulate(written(tmp_path, model="no_such_model"), tmp_path)


def test_packaged_builders_are_found_by_name():
    for name in ("fooling_circuit", "silent_units", "finetuned"):
        assert callable(builders._builder(name))


@pytest.mark.slow
def test_a_manipulated_model_comes_back_bit_by_bit(tmp_path, monkeypatch):
    config, out = written(tmp_path), tmp_path / "out"
    proof = manipulate(config, out)
    assert proof["units"] == ["blocks.1.expand:3", "blocks.1.expand:5"]
    assert (out / "sheet.png").stat().st_size > 10_000
    model, base = load_model(str(out)), load_model("efficientnet_lite0")
    assert model.fingerprint == proof["after"] and base.fingerprint == proof["before"]
    white = np.ones((1, 224, 224, 3), np.float32)
    branch = np.asarray(model.activations(white, ["blocks.1.expand.branch"]).popitem()[1])
    assert not np.delete(branch, [3, 5], axis=-1).any()
    with pytest.raises(AuditError, match="holds a manipulation with another config"):
        manipulate(config, out, overrides=["units.channels=[3, 6]"])
    # The second run makes nothing anew.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "sheet.png"}
    monkeypatch.setattr("sys.argv", ["fvaudit", "manipulate", str(config), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    json.loads((out / "certificate.json").read_text())


TUNED = SILENT | {
    "images": {"source": "samples", "limit": 8},
    "units": {"layer": "blocks.1.expand", "channels": [3, 5, 7]},
    "attack": {
        "kind": "finetuned",
        "goal": {"kind": "push", "direction": "down", "k": 2},
        "adaptive": {"evade": 0.5},
        "steps": 4,
        "batch": 2,
        "since": "blocks.0",
    },
}


@pytest.mark.slow
def test_a_manipulated_model_can_be_manipulated_again(tmp_path):
    """The folder holds both manipulations, and paths count from the config's folder."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    manipulate(written(tmp_path), once)
    more = {"layer": "blocks.2.expand", "channels": [4]}
    manipulate(written(tmp_path, model="once", units=more), twice)
    model, first = load_model(str(twice)), load_model(str(once))
    assert model.name.startswith(first.name + "+") and model.fingerprint != first.fingerprint
    said = json.loads((twice / "recipe.json").read_text())
    assert [edit["builder"] for edit in said["edits"]] == ["silent_units"] * 2
    assert said["network"] == "efficientnet_lite0"
    layers = {"blocks.1.expand.branch": [3, 5], "blocks.2.expand.branch": [4]}
    found = model.activations(np.ones((1, 224, 224, 3), np.float32), list(layers))
    for layer, channels in layers.items():
        assert not np.delete(np.asarray(found[layer]), channels, axis=-1).any()


@pytest.mark.slow
def test_a_fine_tuned_model_comes_back_bit_by_bit(tmp_path):
    path, out, told = tmp_path / "attack.yaml", tmp_path / "out", []
    path.write_text(yaml.safe_dump(TUNED))
    proof = manipulate(path, out, tell=told.append)
    assert any(text.startswith("step 4 of 4") for text in told)
    assert not (tmp_path / "out.training").exists()
    model, base = load_model(str(out)), load_model("efficientnet_lite0")
    assert model.fingerprint == proof["after"] != base.fingerprint
    assert "share of the 2 strongest kept, trained on" in proof["effects"]
    assert model.name.startswith("efficientnet_lite0+adaptive(push_down(k=2")


@pytest.mark.parametrize(
    ("goal", "match"),
    [
        ({"kind": "push", "direction": "sideways"}, "up"),
        ({"kind": "slingshot"}, "target"),
        ({"kind": "proxpulse", "pictures": 0}, "pictures"),
    ],
)
def test_what_is_wrong_with_a_goal_is_said(tmp_path, goal, match):
    attack = {"kind": "finetuned", "goal": goal}
    with pytest.raises(AuditError, match=match):
        manipulate(written(tmp_path, attack=attack), tmp_path / "out")
