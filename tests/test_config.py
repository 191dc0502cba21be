"""Configs: what is accepted, every message, overrides."""

import pytest
import yaml

from fvaudit.config import dump, load_config
from fvaudit.records import AuditError
from fvaudit.yamlfile import parsed, presets


GOOD = {
    "model": "efficientnet_lite0",
    "images": {"source": "samples"},
    "units": [{"layer": "blocks.4", "count": 2}, {"layer": "logits", "channels": [1, 5]}],
}


@pytest.fixture
def write(tmp_path):
    def written(data, name="audit.yaml"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return path

    return written


def test_defaults_are_written_out_and_read_back(write):
    config = load_config(write(GOOD))
    assert config.engine.recipe == "fourier" and config.engine.steps is None  # its own
    again = load_config(write(dump(config), "again.yaml"))
    assert again == config


def test_every_preset_is_valid_and_reads_from_anywhere():
    assert "quickstart" in presets()
    for name in presets():
        assert load_config(name).version == 1


def test_quickstart_covers_three_hidden_layers_and_the_logits():
    config = load_config("quickstart")
    layers = [u.layer for u in config.units]
    assert len([layer for layer in layers if layer != "logits"]) >= 3 and "logits" in layers
    assert all(u.count == 8 for u in config.units) and config.engine.repeats == 2


def test_paths_count_from_the_configs_folder(write, tmp_path):
    config = load_config(write({**GOOD, "images": {"source": "photos", "classes": "c.tsv"}}))
    assert config.images.source == str(tmp_path / "photos")
    assert config.images.classes == str(tmp_path / "c.tsv")


def test_a_folder_called_like_a_network_is_not_the_model(write, tmp_path):
    (tmp_path / "resnet50").mkdir()
    named = {**GOOD, "model": "resnet50"}
    assert load_config(write(named)).model == "resnet50"
    (tmp_path / "resnet50" / "recipe.json").write_text("{}")
    assert load_config(write(named)).model == str(tmp_path / "resnet50")


def test_a_path_may_begin_at_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(write({**GOOD, "images": {"source": "~/photos"}, "weights": "~/w.npz"}))
    assert config.images.source == str(tmp_path / "home" / "photos")
    assert config.weights == str(tmp_path / "home" / "w.npz")


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: a\nseed: 1\nseed: 2\n", "the key 'seed' stands twice\n.*line 3"),
        ("engine: {steps: 1, repeats: 2, steps: 3}", "the key 'steps' stands twice"),
        ("[" * 5000, "is not valid YAML"),
    ],
)
def test_what_yaml_itself_would_let_pass(write, text, message):
    with pytest.raises(AuditError, match=message):
        load_config(write(text))


def test_an_anchor_may_be_used_and_overridden(write):
    text = dump(load_config(write(GOOD))).replace("engine:", "engine: &e", 1)
    assert load_config(write(text, "anchored.yaml")) == load_config(write(GOOD))
    nested = "x: {y: {a: &a {k: 1, l: 1}, b: &b {<<: *a, k: 2}}}\nc: {<<: *b, l: 3}"
    assert parsed(nested, "text") == yaml.safe_load(nested)


def test_a_list_of_lists_of_lists_is_not_written_out(write):
    """Nine lists, each of nine times the one before: 387 million entries in a file of 400 bytes."""
    lines = ["a: &a0 [1,1,1,1,1,1,1,1,1]"]
    lines += [f"{'bcdefghij'[i]}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]" for i in range(8)]
    text = "\n".join([*lines, "engine: *a8"])
    with pytest.raises(AuditError, match="engine: expected keys and values") as caught:
        load_config(write(text))
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    "text, where, value",
    [
        ("engine.steps=64", ("engine", "steps"), 64),
        ("units.1.channels=[3]", ("units", 1, "channels"), [3]),
        ("gates.same_path=null", ("gates", "same_path"), None),
        ("images.source=samples", ("images", "source"), "samples"),
        ("gates.same_path.severity=warn", ("gates", "same_path", "severity"), "warn"),
    ],
)
def test_overrides(write, text, where, value):
    node = load_config(write(GOOD), [text]).model_dump()
    for part in where:
        node = node[part]
    assert node == value


