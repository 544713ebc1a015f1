"""The pages in a real browser: they render, decode their images, ask the network for nothing, fit a phone whatever
words they hold, and can be read and scrolled without eyes or mouse."""

from __future__ import annotations

import functools
import http.server
import re
import threading

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from toy_data import write_toy_page

from llmcxr.pages.results import (
    DrawingCard,
    PageContent,
    QuestionRow,
    Reconstruction,
    ReportCard,
    write_page,
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page is not tried in a browser"
)
PHONE, DESK = 375, 1280
# (A browser asks every server for favicon.ico by itself.)
REQUESTS = """performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.endsWith("/favicon.ico"))"""
# Those below the fold are loaded only when they come near.
DECODED = (
    """Promise.all([...document.images].map(i => { i.loading = "eager"; return i.decode().then(() => 1, () => 0) }))"""
)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WORDS = {
    "usual": "pleural effusion",
    "long": "pneumonoultramicroscopicsilicovolcanoconiosis",
    "unbroken": "W" * 80,
    "wide": "a finding of a name in many words, " * 6,
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(folder):
    """Address at which the files of `folder` are served: from file:// a browser does not list its requests."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as own:
        yield own


@pytest.fixture
def look(folder, address, browser):
    """Show a page that holds `word` wherever a run can put words of its own, without the policy by which it forbids
    itself all requests: whatever it might ask for is really asked for. `extra` is put into it."""

    def show(word: str, width: int, extra: str = "") -> Browser:
        write_page(folder / "report.html", full(word))
        source = (folder / "report.html").read_text(encoding="utf-8")
        without, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
        assert count == 1
        (folder / "shown.html").write_text(without.replace("<main>", "<main>" + extra), encoding="utf-8")
        browser.show(f"{address}/shown.html", width)
        assert browser.value("document.documentElement.clientWidth") == width
        return browser

    return show


def full(word: str) -> PageContent:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    curve = [(step, step * 1000, 3 / step) for step in range(1, 200)]
    row = {"name": word, "original": 0.9, "drawn": 0.8, "reading": 0.6, "positives": 12}
    after = {"after": word, "perplexity": 20.0, "perplexity_ratio": 1.0, "instruction_loss": 0.5}
    return PageContent(
        title=word,
        facts={
            "Recipe": word,
            "Model": "a model of someone",
            "Base LLM": word,
            "Radiographs": "1,200 test",
            word: word,
        },
        reconstructions=[Reconstruction(image, image, word, 0.01)],
        reports=[ReportCard(image, word, word, [word], [word], [word], word)],
        drawings=[DrawingCard(word, image, [image] * 3, word, reconstruction=image)],
        overview=Image.fromarray(image),
        questions=[QuestionRow(word, word, word, False, image)],
        summary={
            "report": {"micro_f1": 0.4, "micro_f1_low": 0.3, "micro_f1_high": 0.5, "n": 1_000_000},
            "protocol": {"left_out": {word: 3}},
            "findings": [row],
            "not_measured": {"image.auroc": word},
            "notes": [word],
            "language": {"trace": [after]},
        },
        train_loss={word: curve},
        unseen_loss={word: [(100, 1e5, 0.3)]},
        data={
            "rules": [{"rule": word, "images": 12, "patients": 3}],
            "studies": dict.fromkeys(("train", "validate", "test"), 4),
            "patients": dict.fromkeys(("train", "validate", "test"), 1),
            "left_out": {word: 1},
            "noted": {word: 1},
            "examples": {word: [word]},
        },
        remarks=[word],
        next_steps=[f"llmcxr report {word} --model ."],
    )


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_page_renders_and_asks_for_nothing(look, width):
    shown = look("usual", width)
    assert shown.value(REQUESTS) == []
    assert shown.value(DECODED) == [1] * (1 + 1 + 1 + 5 + 2)
    assert shown.value("document.querySelector('h1').getBoundingClientRect().height") > 0


def test_the_browser_would_see_a_request_and_a_broken_image(look):
    shown = look("usual", DESK, '<img alt="" src="missing.png">')
    assert [name.rsplit("/", 1)[-1] for name in shown.value(REQUESTS)] == ["missing.png"]
    assert shown.value(DECODED)[0] == 0


@pytest.mark.parametrize("width", [320, PHONE, 700, 701, DESK])
def test_it_fits_whatever_words_it_holds(look, width):
    for kind, word in WORDS.items():
        assert look(word, width).value(OVERFLOW) <= 0, kind
    assert look("usual", width, f'<div style="width:{width + 1}px">.</div>').value(OVERFLOW) > 0, "it would be seen"


SCROLLS = """[...document.querySelectorAll("*")].filter(e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX))
  .map(e => [e.tabIndex, e.getAttribute("role"), !!e.getAttribute("aria-label")])"""


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_parts_and_tables_have_names_and_what_scrolls_has_focus(look, width):
    shown = look("usual", width)
    assert shown.value(SCROLLS) == [[0, "region", True]] * 6
    assert shown.value("[...document.querySelectorAll('th:not([scope=col]):not([scope=row])')].length") == 0
    assert shown.value("[...document.querySelectorAll('th')].filter(e => !e.textContent.trim()).length") == 0
    assert shown.value("[...document.querySelectorAll('table')].map(e => !!e.caption.textContent)") == [True] * 6
    # What a screen reader is told, which a change of layout can take away.
    nodes = [n for n in shown.ask("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
    told = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes]
    sections = shown.value("[...document.querySelectorAll('section h2')].map(e => e.textContent)")
    names = [name for role, name in told if role == "region"]
    assert len(sections) == 11 and set(sections) < set(names) and all(names)
    assert ("navigation", "Parts of this page") in told
    assert [name for role, name in told if role == "table"] == [
        "Questions, answers and truth",
        "AUROC of each finding by each route",
        "Language after each stage",
        "What took part",
        "What was left out",
        "What was kept, but is odd",
    ]
    headers = [name for role, name in told if role == "columnheader"]
    assert headers[:5] == ["Image", "Question", "Answer of the model", "Truth", "Verdict"]
    assert [name for role, name in told if role == "StaticText" and name in ("0.900", "20.000")] == ["0.900", "20.000"]


@pytest.mark.parametrize("width", [320, PHONE, 700, 701, DESK])
def test_the_data_page_fits_and_asks_for_nothing(folder, address, browser, width):
    for kind, word in WORDS.items():
        write_toy_page(folder / "data.html", word)
        source = (folder / "data.html").read_text(encoding="utf-8")
        (folder / "shown.html").write_text(re.sub(r'<meta http-equiv="Content[^>]*>', "", source), encoding="utf-8")
        browser.show(f"{address}/shown.html", width)
        assert browser.value(OVERFLOW) <= 0, kind
        assert browser.value(REQUESTS) == [] and set(browser.value(DECODED)) == {1}
        assert browser.value("[...document.querySelectorAll('table')].map(e => !!e.caption.textContent)") == [True] * 10
        assert browser.value("[...document.querySelectorAll('th:not([scope])')].length") == 0
        assert all(state == [0, "region", True] for state in browser.value(SCROLLS))
