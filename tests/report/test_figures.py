from __future__ import annotations

import dataclasses
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix as reference_confusion

from ntkpipe.predictions.metrics import compute_metrics
from ntkpipe.report import curves
from ntkpipe.report.curves import TimeAxis
from ntkpipe.report.figures import write_figures
from ntkpipe.report.inputs import ReportInputs
from ntkpipe.report.outcomes import confident_mistakes, confusion_matrix, displayable
from ntkpipe.report.style import PHONE_WIDTH, number, short

SPECTRA = {"ntk": np.geomspace(1e3, 0.1, 90), "nngp": np.r_[np.geomspace(1e2, 1e-3, 90), -1e-12]}
CONVERGENCE = {
    "ntk": {"steps": [5, 10, 15], "bound": [1.0, 1e-3, 1e-7]},
    "nngp": {"steps": [5, 10, 15, 20], "bound": [np.inf, 1e-1, 1e-4, 0.0]},
}


def inputs_of(predictions, *, channels=3, **options) -> ReportInputs:
    p = len(predictions.test_index)
    images = np.random.default_rng(0).random((p, 6, 5, channels))
    return ReportInputs(predictions, compute_metrics(predictions), images=images, **options)


def check_files(figures) -> None:
    for figure in figures:
        with Image.open(figure.png) as image:
            assert image.width >= 200
            assert image.height >= 150
            assert np.asarray(image.convert("L")).std() > 3  # not blank
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert ElementTree.parse(figure.svg).getroot().tag.endswith("svg")
        assert figure.caption.endswith(".")


def test_every_figure_of_a_classification(make, tmp_path) -> None:
    options = {"spectra": SPECTRA, "convergence": CONVERGENCE, "tolerance": 1e-5}
    figures = write_figures(inputs_of(make(p=40), **options), tmp_path)
    names = ["training_curves", "confusion", "mistakes", "reliability", "calibration", "spectrum", "convergence"]
    assert [figure.name for figure in figures] == names
    check_files(figures)
    assert "1 values of nngp at or below zero" in figures[5].caption
    again = write_figures(inputs_of(make(p=40), **options), tmp_path / "again")
    for a, b in zip(figures, again, strict=True):  # the same run draws the same bytes
        assert a.svg.read_bytes() == b.svg.read_bytes()
        assert a.png.read_bytes() == b.png.read_bytes()
    for figure in figures:  # in points; letters keep their size
        wide, narrow = (ElementTree.fromstring(svg) for svg in (figure.svg.read_bytes(), figure.for_phones()))
        assert float(narrow.get("width").removesuffix("pt")) <= 72 * (PHONE_WIDTH + 0.7)
        if figure.name in ("training_curves", "calibration"):
            assert float(narrow.get("height").removesuffix("pt")) > 1.5 * float(wide.get("height").removesuffix("pt"))


@pytest.mark.parametrize("c", [1, 3])
def test_every_figure_of_a_regression(make, tmp_path, c) -> None:
    figures = write_figures(inputs_of(make(p=20, c=c, regression=True), channels=1), tmp_path)
    assert [figure.name for figure in figures] == ["training_curves", "scatter", "mistakes", "calibration"]
    check_files(figures)


@pytest.mark.parametrize(
    "options",
    [
        {"kernels": ("ntkgp",), "times": (np.inf,), "ridges": (0.0,), "p": 1},
        {"times": (0.0,), "variance": False},
        {"times": (0.0, 1.0, np.inf), "ridges": (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)},
        {"times": (1e-3, 1e12), "c": 2},
        {"c": 100, "p": 30, "variance": False, "ridges": (0.0,), "times": (1.0, 2.0)},
        {"class_names": ("$\\frac{", "猫 --> <b>", "\x00\n" + 90 * "long")},
    ],
)
def test_unusual_runs_are_drawn(make, tmp_path, options) -> None:
    figures = write_figures(inputs_of(make(**options), channels=2), tmp_path)
    assert {"training_curves", "confusion"} <= {figure.name for figure in figures}
    check_files(figures)


