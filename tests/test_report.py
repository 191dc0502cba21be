import csv
import html.parser
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import pytest
import yaml

from fvaudit import store
from fvaudit.records import AuditError, Estimate, Status
from fvaudit.report import digest, drawings, markdown, render, thumbnails
from fvaudit.report import html as report_html
from fvaudit.report.text import summary_lines
from tests import synthetic_run


HOSTILE = "<script>alert('1')</script>&\"{{7*7}}"


class Document(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.counted: dict[str, int] = {}
        self._open: str | None = None
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("data-units")
        self._silent = tag == "style"

    def handle_data(self, data):
        if self._open:
            self.counted[self._open] = int(data)
            self._open = None
        if not self._silent:
            self.text.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    made = synthetic_run.make(tmp_path_factory.mktemp("runs") / "demo")
    render(made)
    return made


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def document(page) -> Document:
    return Document(page)


def worst_by_hand(folder: pathlib.Path) -> dict[str, int]:
    """Counts from the files alone."""
    severity = ["PASS", "INCONCLUSIVE", "WARN", "FAIL", "ERROR"]
    worst: dict[str, str] = {}
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        before = worst.get(verdict["subject"], "PASS")
        worst[verdict["subject"]] = max(before, verdict["status"], key=severity.index)
    return {name: list(worst.values()).count(name) for name in severity}


def test_rendering_twice_gives_the_same_bytes_anywhere(folder, tmp_path):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    elsewhere = tmp_path / "demo"  # the same folder name in another place
    shutil.copytree(folder, elsewhere)
    for path in [*elsewhere.glob("report.html"), *elsewhere.glob("figures/*")]:
        path.unlink()
    render(elsewhere)
    for path in files:
        assert (elsewhere / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_page_markdown_and_terminal_count_what_the_verdicts_say(folder, document):
    run = store.read_run(folder)
    expected = worst_by_hand(folder)
    assert document.counted == expected
    row = re.search(r"\*\*unit, worst verdict\*\* \|(.*)\|", markdown.summary(run))
    assert row and [int(v) for v in row[1].split("|")] == list(expected.values())
    said = " ".join(summary_lines(run))
    counts = said[said.index("measured:") : said.index("same_path")]
    assert {k: int(v) for k, v in re.findall(r"([A-Z]+) (\d+)", counts)} == expected
    cards = [a["data-status"] for a in document.having("article")]
    assert {name: cards.count(name) for name in expected} == expected


def test_counts_by_check_add_up_to_the_verdicts(folder, document):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    text = (folder / "report.html").read_text()
    cells = re.findall(r'data-check="([^"]+)" data-status="(\w+)">(\d+)<', text)
    for check, status, count in cells:
        by_hand = sum(v["check"] == check and v["status"] == status for v in verdicts)
        assert int(count) == by_hand, (check, status)
    assert sum(int(count) for _, _, count in cells) == len(verdicts)


def test_the_three_numbers_stand_in_all_three_places(folder, document):
    run = store.read_run(folder)
    for value in ("0.21 [0.15, 0.27]", "0.44 [0.29, 0.59]", "11.30 [7.30, 15.30]"):
        assert value in document.words
        assert value in markdown.summary(run)
        assert value in "\n".join(summary_lines(run))


def test_terminal_lines_fit_and_say_the_same_verdict(folder):
    run = store.read_run(folder)
    lines = summary_lines(run)
    assert all(len(line) <= 80 for line in lines)
    assert 8 <= len(lines) <= 16
    assert "          Files that could not be used: 1" in lines
    assert " ".join(lines).startswith(digest.overall(run).text)
    assert digest.overall(run).text.split(": ")[0] == "ERROR"  # one verdict is an error


@pytest.mark.parametrize(
    ("statuses", "word", "sentence"),
    [
        ("WARN WARN PASS", "WARN", "2 of 3 units are not processed like the natural images"),
        ("FAIL WARN PASS", "FAIL", "1 of 3 units are not processed"),
        ("WARN INCONCLUSIVE PASS", "WARN", "said to explain; for 1 it stays open."),
        ("INCONCLUSIVE PASS PASS", "INCONCLUSIVE", "stays open for 1 of 3 units"),
        ("PASS PASS PASS", "PASS", "No discrepancy was detected"),
        ("ERROR FAIL PASS", "ERROR", "1 of 3 verdicts could not be computed. The feature"),
    ],
)
def test_verdict_in_words(tmp_path, statuses, word, sentence):
    units = ["blocks.4:1", "blocks.4:2", "blocks.4:3"]
    made = synthetic_run.make(tmp_path / "run", units, naturals=9)
    verdicts = [
        {
            "check": "same_path(min_score=0.5)",
            "subject": unit,
            "status": status,
            "estimate": None,
            "threshold": 0.5,
            "reason": "because",
        }
        for unit, status in zip(units, statuses.split(), strict=True)
    ]
    (made / "verdicts.json").write_text(json.dumps(verdicts))
    found = digest.overall(store.read_run(made))
    assert found.word == word
    assert sentence in found.sentence


def test_limits_speak_of_this_run(folder, document):
    run = store.read_run(folder)
    said = " ".join(digest.limits(run))
    rows = [row for r in run.units for row in r.path]
    assert "29 photographs (116 images), not labelled" in said
    assert f"{sum(not r.resolvable for r in rows)} of {len(rows)} comparisons" in said
    assert "A path score exists for 3 of 4 units." in said
    assert "group of this size allows is 0.048" in said
    # p = 1/21 in k of 4 units gives q = 4 / (21 k), which is at most 0.05 for k = 4 alone
    assert "over 4 units, at least 4 must reach it" in said
    assert "spatial Spearman" in said and "Geirhos" in said and "exchangeable" in said
    for text in digest.limits(run):
        assert text in document.words


def test_nan_is_said_and_never_a_number(folder, document):
    card = re.search(
        r'data-unit="blocks.10:3".*?</article>', (folder / "report.html").read_text(), re.S
    )
    assert card and card[0].count("not estimated") >= 8
    for text in (document.words, markdown.summary(store.read_run(folder))):
        assert not re.search(r"(?<![\w.])nan\b", text, re.I)
    with open(folder / "figures" / "path-logits.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["normalised"] == "" and row["resolvable"] == "False" for row in rows)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5, 0.25, 0.75, 0.95, 9, "", ""), "0.50 [0.25, 0.75]"),
        (Estimate(math.nan, 0.25, 0.75, 0.95, 9, "", ""), "not estimated"),
        (Estimate(0.5, math.nan, math.nan, 0.95, 9, "", ""), "0.50 (interval not estimated)"),
        (None, "not estimated"),
    ],
)
def test_interval_in_words(estimate, text):
    assert digest.interval(estimate) == text


def test_page_is_one_offline_file_with_a_strict_policy(page, document):
    metas = document.having("meta")
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'; img-src data:;")
    assert any(m.get("name") == "viewport" for m in metas)
    assert document.having("html")[0]["lang"] == "en"
    assert not document.having("script") and not document.having("link")
    for _, attributes in document.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:image/webp;base64,|#|$", attributes.get(name) or ""), attributes
    outside = re.findall(r"url\((?!#)[^)]*\)|@import|https?://", page)
    assert not outside


def test_every_picture_has_words_and_every_link_a_target(document):
    assert all(image.get("alt") for image in document.having("img"))
    for drawing in document.having("svg"):
        assert drawing.get("aria-label") or drawing.get("aria-hidden") or drawing.get("role")
    ids = [a["id"] for _, a in document.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for _, a in document.elements if (a.get("href") or "").startswith("#")}
    assert {target[1:] for target in targets if target} <= set(ids)
    assert "#main" in targets


def test_status_is_word_symbol_and_colour(page):
    for word in (s.name for s in Status):
        symbol = report_html.SYMBOLS[word]
        badge = (
            f'<span class="badge {word.lower()}"><i aria-hidden="true">{symbol}</i>{word}</span>'
        )
        assert badge in page
    assert len(set(report_html.SYMBOLS.values())) == len(report_html.SYMBOLS)


def test_every_verdict_and_trajectory_stands_on_its_card(folder, page):
    run = store.read_run(folder)
    cards = dict(re.findall(r'data-unit="([^"]+)"(.*?)</article>', page, re.S))
    assert list(cards) == [r.unit for r in run.units]
    for verdict in run.verdicts:
        assert digest.reason(verdict).replace("'", "&#39;") in cards[verdict.subject]
    for unit, card in cards.items():
        assert card.count("<img") == 4  # two FVs and their trajectories
        assert card.count("<use") == thumbnails.EXEMPLARS
        assert card.count("after 1, 5, 16, 40, 90, 160 updates") == 2, unit


def test_natural_thumbnails_are_embedded_once(folder, page):
    run = store.read_run(folder)
    shown = {name for r in run.units for name in r.exemplars[: thumbnails.EXEMPLARS]}
    assert page.count("<image ") == len(shown) < page.count("<use ")


def test_hostile_text_stays_text(tmp_path):
    units = [f"{HOSTILE.replace(' ', '')}:1", "$\\frac{:2", "../up:3"]
    made = synthetic_run.make(
        tmp_path / "a b'<i>\udce9", units, label=HOSTILE, skipped=((HOSTILE, f"| {HOSTILE}\n# x"),)
    )
    (made / "config.resolved.yaml").write_text(f"seed: 0\nmodel: {HOSTILE!r}\n# </pre>{HOSTILE}\n")
    document = Document(render(made).read_text())
    assert not document.having("script")
    assert HOSTILE in document.words  # neither run as a template nor as markup
    summary = (made / "summary.md").read_text()
    assert "<script" not in summary and "&lt;script&gt;" in summary
    written = {p.name for p in (made / "figures").iterdir()}
    assert all(re.fullmatch(r"[\w.-]+", name) and not name.startswith(".") for name in written)
    assert len(list((made / "figures").glob("path-*.svg"))) == 3
    assert {p.parent for p in made.rglob("path-*")} == {made / "figures"}
    for path in (made / "figures").glob("*.svg"):
        xml.etree.ElementTree.parse(path)
    assert all(c.isprintable() for line in summary_lines(store.read_run(made)) for c in line)


@pytest.mark.parametrize("layer", ["blocks.4", "it's <x>".replace(" ", "_"), "a{b", "-rf", "1e3"])
def test_command_names_exactly_this_unit(tmp_path, layer):
    made = synthetic_run.make(tmp_path / "my run", [f"{layer}:17"], naturals=9)
    line = report_html.command(store.read_run(made), f"{layer}:17")
    assert line is not None
    words = shlex.split(line)
    assert words[:3] == ["fvaudit", "run", "my run/config.resolved.yaml"]
    assert words[3] == "--out" and words[5] == "--set" and len(words) == 7
    key, _, value = words[6].partition("=")
    assert key == "units"
    assert yaml.safe_load(value) == [{"layer": layer, "channels": [17]}]
    assert str(tmp_path) not in line


def test_no_command_for_what_a_config_cannot_name(folder):
    run = store.read_run(folder)
    assert report_html.command(run, "blocks.4:17@3,3") is None
    assert report_html.command(run, "no unit") is None


def test_incomplete_run_says_so_first(tmp_path):
    made = synthetic_run.make(tmp_path / "run", complete=False, judged=False)
    document = Document(render(made).read_text())
    run = store.read_run(made)
    sentence = "4 of 9 units were measured; the same `fvaudit run` command finishes the rest."
    assert sentence in document.words
    assert summary_lines(run)[0].startswith("INCOMPLETE: 4 of 9 units were measured")
    assert markdown.summary(run).startswith("## fvaudit: INCOMPLETE\n")
    assert document.counted["NOT JUDGED"] == 4
    assert document.words.count("the run is not complete") == 3
    assert sorted(p.name for p in (made / "figures").iterdir()) == ["counts.csv"]


def test_incomplete_but_judged_says_both(tmp_path):
    made = synthetic_run.make(tmp_path / "run", complete=False)
    found = digest.overall(store.read_run(made))
    assert found.word == "INCOMPLETE" and "So far ERROR: 1 of 12 verdicts" in found.sentence


def test_run_without_verdicts_is_not_judged(tmp_path):
    made = synthetic_run.make(tmp_path / "run", judged=False)
    document = Document(render(made).read_text())
    assert "NOT JUDGED" in document.words and "there are no verdicts" in document.words
    assert document.counted == {s.name: 0 for s in Status} | {"NOT JUDGED": 4}
    assert "No discrepancy was detected" not in document.words


def test_run_that_has_just_begun_renders(tmp_path):
    made = synthetic_run.make(tmp_path / "run", [], complete=False, judged=False)
    for name in ("data.json", "model.json", "env.json", "config.resolved.yaml", "results.jsonl"):
        (made / name).unlink()
    assert "0 of 5 units were measured" in Document(render(made).read_text()).words


def test_missing_and_damaged_pictures_are_said(tmp_path):
    made = synthetic_run.make(tmp_path / "run", ["blocks.4:17"], naturals=9)
    first, second = sorted((made / "images").rglob("*.png"))
    first.unlink()
    first.with_suffix(".npz").write_bytes(b"PK\x03\x04 cut off")
    second.with_suffix(".npz").unlink()
    next((made / "exemplars").iterdir()).write_bytes(b"no picture")
    text = render(made).read_text()
    assert text.count("picture missing") == 1
    assert text.count("<img") == 1  # neither trajectory can be shown


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(AuditError, match="holds no audit"):
        render(tmp_path)


@pytest.mark.slow
def test_five_hundred_units_stay_below_five_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of small files
    units = [f"{layer}:{i}" for layer in ("blocks.4", "logits") for i in range(250)]
    made = synthetic_run.make(tmp_path / "run", units, edge=40, naturals=300)
    size = render(made).stat().st_size
    text = (made / "report.html").read_text()
    assert 3_000_000 < size < 5_000_000
    assert text.count("<article") == 500
    assert text.count('alt="Feature visualization') == 1000
    assert text.count('alt="The same picture after') == 1000
    assert text.count("<use ") == 3000
    assert len((made / "summary.md").read_text()) < 20_000
    assert "Units that did not pass, 20 of" in (made / "summary.md").read_text()


def test_few_units_get_large_pictures(page):
    assert f"--fv-width: {thumbnails.SIZES[0].fv * 5 // 4}px" in page


def test_drawings_are_small_and_well_formed(folder):
    run = store.read_run(folder)
    for r in run.units:
        for drawing in (drawings.unit_path(r), drawings.scale(r)):
            xml.etree.ElementTree.fromstring(str(drawing))
            assert len(drawing) < 2300
            assert "nan" not in drawing


def test_values_beyond_the_axis_become_arrows_that_say_them(folder):
    run = store.read_run(folder)
    far = [row for row in run.layers[0].path if row.normalised.value < drawings.CLIP[0]]
    assert len(far) == 1
    panel = xml.etree.ElementTree.fromstring(str(drawings.layer_panel(run.layers[0])))
    arrows = [e for e in panel.iter("path") if e.get("class") == "arrow"]
    assert [a.findtext("title") for a in arrows] == [
        f"{far[0].layer}: P = {far[0].normalised.value:.2f}, beyond the axis"
    ]


def test_figures_hold_the_numbers_that_were_drawn(folder):
    run = store.read_run(folder)
    for result in run.layers:
        with open(folder / "figures" / f"path-{result.layer}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["layer"] for row in rows] == [row.layer for row in result.path]
        assert [float(row["fv"]) for row in rows] == pytest.approx(
            [row.fv.value for row in result.path], rel=1e-5
        )
        drawing = (folder / "figures" / f"path-{result.layer}.svg").read_text()
        assert "<dc:date>" not in drawing and "FV with its natural group" in drawing
    with open(folder / "figures" / "headline.csv", newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [0.21, 0.44, 11.3]


def test_the_report_room_imports_next_to_nothing():
    code = (
        "import sys, fvaudit.report.html, fvaudit.report.figures, fvaudit.report.markdown;"
        "import fvaudit.report.text;"
        "found = {m for m in sys.modules if m.startswith('fvaudit.')};"
        "ours = sorted(m for m in found if not m.startswith('fvaudit.report'));"
        "print(ours, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ["fvaudit.filenames", "fvaudit.records", "fvaudit.store"]
    assert done.stdout.strip() == f"{ours} False"
