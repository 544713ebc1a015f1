"""The results page in a real browser: it renders, decodes its images, fits a phone, and asks the network for nothing."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

from llmcxr.evaluation.page.page import DrawingCard, PageContent, QuestionRow, Reconstruction, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page is not tried in a browser"
)

# Added to a copy of the page, which the page's own policy would forbid: it reports what the browser made of it.
# (A browser asks every server for favicon.ico by itself; a file on disk has none.)
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const images = [...document.images];
  document.body.insertAdjacentHTML("beforeend", "<pre id=probe></pre>");
  document.getElementById("probe").textContent = JSON.stringify({
    requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => n != location.origin + "/favicon.ico"),
    images: images.length,
    decoded: images.filter(i => i.complete && i.naturalWidth > 0).length,
    heading: document.querySelector("h1").getBoundingClientRect().height,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
}, 200))</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(tmp_path):
    """Address at which the files of `tmp_path` are served: from file:// a browser does not list its requests."""
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look(page, address, width):
    """Load a copy of `page` with the probe in it, and return what the probe saw."""
    source = page.read_text(encoding="utf-8")
    without_policy, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert count == 1  # so whatever the page might ask for would really be asked for
    copy = page.with_name(f"probed-{width}.html")
    copy.write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        f"--user-data-dir={page.with_name('profile')}",
        f"--window-size={width},900",
        "--virtual-time-budget=3000",
    ]
    result = subprocess.run(
        [*command, "--dump-dom", f"{address}/{copy.name}"], capture_output=True, text=True, timeout=90
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout)
    assert found, result.stderr[-2000:]
    return json.loads(found[1].replace("&amp;", "&"))


@pytest.fixture
def page(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    curve = [(step, step * 1000, 3 / step) for step in range(1, 200)]
    content = PageContent(
        title="Browser test",
        facts={"recipe": "test"},
        reconstructions=[Reconstruction(image, image, "a caption", 0.01)],
        drawings=[DrawingCard("A long text of a report. " * 20, image, [image, image, image], reconstruction=image)],
        overview=Image.fromarray(image),
        questions=[QuestionRow("Is there cardiomegaly?", "Yes.", "No.", False, image)],
        summary={
            "findings": [{"name": "pleural effusion", "original": 0.9, "drawn": 0.8, "reading": 0.6, "positives": 12}]
        },
        train_loss={"cxr_vqa": curve},
    )
    write_page(tmp_path / "report.html", content)
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [1280, 500])  # a desk, and the narrowest window that every headless Chromium gives
def test_page_renders_and_asks_for_nothing(page, address, width):
    seen = look(page, address, width)
    assert seen["requests"] == []
    assert seen["images"] == seen["decoded"] == 1 + 2 + 5 + 1
    assert seen["heading"] > 0
    assert seen["overflow"] <= 0


def test_the_probe_would_see_a_request_and_a_broken_image(page, address):
    source = page.read_text(encoding="utf-8")
    page.write_text(source.replace("<main>", '<main><img alt="" src="missing.png">'), encoding="utf-8")
    seen = look(page, address, 1280)
    assert [name.rsplit("/", 1)[-1] for name in seen["requests"]] == ["missing.png"]
    assert seen["decoded"] == seen["images"] - 1
