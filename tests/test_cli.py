"""The command line: verbs, messages, exit codes; no traceback for a user's mistake."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from fvaudit import cli, plan
from fvaudit import run as running
from fvaudit.config import Config
from fvaudit.manipulation import Manipulation
from fvaudit.yamlfile import read_yaml, validated
from tests.tiny import pictures, tiny_model


MODEL = tiny_model()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(plan, "load_model", lambda *_, **__: MODEL)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fvaudit", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(pictures(12)):
        Image.fromarray(np.uint8(image * 255)).save(folder / f"{i:02d}.png")
    data = {
        "model": "tiny",
        "images": {"source": "photos"},
        "units": [{"layer": "conv2", "count": 2}],
        "engine": {"steps": 4, "repeats": 1, "shots": 2},
        "evidence": {"group": 5, "replicates": 100},
        "gates": {
            "same_path": {"severity": "warn"},
            "not_distinguishable": {"severity": "warn"},
            "drives_unit": {"severity": "warn"},
        },
    }
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_run_computes_judges_and_renders(call, config, tmp_path):
    code, out, err = call("run", config, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "visualize 2/2" in out and "exit code 0: no gate failed" in out
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "a" / "summary.md").read_text().startswith("#")


def test_check_judges_anew_without_computing(call, config, tmp_path, monkeypatch):
    call("run", config, "--out", tmp_path / "a", "--no-report")
    monkeypatch.setattr(running, "collect", None)
    strict = ["--set", "gates.drives_unit={min_quantile: 0.999, severity: fail, conclusive: true}"]
    code, out, _ = call("check", tmp_path / "a", *strict)
    assert code in (1, 3) and f"exit code {code}" in out
    verdicts = json.loads((tmp_path / "a" / "verdicts.json").read_text())
    assert any(v["check"] == "drives_unit(min_quantile=0.999)" for v in verdicts)
    assert call("check", tmp_path / "a")[0] == 0  # the run's own gates again


def test_report_renders_the_same_bytes(call, config, tmp_path):
    call("run", config, "--out", tmp_path / "a")
    before = (tmp_path / "a" / "report.html").read_bytes()
    (tmp_path / "a" / "report.html").unlink()
    code, out, _ = call("report", tmp_path / "a")
    assert code == 0 and str(tmp_path / "a" / "report.html") in out
    assert (tmp_path / "a" / "report.html").read_bytes() == before


def test_dry_run_prints_the_cost_and_writes_nothing(call, config, tmp_path):
    code, out, _ = call("run", config, "--out", tmp_path / "a", "--dry-run")
    assert code == 0 and not (tmp_path / "a").exists()
    for word in ("units      2: conv2:", "compiles   3", "memory     about", "time       about"):
        assert word in out


def test_an_interrupt_says_how_to_go_on(call, config, tmp_path, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_measure", stop)
    code, _, err = call("run", config, "--out", tmp_path / "a")
    assert code == 3 and "the same command goes on from here" in err


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ((), {"model", "images", "units", "engine", "evidence", "gates"}),
        (("run",), {"model", "images", "units", "engine", "evidence", "gates"}),
        (("manipulate",), {"model", "images", "units", "attack", "shown"}),
        (("train-gate",), {"model", "train", "test", "units", "recipe"}),
    ],
)
def test_schemas(call, verb, keys):
    code, out, _ = call("schema", *verb)
    found = json.loads(out)
    assert code == 0 and set(found["properties"]) >= keys
    assert found["additionalProperties"] is False
    assert "crop_pct" in found["$defs"]["Input"]["properties"]


@pytest.mark.parametrize(
    ("more", "verb", "section"),
    [((), "run", Config), (("--preset", "attack"), "manipulate", Manipulation)],
)
def test_init(call, tmp_path, more, verb, section):
    code, out, _ = call("init", tmp_path / "new.yaml", *more)
    assert code == 0 and f"next: fvaudit {verb} " in out
    assert validated(section, read_yaml(tmp_path / "new.yaml"), "new.yaml")
    code, _, err = call("init", tmp_path / "new.yaml", *more)
    assert code == 2 and "exists already" in err


def test_viz_writes_pictures_and_a_sheet(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, **__: MODEL)
    code, out, _ = call(
        "viz", "tiny", "conv1:0", "conv2:3@1,2", "--out", tmp_path / "v", "--steps", 3,
        "--repeats", 2,
    )  # fmt: skip
    assert code == 0 and "4 pictures and sheet.png" in out
    names = sorted(str(p.relative_to(tmp_path / "v")) for p in (tmp_path / "v").rglob("*.png"))
    assert names == [
        "conv1/0-0.png", "conv1/0-1.png", "conv2/3@1_2-0.png", "conv2/3@1_2-1.png", "sheet.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "v" / "conv2" / "3@1_2-1.png") as picture:
        notes = picture.text  # pyright: ignore[reportAttributeAccessIssue]
        cell = np.asarray(picture)
    assert notes["fvaudit:objective"] == "conv2:3@1,2" and notes["fvaudit:repeat"] == "1"
    sheet = np.asarray(Image.open(tmp_path / "v" / "sheet.png"))
    assert sheet.shape == (2 * (96 + 16 + 8) + 8, 2 * (96 + 8) + 8, 3)
    enlarged = cell.repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(sheet[128:224, 112:208], enlarged)  # second row and column


def test_viz_refuses_what_is_no_unit(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, **__: MODEL)
    for unit, message in (("conv1", "does not name a unit"), ("conv1:9", "channels 0 to 5")):
        code, out, err = call("viz", "tiny", unit, "--out", tmp_path / "v")
        assert code == 2 and message in err and not (tmp_path / "v").exists()
        assert "compiling" not in out


def test_viz_makes_a_unit_once_and_knows_first_where_to(call, tmp_path, monkeypatch):
    monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, **__: MODEL)
    two = ("viz", "tiny", "conv1:0", "conv1:0", "--steps", 2)
    code, out, _ = call(*two, "--out", tmp_path / "v")
    assert code == 0 and "1 picture and sheet.png" in out
    (tmp_path / "file").write_text("")
    code, out, err = call(*two, "--out", tmp_path / "file")
    assert code == 3 and "File exists" in err and "visualize" not in out
    for repeats in (0, 10**12):
        code, _, err = call(*two, "--out", tmp_path / "v", "--repeats", repeats)
        assert code == 2 and "--repeats" in err


def test_out_of_memory_is_said(call, tmp_path, monkeypatch):
    """The host's and the device's, both real."""
    for demand in (lambda: np.zeros(2**60, np.uint8), lambda: jnp.zeros(2**45)):
        monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, d=demand, **__: d())
        code, _, err = call("viz", "tiny", "conv1:0", "--out", tmp_path / "v")
        assert code == 3 and "not enough memory; fewer lanes" in err and "llocat" in err


def test_list_prints_layers_and_shapes(call, monkeypatch):
    monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, **__: MODEL)
    code, out, _ = call("list", "--model", "tiny")
    assert code == 0 and "* conv1" in out and "12 x 12 x 6" in out


def test_list_shows_other_names_beside_their_layer(call, monkeypatch):
    shapes = {**MODEL.shapes, "features.1": MODEL.shapes["conv1"]}
    aliased = dataclasses.replace(MODEL, shapes=shapes, aliases={"features.1": "conv1"})
    monkeypatch.setattr("fvaudit.models.zoo.load_model", lambda *_, **__: aliased)
    _, out, _ = call("list", "--model", "tiny")
    assert out.count("features.1") == 1
    assert next(line for line in out.splitlines() if "features.1" in line).startswith("* conv1 ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "missing.yaml", "--out", "x"], "There is no config file missing.yaml"),
        (["run", "quickstart"], "Missing option '--out'"),
        (["run", "quickstart", "--out", "x", "--set", "engin.steps=3"], "did you mean 'engine'"),
        (["check", "nowhere"], "nowhere holds no audit"),
        (["report", "nowhere"], "nowhere holds no audit"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "--no-such-flag"], "No such option"),
        (["init", "x.yaml", "--preset", "fast"], "no preset 'fast'. Known: quickstart, attack"),
        (["schema", "viz"], "'viz' takes no config. These do: run, manipulate, train-gate"),
    ],
)
def test_mistakes_are_one_text_and_exit_code_2(call, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_layer_is_exit_code_2(call, config, tmp_path):
    code, _, err = call("run", config, "--out", tmp_path / "a", "--set", "units.0.layer=conv9")
    assert code == 2 and "no layer 'conv9'. Nearest: conv2" in err


def test_the_version_is_said(call):
    """Results are the same bytes within a version, so people ask for it."""
    from fvaudit import __version__

    assert call("--version") == (0, f"fvaudit {__version__}\n", "")


def test_no_verb_at_all_is_answered_with_the_help(call):
    code, out, err = call()
    assert code == 2 and not out and err.startswith("Usage: fvaudit ")


def test_help_names_every_verb_and_exit_code(call):
    out = call("--help")[1]
    for word in ("run", "check", "report", "list", "viz", "schema", "init", "Exit codes"):
        assert word in out
