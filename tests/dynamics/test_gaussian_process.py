from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.filters import GradientFlow, Momentum, absolute_ridge, make_filter, max_learning_rate
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.eigh import Eigensystem

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "preds_public.npz"
RIDGE = 1e-4
# Float64 rounding amplified by the condition number, 2e4 here: 1e-11 is generous and far below the 1e-8 asked for.
CLOSE = {"rtol": 0, "atol": 1e-11}


@cache
def peer():
    arrays = dict(np.load(REFERENCE, allow_pickle=False))
    n = len(arrays["y_train"])

    def symmetric(upper):
        full = np.zeros((n, n))
        full[np.triu_indices(n)] = upper
        return full + np.triu(full, 1).T

    kernels = {k: symmetric(arrays[f"k_train_train_triu_{k}"]) for k in ("nngp", "ntk")}
    return SimpleNamespace(
        arrays=arrays,
        kernels=kernels,
        systems={k: Eigensystem.of(v) for k, v in kernels.items()},
        ridges={k: absolute_ridge(RIDGE, np.diagonal(v)) for k, v in kernels.items()},
        flow=GradientFlow(n, arrays["y_train"].shape[1], 1.0),
        times=[*arrays["t"], math.inf],
    )


def train_means(kernel, targets, f, times, ridge):
    """Outputs on the training images, `A phi_t(A) targets` with the ridge in `A`."""
    p = peer()
    a = p.kernels[kernel] + ridge * np.eye(len(targets))
    return gp.means(p.systems[kernel], a, targets, f, times, [ridge])


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_means_equal_the_peers(kernel):
    p, a = peer(), peer().arrays
    made = gp.means(
        p.systems[kernel], a[f"k_test_train_{kernel}"], a["y_train"], p.flow, p.times, [p.ridges[kernel], 0.05]
    )
    np.testing.assert_allclose(made[:5, 0], a[f"ens_{kernel}_mean_t"], **CLOSE)
    np.testing.assert_allclose(made[5, 0], a[f"ens_{kernel}_mean_inf"], **CLOSE)
    np.testing.assert_allclose(made[5, 0], a[f"gp_{kernel}_mean"], **CLOSE)
    np.testing.assert_allclose(made[5, 1], a[f"ens_absreg_{kernel}_mean_inf"], **CLOSE)
    np.testing.assert_allclose(made[3, 1], a[f"ens_absreg_{kernel}_mean_t3"], **CLOSE)
    train = train_means(kernel, a["y_train"], p.flow, p.times[1:4], p.ridges[kernel])
    np.testing.assert_allclose(train[:, 0], a[f"ens_{kernel}_train_mean_t"], **CLOSE)


def covariances(kernel, time, *, full):
    p, a = peer(), peer().arrays
    own = a["k_test_test_nngp"] if full else np.diagonal(a["k_test_test_nngp"])
    if kernel == "nngp":
        return gp.nngp_covariance(p.systems["nngp"], a["k_test_train_nngp"], own, p.flow, time, p.ridges["nngp"])
    return gp.ntk_covariance(
        p.systems["ntk"],
        a["k_test_train_ntk"],
        p.kernels["nngp"],
        a["k_test_train_nngp"],
        own,
        p.flow,
        time,
        p.ridges["ntk"],
    )


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
@pytest.mark.parametrize("index", range(6))
def test_covariances_equal_the_peers(kernel, index):
    p, a = peer(), peer().arrays
    expected = a[f"ens_{kernel}_cov_inf"] if index == 5 else a[f"ens_{kernel}_cov_t"][index]
    np.testing.assert_allclose(covariances(kernel, p.times[index], full=True), expected, **CLOSE)
    np.testing.assert_allclose(covariances(kernel, p.times[index], full=False), np.diagonal(expected), **CLOSE)
    if index == 5:
        np.testing.assert_allclose(expected, a[f"gp_{kernel}_cov"], **CLOSE)


def test_posterior_with_the_ntk_as_covariance_equals_the_peers():
    p, a = peer(), peer().arrays
    ridge, cross = p.ridges["ntk"], a["k_test_train_ntk"]
    mean = gp.means(p.systems["ntk"], cross, a["y_train"], p.flow, [math.inf], [ridge])[0, 0]
    np.testing.assert_allclose(mean, a["gp_ntkgp_mean"], **CLOSE)
    made = gp.nngp_covariance(p.systems["ntk"], cross, a["k_test_test_ntk"], p.flow, math.inf, ridge)
    np.testing.assert_allclose(made, a["gp_ntkgp_cov"], **CLOSE)


def test_a_network_that_does_not_start_at_zero():
    p, a = peer(), peer().arrays
    start, start_test, ridge = a["fx_train_0"], a["fx_test_0"], p.ridges["ntk"]
    made = (
        gp.means(p.systems["ntk"], a["k_test_train_ntk"], a["y_train"] - start, p.flow, p.times, [ridge])[:, 0]
        + start_test
    )
    np.testing.assert_allclose(made[:5], a["gdmse_test_t"], **CLOSE)
    np.testing.assert_allclose(made[5], a["gdmse_test_inf"], **CLOSE)
    made = train_means("ntk", a["y_train"] - start, p.flow, p.times, ridge)[:, 0] + start
    np.testing.assert_allclose(made[:5], a["gdmse_train_t"], **CLOSE)
    np.testing.assert_allclose(made[5], a["gdmse_train_inf"], **CLOSE)


