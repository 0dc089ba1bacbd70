from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.dynamics.filters import (
    DIVERGED,
    GradientDescent,
    GradientFlow,
    Momentum,
    absolute_ridge,
    make_filter,
    max_learning_rate,
)
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.eigh import null_cutoff

EPS = np.finfo(float).eps
FILTERS = [GradientFlow(20, 5, 0.7), GradientDescent(20, 5, 0.7), Momentum(20, 5, 0.7, 0.9), Momentum(20, 5, 0.7, 0.0)]
eigenvalues = st.floats(-14, 2).map(lambda e: 10.0**e)  # rate l / (n c) <= 0.7: stable
times = st.one_of(st.integers(0, 10**7).map(float), st.just(math.inf))


@pytest.mark.parametrize("f", FILTERS, ids=repr)
@settings(deadline=None, max_examples=60)
@given(lam=eigenvalues, t=times)
def test_weights_and_decay_agree(f, lam, t):
    phi, decay = float(f.weights(np.array([lam]), t)[0]), float(f.decay(np.array([lam]), t)[0])
    assert abs(1 - lam * phi - decay) <= 64 * EPS * (
        1 + math.sqrt(lam) * 1e3
    )  # phase of momentum: sqrt(l) tau until it has decayed
    if isinstance(f, Momentum) and f.momentum > 0:
        assert abs(decay) <= 1 + 4 * EPS
    else:
        assert -4 * EPS <= decay <= 1 + 4 * EPS or isinstance(f, Momentum)


@pytest.mark.parametrize("f", FILTERS[:2], ids=repr)
@settings(deadline=None, max_examples=60)
@given(lam=eigenvalues, t=st.integers(0, 10**6), more=st.integers(1, 10**6))
def test_weights_grow_with_time_and_shrink_with_the_eigenvalue(f, lam, t, more):
    early, late = (float(f.weights(np.array([lam]), s)[0]) for s in (t, t + more))
    assert early <= late * (1 + 8 * EPS)
    assert late <= 1 / lam * (1 + 8 * EPS)
    assert float(f.weights(np.array([1.1 * lam]), t)[0]) <= early * (1 + 8 * EPS)


@pytest.mark.parametrize("f", FILTERS, ids=repr)
@pytest.mark.parametrize("t", [0, 1, 7, 100, 10_000])
def test_weights_are_continuous_at_zero(f, t):
    limit = float(f.weights(np.array([0.0]), t)[0])
    assert limit == pytest.approx(f.scaled_time(t), rel=8 * EPS)
    for lam in (1e-300, 1e-30, 1e-20):
        # phi(l) = limit (1 - O(l limit)).
        assert float(f.weights(np.array([lam]), t)[0]) == pytest.approx(limit, rel=64 * EPS + 2 * lam * limit)
    assert float(f.weights(np.array([-1e-18]), t)[0]) == limit


@pytest.mark.parametrize("f", FILTERS, ids=repr)
def test_late_times_approach_the_limit(f):
    lam = np.geomspace(1e-1, 100, 30)
    np.testing.assert_allclose(f.weights(lam, 1e6), f.weights(lam, math.inf), rtol=1e-9)
    np.testing.assert_array_equal(f.weights(lam, math.inf), 1 / lam)
    assert not f.decay(lam, math.inf).any()


@pytest.mark.parametrize("f", FILTERS, ids=repr)
def test_null_eigenvalues_stay_finite_and_are_counted(f):
    lam = np.array([-1e-13, 0.0, 1e-14, 1.0])
    cutoff = null_cutoff(100, 1.0)
    late = f.weights(lam, math.inf, cutoff=cutoff)
    np.testing.assert_array_equal(late, [0, 0, 0, 1])
    np.testing.assert_array_equal(f.decay(lam, math.inf, cutoff=cutoff), [1, 1, 1, 0])
    assert f.unlearnt(lam, math.inf, cutoff=cutoff).sum() == 3
    assert not f.unlearnt(lam, 10, cutoff=cutoff).any()
    assert (f.weights(lam, 10, cutoff=cutoff)[:3] > 0).all()
    assert f.unlearnt(lam, 1e18, cutoff=cutoff).sum() == 3


def test_a_flow_whose_exponent_overflows_has_reached_the_end():
    eigenvalues = np.array([0.0, 1e-300, 1e20, 1e200])
    found = GradientFlow(1, 1).weights(eigenvalues, 1e299)
    np.testing.assert_allclose(found, [1e299, -math.expm1(-0.1) * 1e300, 1e-20, 1e-200], rtol=4 * np.finfo(float).eps)
    np.testing.assert_allclose(GradientFlow(1, 1).decay(eigenvalues, 1e299)[2:], 0.0, rtol=0, atol=0)


def test_flow_keeps_relative_accuracy():
    f = GradientFlow(3, 2, 1.0)
    lam = np.geomspace(1e-12, 1e2, 200)
    s = f.scaled_time(10)
    x = (lam * s).astype(np.longdouble)
    exact = -np.expm1(-x) / lam
    np.testing.assert_allclose(f.weights(lam, 10), exact.astype(float), rtol=8 * EPS)


@pytest.mark.parametrize("t", [0, 1, 2, 5, 11])
def test_gradient_descent_is_the_recursion(t):
    f = GradientDescent(4, 2, 1.0)
    lam = np.array([0.0, 1e-9, 0.3, 7.9, 8.0, 8.5, 12.0, 15.9, 16.5, 40.0])
    u = np.zeros_like(lam)
    for _ in range(t):
        u += (1 - lam * u) / 8
    np.testing.assert_allclose(f.weights(lam, t), u, rtol=1e-12)
    np.testing.assert_allclose(f.decay(lam, t), 1 - lam * u, rtol=1e-10, atol=1e-12)