@pytest.mark.parametrize(
    "change, message",
    [
        ({"modle": "x"}, "modle: there is no such key; did you mean 'model'"),
        ({"engine": {"step": 3}}, "engine.step: there is no such key; did you mean 'steps'"),
        ({"gates": {"same_pth": {}}}, "gates.same_pth: .* did you mean 'same_path'"),
        (
            {"gates": {"same_path": {"min_scor": 1}}},
            "gates.same_path.min_scor: .* did you mean 'min_score'",
        ),
        ({"units": [{"layr": "a", "layer": "b", "count": 1}]}, "units.0.layr: .*'layer'"),
        ({"units": ["logits:3"]}, "units.0: expected keys and values, of layer, count, channels, "),
        ({"images": "photos"}, "images: expected keys and values, of source, .*, got 'photos'"),
        ({"gates": {"same_path": 0.4}}, "same_path: expected keys .* of .*min_score, got 0.4"),
        ({"images": {}}, "images.source: this key is missing"),
        ({"units": []}, "units: List should have at least 1 item"),
        ({"units": [{"layer": "logits"}]}, "units.0: say which units: count, channels, or both"),
        ({"units": [{"layer": "a", "channels": [1, 1]}]}, "channels holds a channel twice"),
        ({"units": [{"layer": "a", "count": 1}] * 2}, "units names a layer twice"),
        ({"engine": {"steps": 0}}, "engine.steps: .*greater than or equal to 1, got 0"),
        ({"evidence": {"metric": "kendall"}}, "evidence.metric: .*'spearman'.* got 'kendall'"),
        (
            {"engine": {"shots": 10**9}},
            "engine.shots: .*less than or equal to 1000, got 1000000000",
        ),
        (
            {"evidence": {"level": 0.999, "replicates": 1999}},
            "none of fewer than 2000 lies beyond an interval of level 0.999; set more replicates",
        ),
        ({"evidence": {"level": 1.0}}, "evidence.level: .*less than 1, got 1.0"),
        ({"version": 2}, "version: .*1.*, got 2"),
        ({"seed": -1}, "seed: .*greater than or equal to 0, got -1"),
    ],
)
def test_mistakes_are_named_with_what_was_got(write, change, message):
    with pytest.raises(AuditError, match=message):
        load_config(write({**GOOD, **change}))


def test_a_level_has_as_many_replicates_as_it_needs(write):
    for level, replicates in ((0.95, 100), (0.999, 2000)):
        load_config(write({**GOOD, "evidence": {"level": level, "replicates": replicates}}))


def test_yaml_reads_off_as_false(write):
    assert load_config(write(GOOD), ["preflight=off"]).preflight == "off"
    with pytest.raises(AuditError, match="preflight: .*'stop', 'report' or 'off', got True"):
        load_config(write(GOOD), ["preflight=on"])


def test_all_mistakes_are_listed_at_once(write):
    with pytest.raises(AuditError) as caught:
        load_config(write({**GOOD, "sead": 1, "engine": {"repeats": 0}}))
    assert "did you mean 'seed'" in str(caught.value) and "engine.repeats" in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("model: [", "is not valid YAML"),
        ("- a\n- b", "must hold keys and values .* got list"),
        ("model: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("", "must hold keys and values .* got NoneType"),
    ],
)
def test_files_that_hold_no_config(write, content, message):
    with pytest.raises(AuditError, match=message):
        load_config(write(content))


def test_a_file_that_does_not_exist_names_the_presets(tmp_path):
    with pytest.raises(AuditError, match="no config file .*presets: .*quickstart"):
        load_config(tmp_path / "nothing.yaml")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AuditError, match="cannot be read"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "override, message",
    [
        ("engine.steps", "--set takes key=value.*got 'engine.steps'"),
        ("=3", "--set takes key=value"),
        ("units.7.count=3", "'7' does not number an entry of a list of 2; entries are 0 to 1"),
        ("units.a.count=3", "'a' does not number"),
        ("engine.steps=[", "is not valid YAML"),
        ("engin.steps=3", "engin: there is no such key; did you mean 'engine'"),
    ],
)
def test_override_mistakes(write, override, message):
    with pytest.raises(AuditError, match=message):
        load_config(write(GOOD), [override])
