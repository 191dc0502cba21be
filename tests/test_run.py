"""Audits end to end on a tiny network: resume, same bytes, gates, exit codes."""

import base64
import dataclasses
import io
import json
import os
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fvaudit import plan, store
from fvaudit import run as running
from fvaudit.config import validate
from fvaudit.models.model import build
from fvaudit.records import AuditError, Status
from fvaudit.report import render, thumbnails
from tests.tiny import pictures, tiny_model


MODEL = tiny_model()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """One network for all audits of this file, so that programs are compiled once."""
    monkeypatch.setattr(plan, "load_model", lambda *_, **__: MODEL)


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(pictures(14)):
        Image.fromarray(np.uint8(image * 255)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def config(photos):
    data = {
        "model": "tiny",
        "images": {"source": str(photos), "crops": 2},
        "units": [{"layer": "conv2", "count": 2}, {"layer": "logits", "channels": [3]}],
        "engine": {"steps": 6, "repeats": 2, "shots": 3},
        "evidence": {"group": 6, "replicates": 100},
    }
    return validate(data, "test")


def changed(config, **sections):
    data = config.model_dump()
    for section, values in sections.items():
        data[section] = values if not isinstance(values, dict) else {**data[section], **values}
    return validate(data, "test")


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file but the log, which is the only one that may tell the time."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_run_directory_holds_what_it_promises(config, tmp_path):
    run = running.audit(config, tmp_path / "a")
    assert run.complete and [u.unit for u in run.units] == [str(u) for u in _units(run)]
    found = contents(tmp_path / "a")
    for name in ("manifest.json", "config.resolved.yaml", "env.json", "model.json", "data.json",
                 "doctor.json", "results.jsonl", "summary.json", "units.parquet", "layers.parquet",
                 "verdicts.json"):  # fmt: skip
        assert name in found, name
    units = pd.read_parquet(tmp_path / "a" / "units.parquet")
    assert units["unit"].tolist() == [u.unit for u in run.units]
    np.testing.assert_allclose(units["score"], [u.score.value for u in run.units])
    assert run.data["photographs"] == 14 and run.data["images"] == 28
    assert json.loads(found["model.json"])["fingerprint"] == MODEL.fingerprint


def _units(run):
    from fvaudit.records import Unit

    return [Unit.parse(u.unit) for u in run.units]


def test_pictures_carry_what_makes_them_again(config, tmp_path):
    run = running.audit(config, tmp_path / "a")
    path = tmp_path / "a" / run.units[0].images[1]
    with Image.open(path) as picture:
        notes = picture.text  # pyright: ignore[reportAttributeAccessIssue]
    assert notes["fvaudit:objective"] == run.units[0].unit
    assert notes["fvaudit:repeat"] == "1" and notes["fvaudit:seed"] == "0"
    assert notes["fvaudit:steps"] == "6" and "fourier(" in notes["fvaudit:parameterization"]
    assert notes["fvaudit:model_sha256"] == MODEL.fingerprint
    beside = np.load(path.with_suffix(".npz"))
    assert beside["trace"].shape == (6,) and beside["shots"].dtype == np.uint8
    np.testing.assert_array_equal(beside["shots"][-1], np.asarray(Image.open(path)))


def test_killed_at_any_moment_it_finishes_with_the_same_bytes(config, tmp_path):
    events = []
    running.audit(config, tmp_path / "whole", listener=events.append)
    whole = contents(tmp_path / "whole")
    for moment in range(len(events)):
        folder = tmp_path / f"killed-{moment}"
        seen = []

        def kill(event, seen=seen, moment=moment):
            seen.append(event)
            if len(seen) > moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            running.audit(config, folder, listener=kill)
        if (folder / "results.jsonl").exists():  # as if killed in the middle of a line
            with open(folder / "results.jsonl", "ab") as file:
                file.write(b'{"unit": "conv2:')
        running.audit(config, folder)
        assert contents(folder) == whole, f"killed at event {moment}: {events[moment]}"


def test_killed_before_or_after_any_write_it_finishes_with_the_same_bytes(
    config, tmp_path, monkeypatch
):
    from fvaudit import store

    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of small files
    config = changed(
        config,
        units=[{"layer": "conv2", "count": 2}],
        engine={"repeats": 1, "shots": 1},
        preflight="off",  # its file is among those of the test before
    )
    running.audit(config, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    survived = 0
    for moment in range(60):
        folder, written = tmp_path / f"killed-{moment}", []
        with monkeypatch.context() as patch:
            for name in ("write_bytes", "append_result"):
                patch.setattr(store, name, _fatal(getattr(store, name), written, moment))
            try:
                running.audit(config, folder)
            except KeyboardInterrupt:
                pass
            else:
                break  # more moments than the run has
        (folder / ".units.parquet.1.part").write_bytes(b"half a file")
        running.audit(config, folder)
        assert contents(folder) == whole, f"killed at write {moment // 2}"
        survived += 1
    assert survived > 30


def _fatal(write, written, moment):
    """`write`, which kills the process before (even) or after (odd) its n-th call."""

    def fatal(*arguments):
        written.append(1)
        if len(written) > moment // 2 and moment % 2 == 0:
            raise KeyboardInterrupt
        write(*arguments)
        if len(written) > moment // 2:
            raise KeyboardInterrupt

    return fatal


def test_two_processes_do_not_share_a_folder(config, tmp_path):
    from fvaudit import store

    with (
        store.locked(tmp_path / "a"),
        pytest.raises(AuditError, match="Another process is working"),
    ):
        running.audit(config, tmp_path / "a")
    assert running.audit(config, tmp_path / "a").complete


def test_a_second_run_recomputes_nothing(config, tmp_path, monkeypatch):
    running.audit(config, tmp_path / "a")
    before = contents(tmp_path / "a")

    def refuse(*arguments, **settings):
        raise AssertionError("computed again")

    monkeypatch.setattr(running, "collect", refuse)
    monkeypatch.setattr(running, "_save_image", refuse)
    running.audit(config, tmp_path / "a")
    assert contents(tmp_path / "a") == before


def test_fresh_starts_over_and_another_config_is_refused(config, tmp_path):
    running.audit(config, tmp_path / "a")
    other = changed(config, seed=1)
    with pytest.raises(AuditError, match="another config.*--fresh"):
        running.audit(other, tmp_path / "a")
    run = running.audit(other, tmp_path / "a", fresh=True)
    assert run.complete and "seed: 1" in run.config


def test_other_gates_do_not_make_another_audit(config, tmp_path):
    running.audit(config, tmp_path / "a")
    kept = contents(tmp_path / "a")["results.jsonl"]
    lenient = changed(config, gates={"same_path": None})
    run = running.audit(lenient, tmp_path / "a")
    assert contents(tmp_path / "a")["results.jsonl"] == kept
    assert not any(v.check.startswith("same_path") for v in run.verdicts)


def test_a_folder_with_other_files_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(AuditError, match="not an audit's. Give --out a new"):
            running.audit(config, tmp_path / "mine", fresh=fresh)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_labelled_logits_take_their_class_as_group(config, tmp_path, photos):
    images = pictures(14)
    labels = np.repeat([2, 4], 7)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    labelled = changed(
        config,
        images={"source": str(tmp_path / "a.npz"), "crops": 1},
        units=[{"layer": "logits", "channels": "labelled"}, {"layer": "conv1", "channels": [0]}],
    )
    run = running.audit(labelled, tmp_path / "run")
    assert [u.unit for u in run.units] == ["logits:2", "logits:4", "conv1:0"]
    assert run.units[0].group == "images labelled with class 2"
    assert (run.units[0].photographs, run.units[0].others) == (6, 7)
    assert run.units[2].group == "the unit's strongest natural exemplars"


@pytest.mark.parametrize(
    "units, message",
    [
        ([{"layer": "conv9", "count": 1}], "no layer 'conv9'"),
        ([{"layer": "conv1", "channels": [6]}], "channels 0 to 5"),
        ([{"layer": "conv1", "count": 7}], "count is 7, but there are only 6"),
        ([{"layer": "logits", "channels": "labelled"}], "'labelled' needs layer 'logits' and"),
    ],
)
def test_unit_mistakes_are_found_before_any_work(config, tmp_path, units, message):
    with pytest.raises(AuditError, match=message):
        running.audit(changed(config, units=units), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_group_that_leaves_no_others_is_refused(config, tmp_path):
    message = "evidence.group is 13, but there are only 14 photographs.*to 9 or fewer"
    with pytest.raises(AuditError, match=message):
        running.audit(changed(config, evidence={"group": 13}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_layers_of_the_path_can_be_chosen(config, tmp_path):
    chosen = changed(config, evidence={"layers": ["conv1"]})
    run = running.audit(chosen, tmp_path / "a")
    assert [row.layer for row in run.units[0].path] == ["conv1", "conv2"]
    with pytest.raises(AuditError, match="no layer 'conv7'"):
        running.audit(changed(config, evidence={"layers": ["conv7"]}), tmp_path / "b")


def _verdict_codes(run, config, statuses, conclusive=False):
    import dataclasses

    gates = changed(
        config, gates={"same_path": {"severity": "fail", "conclusive": conclusive}}
    ).gates
    check = running.claims(gates)[0].text
    verdicts = tuple(dataclasses.replace(run.verdicts[0], status=s, check=check) for s in statuses)
    return running.exit_code(dataclasses.replace(run, verdicts=verdicts), gates)


def test_exit_codes(config, tmp_path):
    import dataclasses

    run = running.audit(config, tmp_path / "a")
    assert _verdict_codes(run, config, [Status.PASS, Status.WARN]) == 0
    assert _verdict_codes(run, config, [Status.PASS, Status.FAIL, Status.ERROR]) == 1
    assert _verdict_codes(run, config, [Status.INCONCLUSIVE]) == 0
    assert _verdict_codes(run, config, [Status.INCONCLUSIVE], conclusive=True) == 3
    assert _verdict_codes(run, config, [Status.ERROR]) == 3
    unfinished = dataclasses.replace(run, manifest={**run.manifest, "status": "started"})
    assert _verdict_codes(unfinished, config, [Status.PASS]) == 3


def test_evidence_follows_the_seed_alone(config, tmp_path):
    one = running.audit(config, tmp_path / "a")
    two = running.audit(config, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = running.audit(changed(config, seed=3), tmp_path / "c")
    assert repr(one.units) == repr(two.units) != repr(other.units)


def test_an_audit_of_dead_units_concludes_nothing_and_says_so(config, tmp_path, monkeypatch):
    """The network's first layer is shut: no gradient reaches the pictures."""
    shut = MODEL.edited("conv1", lambda params, x: 0 * x)
    monkeypatch.setattr(plan, "load_model", lambda *_, **__: shut)
    with pytest.raises(AuditError, match="(?s)doctor stopped this audit.*do not see the picture"):
        running.audit(config, tmp_path / "dead")
    run = running.audit(changed(config, preflight="report"), tmp_path / "dead")
    assert all(unit.dead == len(unit.images) for unit in run.units)
    assert {v.status for v in run.verdicts} == {Status.INCONCLUSIVE}
    assert all("are dead" in v.reason for v in run.verdicts)
    assert running.exit_code(run, config.gates) == 0
    text = render(run.folder).read_text()
    assert "are dead" in text
    assert "layers that do not see the picture" in text and "PROBLEM" in text
    assert "layers that do not see the picture" in (run.folder / "summary.md").read_text()


def test_the_doctor_looks_once_and_can_be_left_out(config, tmp_path, monkeypatch):
    run = running.audit(config, tmp_path / "a")
    titles = [finding.title for finding in run.findings]
    assert "no layer is in training mode" in titles and "preprocessing" in titles
    assert "doctor.json" in contents(tmp_path / "a")
    monkeypatch.setattr(running, "preflight", None)  # a second look would fail
    assert running.audit(config, tmp_path / "a").findings == run.findings
    without = running.audit(changed(config, preflight="off"), tmp_path / "b")
    assert without.findings == () and "doctor.json" not in contents(tmp_path / "b")
    assert repr(without.units) == repr(run.units)


def test_a_class_is_audited_on_its_photographs_whatever_its_layer_is_called(tmp_path, photos):
    for i, picture in enumerate(sorted(photos.iterdir())):
        (photos / str(i % 2)).mkdir(exist_ok=True)
        picture.rename(photos / str(i % 2) / picture.name)

    def forward(params, images, tap):
        tapped = lambda name, x: tap("head" if name == "logits" else name, x)  # noqa: E731
        return MODEL.forward(params, images, tapped)

    own = build(forward, MODEL.params, MODEL.input, name="own", aliases={"logits": "head"})
    data = {
        "images": {"source": str(photos)},
        "units": [{"layer": "logits", "channels": "labelled"}],
        "engine": {"steps": 3, "repeats": 1, "shots": 1},
        "evidence": {"group": 6, "replicates": 100},
    }
    twice = {**data, "units": [*data["units"], {"layer": "head", "count": 1}]}
    with pytest.raises(AuditError, match="names a layer twice: head is another name of logits"):
        running.audit(validate(twice, "test"), tmp_path / "twice", model=own)
    found = running.audit(validate(data, "test"), tmp_path / "run", model=own)
    assert [(r.unit, r.group) for r in found.units] == [
        ("head:0", "images labelled with class 0"), ("head:1", "images labelled with class 1")
    ]  # fmt: skip
    said = repr(found)
    assert said.startswith(f"Run('{tmp_path / 'run'}', 2 of 2 units, verdicts: ")
    assert sum(map(int, re.findall(r"[A-Z]+ (\d+)", said.rpartition(":")[2]))) == 6  # 3 claims


def test_pictures_of_a_wide_network_keep_their_shape(config, tmp_path):
    spec = dataclasses.replace(MODEL.input, size=(12, 24), resize=24)
    wide = build(MODEL.forward, MODEL.params, spec, name="wide")
    run = running.audit(changed(config, model=None), tmp_path / "a", model=wide)
    natural, made = run.units[0].exemplars[0], run.units[0].images[0]
    with Image.open(tmp_path / "a" / store.exemplar_name(natural)) as picture:
        assert picture.size == (112, 56)
    size = thumbnails.SIZES[0]
    found = thumbnails.trajectory(tmp_path / "a", made)
    assert found is not None
    for uri, expected in (
        (thumbnails.exemplar(tmp_path / "a", natural, size), (96, 48)),
        (thumbnails.strip(found.shots, size), (72 * len(found.steps), 36)),
    ):
        assert uri is not None
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert picture.size == expected
