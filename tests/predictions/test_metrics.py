from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm
from sklearn.metrics import accuracy_score, mean_squared_error

from ntkpipe.predictions.metrics import (
    class_confidence,
    compute_metrics,
    decision_is_certain,
    expected_calibration_error,
    gaussian_nll,
    read_metrics,
    write_metrics,
)
from ntkpipe.report.terminal import error_lines, summary


def test_agree_with_scikit_learn_and_scipy(make) -> None:
    predictions = make(p=50, c=4)
    metrics = compute_metrics(predictions)
    assert len(metrics["entries"]) == 12
    for entry, position in zip(metrics["entries"], predictions.entries(), strict=True):
        mean = predictions.mean[position]
        assert entry["accuracy"] == accuracy_score(predictions.label, mean.argmax(1))
        assert entry["mse"] == pytest.approx(mean_squared_error(predictions.target, mean), rel=1e-13)
        deviation = np.sqrt(predictions.variance[position])[:, None]
        assert entry["nll"] == pytest.approx(-norm.logpdf(predictions.target, mean, deviation).mean(), rel=1e-12)
        low, high = norm.interval(0.95, mean, deviation)
        assert entry["coverage_95"] == np.mean((low <= predictions.target) & (predictions.target <= high))
        assert entry["max_error_bound"] == predictions.error_bound[position].max()
        assert 0 <= entry["ece"] <= 1


def test_regression_has_no_class_metrics(make) -> None:
    entry = compute_metrics(make(regression=True, variance=False))["entries"][0]
    assert set(entry) == {
        "kernel", "time", "ridge", "bound_kind", "doubt", "mse", "max_error_bound", "median_error_bound", "rmse", "r2", "targets"
    }  # fmt: skip
    assert {"nll", "coverage_50", "coverage_95"} <= set(compute_metrics(make(regression=True))["entries"][0])


def test_estimates_of_errors_have_metrics_of_their_own(make) -> None:
    predictions = make(p=40, estimate=True)
    estimate = predictions.error_estimate
    assert estimate is not None
    for entry, at in zip(compute_metrics(predictions)["entries"], predictions.entries(), strict=True):
        assert entry["max_error_estimate"] == estimate[at].max()
        assert entry["typical_error"] == np.median(estimate[at]) / 5 == entry["median_error_estimate"] / 5
        certain = decision_is_certain(predictions.mean[at], estimate[at])
        assert entry["certain_by_estimate"] == certain.mean() >= entry["certain"]
    assert "max_error_estimate" not in compute_metrics(make())["entries"][0]


def test_a_line_per_kernel_says_how_far_predictions_may_be_off(make) -> None:
    predictions = make(p=40, estimate=True)
    estimate = np.full_like(predictions.error_bound, 1e-9)
    estimate[:, 2] = 1e-8  # at the last time
    estimate[0, 2, 0, 0, 0] = 2e-8
    estimate[1, 2, 0] = np.inf
    bound = np.maximum(predictions.error_bound, estimate)
    metrics = compute_metrics(dataclasses.replace(predictions, error_estimate=estimate, error_bound=bound))
    assert error_lines(metrics) == [
        "numerical error (ntk, t=inf, ridge 0): typically 2e-09, at most 2e-08 for 99% of predictions",
        "numerical error (nngp, t=inf, ridge 0): neither bounded nor estimated",
    ]
    assert summary(metrics)[-2:] == error_lines(metrics)
    assert error_lines(compute_metrics(make())) == []


def test_a_table_of_many_times_fits_a_terminal_and_keeps_the_first_and_the_last(make) -> None:
    metrics = compute_metrics(make(p=20))
    times = [*(10.0**k for k in range(15)), np.inf]
    metrics["entries"] = [
        entry | {"time": time, "accuracy": place / 100}
        for entry in metrics["entries"]
        if entry["time"] == np.inf
        for place, time in enumerate(times)
    ]
    head, row, *_ = table = summary(metrics)
    assert head.split() == ["accuracy", *(f"t={times[i]:g}" for i in (0, 2, 4, 6, 9, 11, 13, 15))]
    assert row.split()[-8:] == [f"{i / 100:.4f}" for i in (0, 2, 4, 6, 9, 11, 13, 15)]
    assert "(8 of 16 times; the report and metrics.json have all)" in table
    assert max(map(len, table[:3])) <= 100


