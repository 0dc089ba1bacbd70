"""Spectra by products alone against dense ones, and what theory makes of them."""

from __future__ import annotations

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.dynamics.learning_theory import learning_theory, theory_of_measure
from ntkpipe.dynamics.power_law import widest_power_law
from ntkpipe.dynamics.spectral_measure import dense_measure, lanczos_measure
from ntkpipe.dynamics.spectrum import Spectrum
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.solvers.spectrum import spectrum
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.storage.store import open_store

N, OUTPUTS = 400, 3


@pytest.fixture(scope="module")
def problem():
    """A matrix with eigenvalues 300 i^-1.5, and targets with components i^-0.8."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((N, N)))[0]
    values = 300.0 * np.arange(1, N + 1) ** -1.5
    along = np.arange(1, N + 1)[:, None] ** -0.8 * rng.choice([-1.0, 1.0], (N, OUTPUTS))
    return (vectors * values) @ vectors.T, vectors @ along, values, along


def spectrum_of(measure, ridges=(0.0, 0.1)):
    return Spectrum("ntk", N, measure, 1e-12, N * OUTPUTS, ridges, ridges)


@pytest.fixture(scope="module")
def both(problem):
    matrix, targets, _, _ = problem
    dense = dense_measure(matrix, targets)
    return spectrum_of(dense), spectrum_of(lanczos_measure(DenseOperator(matrix), targets, probes=8, top=20, rows=8))


def test_all_eigenvalues_and_energies_are_those_of_the_matrix(problem, both):
    _, _, values, along = problem
    dense, _ = both
    assert dense.is_dense
    np.testing.assert_allclose(dense.eigenvalues, values, rtol=1e-11)
    np.testing.assert_allclose(dense.label_energy, (along**2).sum(1) / (along**2).sum(), rtol=1e-8)
    np.testing.assert_allclose(dense.learning_times, N * OUTPUTS / values, rtol=1e-11)
    assert dense.effective_dimension(1)[0] == pytest.approx(np.sum(values / (values + 0.1)), rel=1e-11)


def test_products_alone_give_the_leading_part_and_sums_within_their_errors(problem, both):
    _, _, values, along = problem
    dense, large = both
    assert not large.is_dense
    assert len(large.eigenvalues) == 20
    np.testing.assert_allclose(large.eigenvalues, dense.eigenvalues[:20], rtol=1e-7)
    np.testing.assert_allclose(large.label_energy, dense.label_energy[:20], rtol=1e-5)
    assert float(large.measure.counts.sum()) == pytest.approx(N)
    value, error = large.effective_dimension(1)
    assert 0.0 < error < 5.0
    assert abs(value - dense.effective_dimension(1)[0]) < 4.0 * error
    assert large.alignment()[0] == pytest.approx(dense.alignment()[0], rel=1e-3)
    for mine, exact in zip(large.learning_curve(position=1), dense.learning_curve(position=1), strict=True):
        of_all = learning_theory(values / N, along / N**0.5, mine.n, ridge=0.1)
        left_over = (N * of_all.test_mse - mine.n * of_all.train_mse) / (N - mine.n)
        assert abs(mine.test_mse - left_over) < 4.0 * mine.test_mse_error + 1e-9
        assert mine.test_mse == pytest.approx(left_over, rel=0.05)
        assert mine.effective_dimension == pytest.approx(exact.effective_dimension, rel=0.01)
    edges, states, errors = large.density(12)
    assert states.sum() == pytest.approx(N, abs=1.0)
    counted = np.histogram(dense.measure.values, edges)[0]
    assert (np.abs(np.cumsum(states) - np.cumsum(counted)) < 5.0 * np.sqrt(np.cumsum(errors**2)) + 6.0).all()


def test_cross_validation_is_that_of_the_dense_inverse(problem, both):
    matrix, targets, _, _ = problem
    dense, large = both
    inverse = np.linalg.inv(matrix + 0.1 * np.eye(N))
    weights = inverse @ targets
    errors = (weights / np.diag(inverse)[:, None]) ** 2
    found = dense.cross_validated(1)
    assert found.gcv == pytest.approx(N * np.sum(weights**2) / OUTPUTS / np.trace(inverse) ** 2, rel=1e-9)
    assert found.leave_one_out == pytest.approx(errors.mean(), rel=1e-9)
    assert found.spread == pytest.approx(np.diag(inverse).std() / np.diag(inverse).mean(), rel=1e-6)
    sampled = large.cross_validated(1)
    assert sampled.rows == 8
    assert sampled.leave_one_out == pytest.approx(errors[large.measure.rows].mean(), rel=1e-6)
    assert sampled.gcv == pytest.approx(found.gcv, rel=0.05)
    # Without ridge products alone do not resolve the smallest eigenvalues, and say so.
    assert large.cross_validated(0).gcv is None
    assert dense.cross_validated(0).gcv is not None


def test_predictions_are_the_errors_of_random_halves_of_a_gaussian_problem():
    """Mean of measured errors over training sets drawn from one set of points, against the theory of its own Gram matrix."""
    rng = np.random.default_rng(1)
    points, size = 600, 120
    scales = np.arange(1, 301) ** -1.0
    features = rng.standard_normal((points, 300)) * scales
    targets = features @ rng.standard_normal((300, 2))
    matrix, ridge = features @ features.T, 0.5
    (made,) = Spectrum("ntk", points, dense_measure(matrix, targets), 1e-10, 1.0, (ridge,), (ridge,)).learning_curve(
        [size]
    )
    test, train = [], []
    for _ in range(12):
        order = rng.permutation(points)
        rows, rest = order[:size], order[size:]
        weights = np.linalg.solve(matrix[np.ix_(rows, rows)] + ridge * np.eye(size), targets[rows])
        test.append(np.mean((matrix[np.ix_(rest, rows)] @ weights - targets[rest]) ** 2))
        train.append(np.mean((ridge * weights) ** 2))
    assert made.test_mse == pytest.approx(np.mean(test), rel=0.06)
    assert made.train_mse == pytest.approx(np.mean(train), rel=0.15)


def test_counts_stand_for_as_many_equal_eigenvalues():
    values, counts = np.array([2.0, 0.5, 0.1]), np.array([1.0, 3.0, 20.0])
    power = np.array([1.0, 0.6, 0.4])
    each = np.repeat(values, counts.astype(int))
    coefficients = np.sqrt(np.repeat(power / counts, counts.astype(int)))
    for n, ridge in ((5, 0.0), (5, 0.3), (24, 0.0), (60, 0.0)):
        mine, expected = (
            theory_of_measure(values, counts, power, n, ridge),
            learning_theory(each, coefficients, n, ridge),
        )
        assert mine.kappa == pytest.approx(expected.kappa, rel=1e-9)
        assert mine.test_mse == pytest.approx(expected.test_mse, rel=1e-9)
        assert mine.learnability == pytest.approx(expected.learnability, rel=1e-9)


def test_a_power_law_is_found_on_its_range():
    x = np.arange(1, 2001.0)
    y = np.where(x < 10, 10.0**-1.3, np.where(x < 300, x**-1.3, 300.0**-1.3 * np.exp(-(x - 300) / 100)))
    found = widest_power_law(x, y)
    assert found is not None
    assert found.exponent == pytest.approx(1.3, abs=0.05)
    assert 4.0 < found.low < 12.0
    assert 250.0 < found.high < 400.0
    assert widest_power_law(x, np.exp(-x)) is None


def test_sizes_at_or_above_the_sample_are_refused(both):
    with pytest.raises(ConfigError, match=f"below the {N} points"):
        both[0].learning_curve([N])


def test_a_spectrum_by_products_goes_on_where_it_was_killed(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((260, 260)) * np.arange(1, 261) ** -0.7
    targets, settings = rng.standard_normal((260, 1)), {"probes": 4, "top": 20, "dense": 100}
    whole = spectrum(x @ x.T, targets, **settings)

    def dies(line: str, **facts: object) -> None:
        if " passes" in line and int(line.split(": ")[1].split()[0]) >= 6:
            raise KeyboardInterrupt

    place = Workspace(store=open_store(str(tmp_path)), tell=dies)
    with pytest.raises(KeyboardInterrupt):
        spectrum(x @ x.T, targets, workspace=place, **settings)
    assert list(place.store.list("spectrum/"))
    again = spectrum(x @ x.T, targets, workspace=Workspace(store=place.store), **settings)
    np.testing.assert_allclose(again.eigenvalues, whole.eigenvalues, rtol=1e-10)
    assert not list(place.store.list("spectrum/"))


@pytest.mark.parametrize("dense", [2000, 10])
def test_left_out_errors_count_targets_that_differ_between_equal_points(dense):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    x = np.concatenate([x, x[:100]])
    y = x[:, :1] + rng.normal(size=(300, 1))
    data = nk.Dataset(x, y, x[:2], y[:2], labels="regression")
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute()
    kernel = gram.train("nngp")
    found = nk.spectrum(kernel, data.targets, ridges=[0.1], dense=dense)
    inverse = np.linalg.inv(kernel.to_numpy() + 0.1 * kernel.diagonal().mean() * np.eye(300))
    left_out = (inverse @ data.targets)[:, 0] / np.diagonal(inverse)
    assert found.cross_validated().leave_one_out == pytest.approx(np.mean(left_out[found.measure.rows] ** 2), rel=1e-6)
    energy = np.sum(data.targets**2)
    assert np.sum(found.measure.power) == pytest.approx(energy, rel=1e-10)
