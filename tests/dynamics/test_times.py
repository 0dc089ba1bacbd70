from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
