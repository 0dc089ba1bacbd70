from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.dynamics.learning_theory import learning_theory
from ntkpipe.errors import ConfigError


def test_a_power_law_gives_the_reference_values():
    i = np.arange(1, 3001)
    made = learning_theory(i**-2.0, i**-1.5, 30)
    # Found independently by bisection in 50 digits; ten are kept.
    assert made.kappa == pytest.approx(0.0026305071, rel=2e-8)
    assert pytest.approx(1.9754186679, rel=1e-10) == made.E0
    assert made.test_mse == pytest.approx(0.0025969270, rel=2e-8)
    assert made.train_mse == 0.0
    assert made.effective_dimension == pytest.approx(30.0, rel=1e-13)


@pytest.mark.parametrize(("modes", "n", "ridge", "noise"), [(40, 15, 0.0, 0.3), (40, 15, 2.0, 0.0), (12, 30, 1.5, 0.7)])
def test_equal_eigenvalues_have_a_closed_form(modes, n, ridge, noise):
    # With l_i = 1, kappa is the root of n kappa^2 + (n - modes - ridge) kappa - ridge.
    b = n - modes - ridge
    kappa = (-b + math.sqrt(b * b + 4 * n * ridge)) / (2 * n)
    v = np.random.default_rng(0).normal(size=modes)
    made = learning_theory(np.ones(modes), v, n, ridge=ridge, noise=noise)
    learnt = 1 / (1 + kappa)
    overfitting = n / (n - modes * learnt**2)
    test = overfitting * ((1 - learnt) ** 2 * float(v @ v) + noise)
    assert made.kappa == pytest.approx(kappa, rel=1e-12)
    assert pytest.approx(overfitting, rel=1e-12) == made.E0
    assert made.test_mse == pytest.approx(test, rel=1e-12)
    assert made.train_mse == pytest.approx((ridge / (n * kappa)) ** 2 * test, rel=1e-11, abs=1e-15)
    assert made.learnability == pytest.approx(learnt, rel=1e-12)


def test_more_points_than_modes_is_least_squares():
    # Expected errors of least squares in p dimensions, to leading order in n: s2 n / (n - p) and s2 (1 - p / n).
    made = learning_theory(np.array([3.0, 1.0, 0.2]), np.array([1.0, -2.0, 0.5]), 12, noise=0.4)
    assert (made.kappa, made.learnability, made.effective_dimension) == (0.0, 1.0, 3.0)
    assert made.test_mse == pytest.approx(0.4 * 12 / 9, rel=1e-14)
    assert made.train_mse == pytest.approx(0.4 * (1 - 3 / 12), rel=1e-14)
    assert math.isinf(learning_theory(np.ones(3), np.ones(3), 3, noise=0.1).test_mse)
    limit = learning_theory(np.array([3.0, 1.0, 0.2]), np.array([1.0, -2.0, 0.5]), 12, ridge=1e-9, noise=0.4)
    assert limit.train_mse == pytest.approx(made.train_mse, rel=1e-7)


@pytest.mark.parametrize(("ridge", "noise"), [(0.0, 0.0), (0.5, 0.05)])
def test_gaussian_features_have_the_predicted_errors(ridge, noise):
    rng = np.random.default_rng(3)
    modes, n, draws = 300, 60, 150
    spectrum = np.arange(1, modes + 1) ** -1.5
    v = rng.normal(size=modes) * np.arange(1, modes + 1) ** -1.0
    tests, trains = [], []
    for _ in range(draws):
        features = rng.normal(size=(n, modes))
        y = features @ v + math.sqrt(noise) * rng.normal(size=n)
        scaled = features * spectrum
        kernel = scaled @ features.T
        alpha = np.linalg.solve(kernel + ridge * np.eye(n), y)
        error = v - scaled.T @ alpha  # Gaussian features: the expectation over new points is a norm
        tests.append(float(error @ error) + noise)
        trains.append(float(np.mean((ridge * alpha) ** 2)))
    made = learning_theory(spectrum, v, n, ridge=ridge, noise=noise)
    for found, predicted in ((tests, made.test_mse), (trains, made.train_mse)):
        deviation = np.std(found) / math.sqrt(draws)
        # The theory's own error is of order 1 / n in relative terms.
        assert abs(np.mean(found) - predicted) <= 4 * deviation + predicted / n


def test_outputs_are_averaged_and_learnability_adds_up_to_the_effective_dimension():
    spectrum = np.arange(1, 51) ** -1.2
    rng = np.random.default_rng(5)
    v = rng.normal(size=(50, 3))
    together = learning_theory(spectrum, v, 20, ridge=0.1, noise=0.2)
    alone = [learning_theory(spectrum, v[:, j], 20, ridge=0.1, noise=0.2) for j in range(3)]
    assert together.test_mse == pytest.approx(np.mean([one.test_mse for one in alone]), rel=1e-12)
    # The conservation law of arXiv:2110.03922: learnabilities of all modes add up to n - ridge / kappa.
    each = [learning_theory(spectrum, np.eye(50)[i], 20, ridge=0.1).learnability for i in range(50)]
    assert sum(each) == pytest.approx(20 - 0.1 / together.kappa, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1.0, -0.1], [1.0, 1.0], 5), "smallest eigenvalue is -0.1"),
        (([1.0, 0.1], [1.0], 5), "must be (modes,)"),
        (([1.0, 0.1], [1.0, math.nan], 5), "must be finite"),
        (([1.0, 0.1], [1.0, 1.0], 0), "n=0 must be a finite number, above 0"),
        (([1.0], [1.0], 5, -1.0), "ridge=-1.0 must be"),
        (([1.0], [1.0], 5, 0.0, -1.0), "noise=-1.0 must be"),
    ],
)
def test_what_is_refused(arguments, text):
    with pytest.raises(ConfigError) as caught:
        learning_theory(*(np.array(a) if isinstance(a, list) else a for a in arguments))
    assert text in str(caught.value)
