"""The report in a real browser, without a network; skipped where there is none."""

import io
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from fvaudit.report import render
from tests import synthetic_run


pytestmark = pytest.mark.extras
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> pathlib.Path:
    units = [f"{layer}:{i}" for layer in ("blocks.4", "logits") for i in (3, 17, 80, 1000)]
    long = "a_layer_with_a_very_long_name.that_nobody.would.call_short.but_somebody_will:12345"
    return render(synthetic_run.make(tmp_path_factory.mktemp("runs") / "demo", [*units, long]))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def visit(browser, report):
    """Opens the report; afterwards nothing may have been asked for or complained about."""
    asked, said, contexts = [], [], []

    def opened(**settings):
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()] * len(
        contexts
    )
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_and_all_pictures_load(visit, width, scheme):
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert len(sizes) == 9 * 4 and all(sizes)
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(c => c.match(/[0-9.]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))"
    )
    assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 400


def test_wide_pictures_are_shown_whole(browser, tmp_path):
    """Twice as wide as high, as their network's input."""
    page = browser.new_page(offline=True, viewport={"width": 1280, "height": 900})
    page.goto(render(synthetic_run.make(tmp_path / "wide", wide=2)).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    shown = page.evaluate(
        "[...document.images].map(i => [i.naturalWidth / i.naturalHeight, i.width / i.height])"
    )
    frames = 6
    assert sorted({round(own) for own, _ in shown}) == [2, 2 * frames]
    assert all(box == pytest.approx(own, rel=0.05) for own, box in shown)
    pixels = np.asarray(_drawn_natural(page)).astype(int)
    edge = len(pixels)
    varied = np.ptp(pixels, axis=1).max(axis=1) > 20  # rows
    assert varied.sum() == pytest.approx(edge / 2, abs=4) and not varied[[0, -1]].any()
    columns = np.ptp(pixels[edge // 4 : -edge // 4], axis=0).max(axis=1) > 20
    assert columns.mean() > 0.95  # out to both sides
    page.close()


def _drawn_natural(page) -> Image.Image:
    drawing = page.locator(".naturals svg").first
    drawing.scroll_into_view_if_needed()
    return Image.open(io.BytesIO(drawing.screenshot())).convert("RGB")


def test_natural_thumbnails_are_painted(visit):
    """A reused picture has no naturalWidth: its pixels are looked at instead."""
    pixels = _drawn_natural(visit(viewport={"width": 1280, "height": 900}))
    colours = pixels.getcolors(pixels.width * pixels.height)
    assert colours is not None and len(colours) > 200


def test_everything_works_without_scripts(visit):
    page = visit(viewport={"width": 1280, "height": 900}, java_script_enabled=False)
    cards = page.locator(".card")
    assert cards.count() == 9
    failing = page.locator(".card.fail").count()
    page.locator("#show-fail").check()
    visible = [card for card in cards.all() if card.is_visible()]
    assert 0 < len(visible) == failing < 9
    page.locator("#show-all").check()
    assert all(card.is_visible() for card in cards.all())
    page.locator(".card summary").first.click()
    assert page.locator(".card .copy").first.is_visible()


def test_keyboard_reaches_the_verdict_first(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"


def test_a_finding_leads_to_its_card_even_when_filtered(visit):
    page = visit(viewport={"width": 1280, "height": 900})
    page.locator("#show-error").check()
    link = page.locator("#why a").first
    target = link.get_attribute("href")
    link.click()
    assert page.locator(f"{target}").is_visible()


def test_print_keeps_cards_whole_and_opens_what_is_folded(visit, tmp_path):
    page = visit(viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).breakInside") == "avoid"
    assert page.locator(".card .copy").first.bounding_box()["height"] > 10
    assert not page.locator(".filter").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"
