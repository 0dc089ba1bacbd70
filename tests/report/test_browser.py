"""The page in a browser: the slider moves, figures fit a phone, every part is dark in the dark, and paper is white."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from html import unescape

import numpy as np
import pytest
from PIL import Image
from sample_predictions import build

from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.predictions.metrics import compute_metrics
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.page import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

ASKED = """
const widths = () => [document.documentElement.scrollWidth, document.documentElement.clientWidth];
const frames = [...document.querySelectorAll('[data-frame]')];
const shown = () => frames.filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.frame);
const found = {page: widths(), first: shown(), last: null};
const slider = document.querySelector('.slider input');
found.visible = slider.getBoundingClientRect().width;
slider.value = 0;
slider.dispatchEvent(new Event('input'));
found.last = shown();
found.text = slider.getAttribute('aria-valuetext');
found.panels = [...document.querySelectorAll('.times figure')].map(e => e.getBoundingClientRect()).map(r => [r.left, r.right]);
found.overflow = [...document.querySelectorAll('figure .scroll')].map(e => e.scrollWidth - e.clientWidth);
found.scrolls = [...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e).overflowX);
document.title = 'FOUND ' + JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    predictions = build(p=40)
    layers = canonical_spec(12 * [{"op": "dense", "features": 9, "w_std": 1.5}, {"op": "relu"}])
    summary = {
        "title": "digits: relu network",
        "kernel": {"layers": layers},
        "config": {"data": {"path": 30 * "/folder"}},
    }
    images = np.random.default_rng(0).random((40, 5, 5, 1))
    inputs = ReportInputs(predictions, compute_metrics(predictions), images=images, summary=summary)
    return write_report(inputs, tmp_path_factory.mktemp("report"))


def seen(report, tmp_path, width):
    """What a script finds in the page at this width of the window: a copy whose policy allows that script too."""
    text = report.read_text(encoding="utf-8")
    ours = base64.b64encode(hashlib.sha256(ASKED.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{ours}' ").replace(
        "</body>", f"<script>{ASKED}</script></body>"
    )
    framed = tmp_path / "asked.html"
    framed.write_text(text, encoding="utf-8")
    command = [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, framed.as_uri()], capture_output=True, text=True)
    return json.loads(unescape(re.search("<title>FOUND (.*?)</title>", done.stdout)[1]))


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_the_slider_moves_and_nothing_is_wider_than_the_window(report, tmp_path, width):
    found = seen(report, tmp_path, width)
    assert found["page"][0] <= found["page"][1]
    assert set(found["first"]) == {str(max(map(int, found["first"])))}
    assert set(found["last"]) == {"0"}
    assert len(found["first"]) == len(found["last"]) == 4
    assert found["text"].startswith("t = ")
    assert found["visible"] > 100
    assert set(found["scrolls"]) == {"auto"}
    assert len(found["overflow"]) >= 3
    assert max(found["overflow"]) <= 0  # tables scroll sideways, figures never do
    lefts = {round(left) for left, _ in found["panels"]}
    assert len(lefts) == (1 if width == 400 else 2 if width == 900 else 3)  # panels stand below each other on a phone


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_a_screenshot_has_the_readers_colours_everywhere(report, tmp_path, width, dark):
    shot = tmp_path / "shot.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *OPTIONS, scheme, f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"]
    subprocess.run(
        [*command, f"--window-size={width},3000", f"--screenshot={shot}", report.as_uri()],
        capture_output=True,
        check=True,
    )
    grey = np.asarray(Image.open(shot).convert("L"))
    assert grey.shape[1] == width
    near, far = (grey < 70, grey > 225) if dark else (grey > 225, grey < 70)
    assert near.mean() > 0.75  # figures included: one white figure on a dark page would take a tenth of it
    assert 0.001 < far.mean() < 0.08  # letters and lines, and they are legible


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_print_is_light_and_has_every_part(report, tmp_path, dark):
    made = tmp_path / "report.pdf"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *OPTIONS, scheme, f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*command, f"--print-to-pdf={made}", report.as_uri()], capture_output=True, check=True)
    pdf = made.read_bytes()
    assert pdf.startswith(b"%PDF")
    assert max(map(int, re.findall(rb"/Count (\d+)", pdf))) > 1
    drawn = b"".join(
        zlib.decompressobj().decompress(stream)
        for stream in re.findall(rb"/FlateDecode.*?>>\s*stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    )
    fills = {tuple(map(float, fill.split())) for fill in re.findall(rb"([\d.]+ [\d.]+ [\d.]+) rg\b", drawn)}
    assert (1.0, 1.0, 1.0) in fills
    card, page = np.array([0x1F, 0x22, 0x26]) / 255, np.array([0x16, 0x18, 0x1B]) / 255  # of dark pages
    assert not [fill for fill in fills if min(abs(card - fill).max(), abs(page - fill).max()) < 0.004]