def test_gradient_descent_reports_divergence_and_stays_finite():
    f = GradientDescent(4, 2, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (10**3, 10**3 + 1, 10**9, math.inf):
            value = f.weights(np.array([1.0, 17.0, 1e6]), t)
            assert np.isfinite(value).all()
            assert np.abs(value).max() <= DIVERGED
            assert np.isfinite(f.decay(np.array([1.0, 17.0, 1e6]), t)).all()
    assert f.instability(15.9) is None
    message = f.instability(17.0)
    assert message is not None
    assert "predict.learning_rate=1" in message
    assert "so do these predictions" in message
    assert "0.941176" in message


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("rate", [0.01, 1.0, 5.0])
def test_momentum_solves_its_equation(momentum, rate):
    f = Momentum(5, 2, rate, momentum)
    critical = f.gamma**2 * 10
    for lam in (
        1e-6 * critical,
        0.5 * critical,
        critical * (1 - 1e-9),
        critical,
        critical * (1 + 1e-9),
        1.5 * critical,
        50 * critical,
    ):
        for t in (1e-3, 0.1, 1.0, 30.0):
            tau = f.tau(t)

            def equation(_, state, lam=lam):
                u, v, h, w = state
                return [v, -2 * f.gamma * v + (1 - lam * u) / 10, w, -2 * f.gamma * w - lam / 10 * h]

            end = scipy.integrate.solve_ivp(
                equation, (0, tau), [0, 0, 1, 0], rtol=1e-12, atol=1e-16, method="DOP853"
            ).y[:, -1]
            assert float(f.weights(np.array([lam]), t)[0]) == pytest.approx(end[0], rel=1e-8, abs=1e-13)
            assert float(f.decay(np.array([lam]), t)[0]) == pytest.approx(end[2], rel=1e-8, abs=1e-10)


def test_momentum_series_and_closed_form_meet():
    # Both sides of the switch at (gamma + sqrt(a)) tau = 1/2 and of that at kappa = gamma / 10.
    f = Momentum(1, 1, 1.0, 0.9)
    for lam in np.geomspace(1e-8, 10, 40):
        edge = 0.5 / (f.gamma + math.sqrt(lam))
        low, high = (float(f.weights(np.array([lam]), edge * (1 + d))[0]) for d in (-1e-10, 1e-10))
        assert high == pytest.approx(low, rel=1e-8)
    edge = f.gamma**2 * (1 - 0.01)
    low, high = f.weights(np.array([edge * (1 - 1e-10), edge * (1 + 1e-10)]), 50.0)
    assert high == pytest.approx(low, rel=1e-8)


def test_largest_stable_rate():
    assert max_learning_rate(4.0, 10, 2) == 10.0
    assert max_learning_rate(4.0, 10, 2, momentum=0.9) == pytest.approx(19.0)
    assert max_learning_rate(0.0, 10, 2) == math.inf
    assert Momentum(10, 2, 1.0, 0.5).max_learning_rate(4.0) == pytest.approx(15.0)
    assert "do not" in str(GradientFlow(10, 2, 11.0).instability(4.0))


def test_refusals_name_the_setting():
    with pytest.raises(ConfigError, match=r"predict\.dynamics='sgd'"):
        make_filter("sgd", 2, 2)
    with pytest.raises(ConfigError, match="whole steps"):
        GradientDescent(2, 2).weights(np.ones(1), 1.5)
    for f in FILTERS:
        for t in (-1.0, math.nan):
            with pytest.raises(ConfigError, match=r"predict\.times"):
                f.weights(np.ones(1), t)
    with pytest.raises(ConfigError, match=r"predict\.momentum=1"):
        Momentum(2, 2, 1.0, 1.0)
    with pytest.raises(ConfigError, match=r"predict\.learning_rate=0"):
        GradientFlow(2, 2, 0.0)
    with pytest.raises(ConfigError, match=r"predict\.ridges=-1"):
        absolute_ridge(-1.0, np.ones(2))
    with pytest.raises(ConfigError, match=r"predict\.ridge_scale='both'"):
        absolute_ridge(1.0, np.ones(2), "both")


def test_ridge_scales():
    assert absolute_ridge(0.1, np.array([1.0, 3.0])) == pytest.approx(0.2)
    assert absolute_ridge(0.1, np.array([1.0, 3.0]), "absolute") == 0.1


@pytest.mark.parametrize("t", [1e150, 1e300, 1e308])
@pytest.mark.parametrize(
    ("f", "largest"),
    [
        (GradientFlow(30, 2, 1.0), 1e9),
        (GradientFlow(30, 2, 1e300), 1e9),
        (GradientDescent(30, 2, 1.0), 10.0),
        (Momentum(30, 2, 1.0, 0.9), 1e9),
        (Momentum(30, 2, 1e-6, 0.5), 1e30),
    ],
)
def test_the_largest_times_are_the_end_of_training(f, largest, t):
    lam = np.array([1e-3, 1.0, largest])
    np.testing.assert_allclose(f.weights(lam, t), 1 / lam, rtol=4 * EPS)
    np.testing.assert_array_equal(f.decay(lam, t), np.zeros(3))