def test_diverged_and_perfect_predictions(make, tmp_path) -> None:
    predictions = make()
    mean = predictions.mean.copy()
    mean[0, -1] = np.nan
    figures = write_figures(inputs_of(dataclasses.replace(predictions, mean=mean)), tmp_path)
    assert [figure.name for figure in figures] == ["training_curves"]
    perfect = np.broadcast_to(predictions.target, predictions.mean.shape)
    figures = write_figures(inputs_of(dataclasses.replace(predictions, mean=perfect, variance=None)), tmp_path)
    assert [figure.name for figure in figures] == ["training_curves", "confusion"]
    check_files(figures)


def test_confusion_matrix_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    label, predicted = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    expected = reference_confusion(label, predicted, labels=range(5))
    np.testing.assert_array_equal(confusion_matrix(label, predicted, 5), expected)


def test_mistakes_are_ordered_by_margin(make) -> None:
    inputs = inputs_of(make(p=60))
    points, margin = confident_mistakes(inputs)
    mean, label = inputs.predictions.mean[0, -1, 0], inputs.predictions.label
    assert (mean.argmax(1)[points] != label[points]).all()
    assert len(points) == (mean.argmax(1) != label).sum()
    assert (np.diff(margin) <= 0).all()
    assert margin[0] == mean[points[0]].max() - mean[points[0], label[points[0]]]


def test_zero_and_infinity_stand_apart_on_the_time_axis() -> None:
    axis = TimeAxis(np.array([0.0, 1.0, 10.0, 1000.0, np.inf]))
    assert np.isfinite(axis.positions).all()
    assert (np.diff(axis.positions) > 0).all()
    assert axis.positions[1:4].tolist() == pytest.approx([0, 1, 3])
    assert np.isfinite(TimeAxis(np.array([np.inf])).positions).all()


def test_images_of_any_channel_count_are_shown() -> None:
    assert displayable(np.full((4, 4, 1), 0.5)).shape == (4, 4)
    assert displayable(np.full((4, 4, 2), 2.0)).max() == 1
    assert displayable(np.full((4, 4, 3), np.nan)).shape == (4, 4, 3)


def test_numbers_and_names() -> None:
    shown = [number(v) for v in (0.0, 1e-4, 2.5e-7, 14230.4, 1e9, np.inf)]
    assert shown == ["0", "0.0001", "2.5e-7", "14230", "1e9", "∞"]
    assert short("a\nb\x00c" + "d" * 50, 8) == "a b cdd…"
    assert short("\n") == "?"


def test_images_must_match_the_test_points(make) -> None:
    predictions = make()
    with pytest.raises(ValueError, match="images has shape"):
        ReportInputs(predictions, compute_metrics(predictions), images=np.zeros((3, 4, 4, 1)))


def test_no_global_state_of_pyplot() -> None:
    code = "import sys, ntkpipe.report.page; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_convergence_figure_shows_what_the_solver_stops_by(make) -> None:
    record = {
        "steps": [1, 2, 4],
        "bound": [10.0, 1.0, 0.1],
        "estimates": [[2, 1e-2, 1e-4], [3, 0.0, 1e-4], [4, 1e-5, 2e-4]],
    }
    figure = curves.convergence(inputs_of(make(p=20), convergence={"ntk": record}))
    (axes,) = figure.axes
    drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    assert list(drawn) == ["NTK: bound", "NTK: estimate", "NTK: wanted"]
    np.testing.assert_array_equal(drawn["NTK: estimate"], [[2, 1e-2], [4, 1e-5]])
    np.testing.assert_array_equal(drawn["NTK: wanted"], [[2, 1e-4], [4, 2e-4]])
    assert axes.get_ylabel() == "error of a prediction"
