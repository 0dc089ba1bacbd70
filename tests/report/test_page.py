from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ntkpipe.kernels.spec import canonical_spec
from ntkpipe.predictions.metrics import compute_metrics
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.page import _significant as significant
from ntkpipe.report.page import write_report

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "-->&amp;")
SUMMARY = {
    "title": "<script>alert(3)</script> & co",
    "warnings": ["the kernel is <b>singular</b>"],
    "signals": ["ordered: q_star <1"],
    "max_learning_rate": {"ntk": 12.5, "nngp": float("inf")},
    "timings": {"gram": 173.4, "solve": 4000.0},
    "kernel": [{"op": "dense", "features": 10}, {"op": "relu"}],
    "config": {"data": {"path": "<iframe src='https://example.org'>"}, "times": [1, "inf"], "none": None, "empty": {}},
    "my_section": {"x": True},
}


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "img", "input", "source"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def page(make, tmp_path):
    def write(predictions, **options):
        images = np.random.default_rng(0).random((len(predictions.test_index), 5, 5, 1))
        inputs = ReportInputs(predictions, compute_metrics(predictions), images=images, **options)
        return write_report(inputs, tmp_path / "report")

    return write


def test_hostile_texts_are_text(make, page) -> None:
    path = page(make(class_names=HOSTILE, p=30), summary=SUMMARY)
    reader = Reader(path.read_text(encoding="utf-8"))
    names = {tag for tag, _ in reader.tags}
    assert not names & {"iframe", "link", "object", "embed", "form", "base"}
    assert path.read_text(encoding="utf-8").count("<script") == 1  # the page's own, which its policy names by its hash
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    text = "".join(reader.texts)
    assert SUMMARY["title"] in text
    assert HOSTILE[0] in text  # among the most frequent confusions, as text
    assert "the kernel is <b>singular</b>" in text
    assert "<iframe src='https://example.org'>" in text


def test_the_page_is_whole_and_self_contained(make, page) -> None:
    predictions = make(p=30)
    path = page(predictions, summary=SUMMARY)
    assert sorted(item.name for item in path.parent.iterdir()) == ["figures", "report.html"]
    html = path.read_text(encoding="utf-8")
    reader = Reader(html)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 3  # confusion and calibration are shown at every time, with a slider
    assert all(len(image["src"]) > 5000 and image["alt"] for image in images)
    text = "".join(reader.texts)
    for entry in compute_metrics(predictions)["entries"]:
        assert f"{100 * entry['accuracy']:.2f}%" in text
        assert significant(entry["mse"]) in text
    for expected in ("12.5", "2 min 53 s", "1 h 06 min", "op: relu", "My section", "rigorous", "estimate", "NNGP"):
        assert expected in text
    assert predictions.fingerprint() in text
    assert "default-src 'none'" in html


def test_the_headline_says_what_errors_are_estimated_at_and_the_detail_has_both(make, page) -> None:
    predictions = make(p=30, estimate=True)
    text = "".join(Reader(page(predictions).read_text(encoding="utf-8")).texts)
    entry = compute_metrics(predictions)["entries"][4]  # the first kernel, last time and first ridge
    for expected in (
        f"{significant(entry['typical_error'], 2)}typical numerical error (estimate)",
        f"{significant(entry['max_error_estimate'], 2)}99% of numerical errors are below this (estimate)",
        f"{entry['certain_by_estimate']:.2%}classes certain within the estimate",
        "largest bound",
        significant(entry["max_error_bound"], 2),
    ):
        assert expected in text
    assert "largest error bound (" not in text


def test_a_regression_has_a_page_too(make, page) -> None:
    text = "".join(Reader(page(make(regression=True, variance=False)).read_text(encoding="utf-8")).texts)
    assert "Test mean squared error" in text
    assert "accuracy" not in text.replace("Accuracy and loss", "")


def test_a_run_of_one_diverged_entry(make, page) -> None:
    import dataclasses

    predictions = make(kernels=("ntk",), times=(5.0,), ridges=(0.0,))
    bad = dataclasses.replace(
        predictions, mean=np.full_like(predictions.mean, np.inf), error_bound=np.full_like(predictions.mean, np.inf)
    )
    assert "–" in page(bad).read_text(encoding="utf-8")


def test_figures_have_a_dark_look_and_a_page_can_be_printed(make, page) -> None:
    text = page(make()).read_text()
    figures = re.findall(r'class="drawn" src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert figures
    for figure in figures:
        drawn = base64.b64decode(figure).decode()
        assert "@media screen and (prefers-color-scheme: dark)" in drawn
        assert '[style*="fill: #222222"] { fill: #e8e8e8 !important }' in drawn
    assert "details::details-content { content-visibility: visible" in text[text.index("@media print") :]


def test_every_time_is_in_the_page_and_the_last_is_shown(make, page) -> None:
    predictions = make(p=30)
    reader = Reader(page(predictions).read_text(encoding="utf-8"))
    frames = [attributes for _, attributes in reader.tags if "data-frame" in attributes]
    times = len(predictions.times)
    assert len(frames) == times * 4  # numbers, curves, confusion, calibration
    shown = [one["data-frame"] for one in frames if "hidden" not in one]
    assert shown == [str(times - 1)] * 4
    assert sum("data-last" in one for one in frames) == 4
    text = "".join(reader.texts)
    entries, ridges = compute_metrics(predictions)["entries"], len(predictions.ridges)
    assert all(f"accuracy {entries[t * ridges]['accuracy']:.2%}" in text for t in range(times))
    (slider,) = [attributes for tag, attributes in reader.tags if tag == "input"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", str(times - 1), str(times - 1))
    assert slider["data-texts"].count("|") == times - 1


def test_a_run_of_one_time_has_no_slider(make, page) -> None:
    tags = [tag for tag, _ in Reader(page(make(times=(5.0,))).read_text(encoding="utf-8")).tags]
    assert "input" not in tags


def test_the_policy_allows_this_script_alone(make, page) -> None:
    text = page(make()).read_text(encoding="utf-8")
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    ours = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{ours}'\"" in text


def test_the_network_is_drawn(make, page) -> None:
    layers = canonical_spec([{"op": "flatten"}, *2 * [{"op": "dense", "features": 10, "w_std": 1.5}, {"op": "relu"}]])
    summary = {**SUMMARY, "kernel": {"layers": layers}, "data": {"image shape": [5, 5, 1]}}
    text = "".join(Reader(page(make(), summary=summary).read_text(encoding="utf-8")).texts)
    for expected in (
        "The network",
        "5 × 5 × 1",
        "w_std 1.5",
        "× 2",
        "Signals through the layers",
        "Ordered: q_star <1",
    ):
        assert expected in text