# The peer integrated the ODE numerically: its values carry its own 1e-7; the closed form is exact.
@pytest.mark.parametrize(("name", "atol"), [("momentum_closed", 1e-11), ("ode_momentum", 2e-7)])
def test_momentum_equals_the_peers(name, atol):
    p, a = peer(), peer().arrays
    n, c = a["y_train"].shape
    f = Momentum(n, c, 1.0, 0.9)
    targets = a["y_train"] - a["fx_train_0"]
    test = (
        gp.means(p.systems["ntk"], a["k_test_train_ntk"], targets, f, a["t_momentum"].tolist(), [0.0])[:, 0]
        + a["fx_test_0"]
    )
    np.testing.assert_allclose(test, a[f"{name}_test_t"], rtol=0, atol=atol)
    train = train_means("ntk", targets, f, a["t_momentum"].tolist(), 0.0)[:, 0] + a["fx_train_0"]
    np.testing.assert_allclose(train, a[f"{name}_train_t"], rtol=0, atol=atol)


def test_largest_stable_rate_equals_the_peers():
    p, a = peer(), peer().arrays
    n, c = a["y_train"].shape
    largest = float(p.systems["ntk"].values[-1])
    made = [max_learning_rate(largest, n, c), max_learning_rate(largest, n, c, momentum=0.9)]
    np.testing.assert_allclose(made, a["max_learning_rate"], rtol=1e-12)


@pytest.mark.parametrize("dynamics", ["gradient_flow", "gradient_descent", "momentum"])
def test_a_singular_kernel_gives_finite_values(dynamics, make_problem):
    p = make_problem(np.concatenate([np.geomspace(1, 30, 20), np.zeros(10)]))
    system = Eigensystem.of(p.train)
    f = make_filter(dynamics, p.n, p.c)
    times = [0, 1, 100, 1e9, 1e18, math.inf]
    mean = gp.means(system, p.test_train, p.targets, f, times, [0.0])
    assert np.isfinite(mean).all()
    # Late and converged agree: null directions reach the test images by rounding alone, times s while they are
    # followed.
    s = f.scaled_time(1e9)
    size = np.sqrt(p.diagonal.max() * system.values[-1])
    np.testing.assert_allclose(mean[3], mean[5], atol=8 * np.finfo(float).eps * size * s * np.linalg.norm(p.targets))
    np.testing.assert_allclose(mean[4], mean[5], atol=1e-13)
    expected = p.test_train @ np.linalg.pinv(p.train, rcond=1e-12) @ p.targets
    np.testing.assert_allclose(mean[5, 0], expected, atol=1e-9)
    assert gp.count_unlearnt(system, f, times, 0.0) == 10
    assert gp.count_unlearnt(system, f, times, 1e-3) == 0
    variance = gp.nngp_covariance(system, p.test_train, p.diagonal, f, math.inf, 0.0)
    assert np.isfinite(variance).all()
    assert (variance >= 0).all()


def test_variances_shrink_with_time_and_start_at_the_prior(make_problem):
    p = make_problem(np.geomspace(1e-3, 10, 30))
    system, f = Eigensystem.of(p.train), GradientFlow(p.n, p.c, 1.0)
    variances = [
        gp.nngp_covariance(system, p.test_train, p.diagonal, f, t, 0.1) for t in (0, 1, 10, 1e3, 1e6, math.inf)
    ]
    np.testing.assert_allclose(variances[0], p.diagonal, rtol=1e-13)
    for early, late in itertools.pairwise(variances):
        assert (late <= early + 1e-12).all()


@pytest.mark.parametrize("full", [True, False])
def test_a_variance_below_zero_beyond_rounding_is_refused_and_rounding_is_cut(make_problem, full):
    p = make_problem(np.geomspace(1e-3, 10, 30))
    system, f = Eigensystem.of(p.train), GradientFlow(p.n, p.c, 1.0)
    exact = gp.nngp_covariance(system, p.test_train, p.diagonal, f, math.inf, 0.0)
    explained = p.diagonal - exact  # this much of the prior, and nothing is left
    for factor, refused in ((1.0, False), (1 - 1e-15, False), (0.99, True)):
        prior = factor * explained
        own = np.diag(prior) if full else prior
        if refused:
            with pytest.raises(NumericalError, match="variance of test point"):
                gp.nngp_covariance(system, p.test_train, own, f, math.inf, 0.0)
            continue
        found = gp.nngp_covariance(system, p.test_train, own, f, math.inf, 0.0)
        left = found.diagonal() if full else found
        assert (left >= 0).all()
        np.testing.assert_allclose(left, 0.0, atol=1e-9)


def test_a_prior_that_does_not_belong_to_the_kernels_is_refused_for_a_trained_network_too(make_problem):
    p = make_problem(np.geomspace(1e-3, 10, 30))
    system, f = Eigensystem.of(p.train), GradientFlow(p.n, p.c, 1.0)
    with pytest.raises(NumericalError, match="positive semidefinite"):
        gp.ntk_covariance(system, p.test_train, p.train, p.test_train, -p.diagonal, f, math.inf, 0.0)
