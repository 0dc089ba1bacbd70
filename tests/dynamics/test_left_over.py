"""Errors on left-over points, against random training sets and against leave-one-out."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.dynamics.left_over import left_over_error
from ntkpipe.dynamics.spectral_measure import dense_measure
from ntkpipe.dynamics.spectrum import Spectrum

M, RIDGE = 120, 0.02


@pytest.fixture(scope="module")
def problem():
    """Points whose norms vary by a factor of three, as images do."""
    rng = np.random.default_rng(0)
    norms = np.exp(rng.uniform(-0.55, 0.55, (M, 1)))
    x = norms * rng.standard_normal((M, 8))
    cosine = np.clip(x @ x.T / np.outer(*2 * [np.linalg.norm(x, axis=1)]), -1, 1)
    kernel = x @ x.T * (1 - np.arccos(cosine) / np.pi) / 8 + 0.1
    targets = np.stack([np.sign(x[:, 0] * x[:, 1]), np.sin(x[:, 2])], axis=1)
    return kernel + RIDGE * np.eye(M), targets


@pytest.mark.parametrize("n", [8, 30, 60, 100])
def test_it_is_the_mean_over_random_training_sets(problem, n):
    """Three standard errors of 200 sets, and 2% for the theory itself, which is exact for many points only."""
    matrix, targets = problem
    rng = np.random.default_rng(n)
    found = []
    for _ in range(200):
        order = rng.permutation(M)
        rows, rest = order[:n], order[n:]
        weights = np.linalg.solve(matrix[np.ix_(rows, rows)], targets[rows])
        found.append(np.mean((matrix[np.ix_(rest, rows)] @ weights - targets[rest]) ** 2))
    made = left_over_error(matrix, targets, n, 0.1)
    assert made is not None
    assert abs(made / np.mean(found) - 1) < 3 * np.std(found) / 14 / np.mean(found) + 0.02


def test_with_one_point_left_it_is_leave_one_out(problem):
    matrix, targets = problem
    inverse = np.linalg.inv(matrix)
    exact = np.mean((inverse @ targets / np.diag(inverse)[:, None]) ** 2)
    nearly = left_over_error(matrix, targets, M - 1, 1e-3)
    assert nearly == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("start", [1e-6, 1.0, 1e4])
def test_the_guess_does_not_matter(problem, start):
    matrix, targets = problem
    assert left_over_error(matrix, targets, 40, start) == pytest.approx(
        left_over_error(matrix, targets, 40, 0.1), rel=1e-6
    )


def test_a_singular_matrix_has_no_answer():
    x = np.random.default_rng(0).standard_normal((20, 3))
    assert left_over_error(x @ x.T, x, 10, 1.0) is None


def test_a_dense_spectrum_takes_it(problem):
    matrix, targets = problem
    kernel = matrix - RIDGE * np.eye(M)
    spectrum = Spectrum("ntk", M, dense_measure(kernel, targets), 1e-12, 1.0, (0.0, RIDGE), (0.0, RIDGE))
    (made,) = spectrum.learning_curve([60], 1)
    assert made.test_mse == pytest.approx(left_over_error(matrix, targets, 60, 0.1), rel=1e-6)
    (ridgeless,) = spectrum.learning_curve([60], 0)
    assert ridgeless.test_mse == pytest.approx(left_over_error(kernel, targets, 60, 0.1), rel=1e-5)