def test_diverged_means_give_none_and_are_valid_json(make, tmp_path) -> None:
    predictions = make()
    mean, bound = predictions.mean.copy(), predictions.error_bound.copy()
    mean[0, 0, 0, 0, 0] = np.nan
    bound[0, 0, 0] = np.inf
    metrics = compute_metrics(dataclasses.replace(predictions, mean=mean, error_bound=bound))
    entry = metrics["entries"][0]
    assert [entry[name] for name in ("accuracy", "mse", "nll")] == [None] * 3
    assert metrics["entries"][1]["mse"] is not None
    write_metrics(metrics, tmp_path / "metrics.json")
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["entries"][0]["max_error_bound"] == "inf"
    assert stored["entries"][-1]["time"] == "inf"
    assert read_metrics(tmp_path / "metrics.json") == metrics
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_variance_that_cancels_keeps_the_likelihood_finite(make) -> None:
    predictions = make()
    variance = predictions.variance.copy()
    variance[..., 0] = 0.0
    entry = compute_metrics(dataclasses.replace(predictions, variance=variance))["entries"][0]
    assert math.isfinite(entry["nll"])


def test_certain_decisions() -> None:
    mean = np.array([[1.0, 0.0], [1.0, 0.9], [0.0, 0.0]])
    bound = np.full((3, 2), 0.1)
    assert decision_is_certain(mean, bound).tolist() == [True, False, False]
    assert not decision_is_certain(mean, np.full((3, 2), np.inf)).any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(2, 6))
def test_no_error_within_the_bound_changes_a_certain_decision(seed, size, c) -> None:
    rng = np.random.default_rng(seed)
    mean, bound = rng.standard_normal((20, c)), size * rng.random((20, c))
    certain = decision_is_certain(mean, bound)
    for _ in range(10):
        moved = mean + bound * rng.choice([-1, 1], (20, c))
        assert (moved.argmax(1) == mean.argmax(1))[certain].all()


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 6), st.floats(1e-3, 1e3))
def test_two_classes_have_a_closed_form(gap, variance) -> None:
    # P(f_0 > f_1) = Phi(gap / sqrt(2 variance)) for independent outputs.
    confidence = class_confidence(np.array([[gap * math.sqrt(variance), 0.0]]), np.array([variance]))
    assert confidence[0] == pytest.approx(norm.cdf(gap / math.sqrt(2)), abs=1e-9)


def test_three_classes_against_the_orthant_probability() -> None:
    mean, variance = np.array([[0.5, 0.1, -0.2]]), np.array([0.3])
    difference = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])
    covariance = variance[0] * difference @ difference.T
    expected = multivariate_normal([0, 0], covariance).cdf(difference @ mean[0])
    assert class_confidence(mean, variance)[0] == pytest.approx(expected, abs=1e-6)
    assert class_confidence(np.zeros((1, 10)), np.ones(1))[0] == pytest.approx(0.1, abs=1e-6)


def test_calibration_error_of_a_calibrated_and_an_overconfident_forecast() -> None:
    confidence = np.repeat([0.25, 0.75], [40, 40])
    correct = np.concatenate([np.arange(40) < 10, np.arange(40) < 30])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.ones(10), np.arange(10) < 6) == pytest.approx(0.4)


def test_nll_is_smallest_at_the_true_variance() -> None:
    rng = np.random.default_rng(0)
    target = rng.standard_normal((2000, 2)) * 3
    losses = [gaussian_nll(np.zeros_like(target), target, np.full(2000, v)) for v in (4.0, 9.0, 16.0)]
    assert losses[1] == min(losses)
