from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ntkpipe.predictions.calibration import (
    LEVELS,
    calibration_metrics,
    coverage,
    error_by_deviation,
    usable_variance,
    z_scores,
)
from ntkpipe.report.calibration_figure import round_ticks

P, C = 4000, 3


@pytest.fixture
def gaussian():
    """Means, targets that deviate from them as the variances say, and the variances."""
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.1, 4.0, P)
    mean = rng.standard_normal((P, C))
    return mean, mean + rng.standard_normal((P, C)) * np.sqrt(variance)[:, None], variance


def test_true_variances_are_calibrated(gaussian) -> None:
    found = calibration_metrics(*gaussian)
    # Five standard errors of a fraction of 12,000 targets.
    levels = np.array(LEVELS)
    assert (np.abs(np.array(found["coverage"]) - levels) <= 5 * np.sqrt(levels * (1 - levels) / (P * C))).all()
    assert abs(found["z_mean"]) < 5 / np.sqrt(P * C)
    assert abs(found["z_rms"] - 1) < 5 / np.sqrt(2 * P * C)
    predicted, error, count = np.array(found["deviation"]).T
    assert (np.diff(predicted) > 0).all()
    assert count.sum() == P
    assert (np.abs(error / predicted - 1) < 5 / np.sqrt(2 * count * C)).all()


def test_deviations_twice_too_small_are_seen(gaussian) -> None:
    mean, target, variance = gaussian
    found = calibration_metrics(mean, target, variance / 4)
    assert found["z_rms"] == pytest.approx(2 * calibration_metrics(mean, target, variance)["z_rms"], rel=1e-12)
    assert (np.array(found["coverage"]) < LEVELS).all()


def test_coverage_counts(gaussian) -> None:
    z = z_scores(*gaussian)
    for level, share in zip(LEVELS, coverage(z), strict=True):
        assert share == np.mean(np.abs(z) <= norm.interval(level)[1])


def test_few_points_have_few_bins() -> None:
    found = error_by_deviation(np.zeros((3, 1)), np.array([[3.0], [2.0], [1.0]]), np.array([9.0, 4.0, 1.0]))
    np.testing.assert_allclose(found, [[1, 1, 1], [2, 2, 1], [3, 3, 1]])


def test_variances_that_cannot_be_used() -> None:
    assert usable_variance(np.array([1.0, np.nan])) is None
    assert usable_variance(np.zeros(3)) is None
    kept = usable_variance(np.array([1.0, 0.0]))
    assert kept is not None
    assert kept.tolist() == [1.0, np.finfo(float).eps]


@settings(deadline=None)
@given(st.floats(-12, 12), st.floats(0.158, 20))
def test_ticks_are_round_and_their_labels_do_not_touch(low: float, decades: float) -> None:
    low, high = 10.0**low, 10.0 ** (low + decades)
    ticks = round_ticks(low, high)
    assert len(ticks) >= 2
    assert (low <= ticks).all()
    assert (ticks <= high).all()
    assert (np.diff(np.log(ticks)) >= 0.249 * np.log(high / low)).all()
    assert all(len(f"{tick:.3e}".split("e")[0].rstrip("0")) <= 4 for tick in ticks)
