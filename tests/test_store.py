"""The run directory: round trips, atomic files, cut-off lines."""

import dataclasses
import json
import math

import pytest

from fvaudit import store
from fvaudit.config import Gates
from fvaudit.records import AuditError, Estimate, LayerSimilarity, Status, UnitResult, Verdict
from fvaudit.run import exit_code
from tests import synthetic_run


NAN = math.nan


def estimate(value=0.5, low=0.25, high=0.75):
    return Estimate(value, low, high, 0.95, 20, "bootstrap", "P")


def result(unit="a:1", **changes):
    row = LayerSimilarity(
        "stem", estimate(), estimate(), estimate(), estimate(NAN, NAN, NAN), False, NAN, NAN
    )
    base = UnitResult(
        unit=unit, label="", group="strongest exemplars", photographs=20, others=9,
        exemplars=("x.png", "y.png"), exemplar_responses=(2.0, 1.5), images=("images/a/1-0.png",),
        fv_responses=(30.5,), path=(row,), score=estimate(), p_value=0.05, p_attainable=1 / 21,
        natural_median=0.1, natural_max=2.0, quantile=estimate(1.0, 0.8, 1.0), margin=estimate(),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def same(a, b):
    """Equality in which NaN equals NaN."""
    return repr(a) == repr(b)


def test_results_round_trip_with_nan_as_null(tmp_path):
    for r in (result(), result("a:2", p_value=NAN)):
        store.append_result(tmp_path, r)
    text = (tmp_path / "results.jsonl").read_text()
    assert "NaN" not in text and json.loads(text.splitlines()[1])["p_value"] is None
    assert same(store.read_results(tmp_path), [result(), result("a:2", p_value=NAN)])


def test_a_line_that_was_cut_off_is_left_out_and_then_cut(tmp_path):
    store.append_result(tmp_path, result())
    whole = (tmp_path / "results.jsonl").read_bytes()
    for cut in (1, 10, len(whole) - 1):
        (tmp_path / "results.jsonl").write_bytes(whole + whole[:cut])
        assert len(store.read_results(tmp_path)) == 1
        store.drop_partial_line(tmp_path)
        assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"unit": 3}\n')
    with pytest.raises(AuditError, match=r"results.jsonl, line 1 is damaged .* --fresh"):
        store.read_results(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    store.write_text(tmp_path / "a.txt", "old")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        store.write_text(tmp_path / "a.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_verdicts_round_trip(tmp_path):
    verdicts = [
        Verdict("c(x=1)", "a:1", Status.WARN, estimate(), 0.5, "why"),
        Verdict("c(x=1)", "a:2", Status.ERROR, None, None, "why"),
    ]
    store.write_json(tmp_path / "v.json", verdicts)
    read = [store.revive(Verdict, v) for v in json.loads((tmp_path / "v.json").read_text())]
    assert read == verdicts


def test_messages(tmp_path):
    with pytest.raises(AuditError, match="holds no audit"):
        store.read_run(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(AuditError, match="schema 99, this version reads 1"):
        store.read_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AuditError, match="manifest.json is damaged"):
        store.read_run(tmp_path)


@pytest.mark.parametrize("content", [b"", b"null", b"3", b'[{"a": 1}]', b'{"layers": 3}', b"\xff"])
@pytest.mark.parametrize(
    "name", ["manifest", "env", "model", "data", "summary", "verdicts", "doctor"]
)
def test_a_damaged_file_is_named_once(tmp_path, name, content):
    made = synthetic_run.make(tmp_path / "run", ["a:1"], naturals=9)
    (made / f"{name}.json").write_bytes(content)
    if content == b'{"layers": 3}' and name in ("env", "model", "data"):
        assert store.read_run(made).complete  # of any form
    elif content == b'{"layers": 3}' and name == "manifest":
        with pytest.raises(AuditError, match="schema None, this version reads 1"):
            store.read_run(made)
    else:
        with pytest.raises(AuditError, match=rf"^\S*{name}.json is damaged \([^(]*.*--fresh.$"):
            store.read_run(made)


def test_text_that_is_none_is_damaged(tmp_path):
    made = synthetic_run.make(tmp_path / "run", ["a:1"], naturals=9)
    (made / "config.resolved.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(AuditError, match="config.resolved.yaml is damaged"):
        store.read_run(made)


def test_a_run_that_lost_results_is_not_complete(tmp_path):
    """Whoever cuts off results.jsonl of a whole run must not find its gates passed."""
    made = synthetic_run.make(tmp_path / "run", ["a:1", "a:2"], naturals=9)
    whole = (made / "results.jsonl").read_bytes()
    found = store.read_run(made)
    assert found.complete and found.headline
    line = whole.index(b"\n") + 1
    for lost in (b"", whole[:line], whole[:-9], whole + whole[:line]):
        (made / "results.jsonl").write_bytes(lost)
        found = store.read_run(made)
        assert not found.complete and found.headline is None
        assert exit_code(dataclasses.replace(found, verdicts=()), Gates()) == 3
    (made / "results.jsonl").unlink()
    assert not store.read_run(made).complete
