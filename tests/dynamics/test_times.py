from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.dynamics.bounds import time_grid, times_between
from ntkpipe.dynamics.filters import GradientDescent, GradientFlow, Momentum
from ntkpipe.dynamics.times import default_times


def test_the_grid_of_a_real_kernel():
    # 50,000 images and 10 classes, eigenvalues 0.126 to 1.2e5.
    times = default_times(GradientFlow(50_000, 10, 1.0), 1.2e5, 0.126)
    assert times == (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, math.inf)


@settings(deadline=None, max_examples=100)
@given(
    largest=st.floats(1e-6, 1e6),
    condition=st.floats(0, 12).map(lambda e: 10.0**e),
    rate=st.floats(1e-3, 1e3),
    kind=st.sampled_from([GradientFlow, GradientDescent, Momentum]),
)
def test_covers_all_of_training_in_increasing_order(largest, condition, rate, kind):
    f = kind(100, 10, rate)
    times = default_times(f, largest, largest / condition)
    assert times[-1] == math.inf
    assert list(times) == sorted(set(times))
    assert len(times) <= 40
    unit = 1000 / rate
    speedup = 1 / (1 - f.momentum) if isinstance(f, Momentum) else 1
    assert times[0] <= max(unit / largest, 1.0) * (1 + 1e-9)
    assert times[-2] >= unit / (largest / condition) / speedup * (1 - 1e-9)
    for t in times:
        f.check_time(t)


@pytest.mark.parametrize("largest", [0.0, math.nan, math.inf])
def test_no_spectrum_no_finite_times(largest):
    assert default_times(GradientFlow(2, 2), largest, 0.0) == (math.inf,)


@pytest.mark.parametrize("kind", [GradientFlow, GradientDescent, Momentum])
@pytest.mark.parametrize("rate", [1e-300, 1e300])
@pytest.mark.parametrize("largest", [1e-30, 1.0, 1e300])
def test_extreme_learning_rates_have_times_too(kind, rate, largest):
    times = default_times(kind(30, 2, rate), largest, 0.0)
    assert times[-1] == math.inf
    assert all(0 < t < math.inf for t in times[:-1])
    assert list(times) == sorted(set(times))


@pytest.mark.parametrize("kind", [GradientFlow, GradientDescent, Momentum])
@pytest.mark.parametrize("rate", [1e-300, 1.0, 1e300])
def test_residuals_are_looked_at_up_to_the_largest_floats(kind, rate):
    f, last = kind(30, 2, rate), 1e308
    grid = time_grid(f, [last, math.inf], 1e9)
    assert grid[-1] == last
    assert all(math.isfinite(t) for t in grid)
    assert list(grid) == sorted(set(grid))


def test_times_between_are_those_of_a_geometric_grid():
    np.testing.assert_allclose(times_between(3e-4, 2e7), np.geomspace(3e-4, 2e7, 89), rtol=1e-12)
    np.testing.assert_array_equal(times_between(5.0, 5.0), [5.0, 5.0])
    assert len(times_between(0.0, 1e308)) == 2 + math.ceil(8 * (308 - math.log10(np.finfo(float).tiny)))
