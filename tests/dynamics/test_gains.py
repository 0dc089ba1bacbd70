from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate

from ntkpipe.dynamics.filters import GradientDescent, GradientFlow, Momentum
from ntkpipe.dynamics.gains import final_gain, momentum_gains, time_gain

L = np.geomspace(1e-6, 10, 1500)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("t", [0.5, 10.0, 1000.0])
def test_flow_gain_is_the_integral_of_the_largest_propagator(ridge, t):
    f = GradientFlow(1, 1, 1.0)
    x = np.concatenate([[0], np.geomspace(t * 1e-6, t, 3000)])
    # Over all l >= 0 the supremum is 1 / sqrt(2 e x), integrable at 0.
    integrand = np.array([np.max(np.sqrt(L) * np.exp(-(L + ridge) * s)) for s in x])
    gain = time_gain(f, t, ridge, 0.0, 10.0)
    assert gain.kind == "rigorous"
    assert np.trapezoid(integrand, x) <= gain.value * (1 + 1e-3)
    if ridge == 0:
        assert gain.value == pytest.approx(math.sqrt(2 * t / math.e))


def test_an_estimate_is_used_only_where_it_is_much_smaller():
    f = GradientFlow(1, 1, 1.0)
    assert time_gain(f, 10.0, 0.0, 0.1, 10.0).kind == "rigorous"
    late = time_gain(f, 1e6, 0.0, 0.1, 10.0)
    assert late == (2 / math.sqrt(math.e * 0.1), "estimate")
    assert final_gain(0.0, 0.1) == (1 / math.sqrt(0.1), "estimate")
    assert final_gain(0.04, 0.1) == (2.5, "rigorous")
    assert final_gain(0.0, 0.0).value == math.inf


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.15, 0.19])
@pytest.mark.parametrize("t", [1, 2, 7, 400])
def test_descent_gain_bounds_the_sum_of_propagators(rate, t):
    lam = np.concatenate([L, np.linspace(5, 10, 2000)])
    total = sum(np.max(rate * np.sqrt(lam) * np.abs(1 - rate * lam) ** j) for j in range(t))
    gain = time_gain(GradientDescent(1, 1, rate), t, 0.0, 0.0, 10.0)
    assert total <= gain.value * (1 + 1e-12)
    assert gain.value <= 4 * total


def test_diverging_descent_has_no_bound():
    assert time_gain(GradientDescent(1, 1, 1.0), 1e6, 0.0, 0.1, 10.0) == (math.inf, "estimate")
    assert time_gain(GradientDescent(1, 1, 1.0), 0, 0.0, 0.1, 10.0).value == 0


@pytest.mark.parametrize("rate", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("smallest", [0.0, 1e-4, 0.3])
def test_momentum_gain_bounds_the_integral_of_impulse_responses(rate, smallest):
    f = Momentum(1, 1, rate, 0.9)
    gamma = f.gamma
    a = np.geomspace(max(smallest, 1e-7), 100, 1500)
    kappa = np.sqrt(np.abs(gamma**2 - a))
    for t in (0.3, 10.0, 1000.0):
        x = np.linspace(0, f.tau(t), 2000)

        def largest(s):
            over = (np.exp(-(a / (gamma + kappa)) * s) - np.exp(-(gamma + kappa) * s)) / (2 * kappa)
            under = np.exp(-gamma * s) * np.sin(kappa * s) / kappa
            return np.max(np.sqrt(a) * np.abs(np.where(a < gamma**2, over, under)))

        integral = scipy.integrate.trapezoid([largest(s) for s in x], x)
        gain = float(momentum_gains(f, np.array([t]), smallest)[0])
        assert integral <= gain * 1.01
        assert gain <= 8 * integral
