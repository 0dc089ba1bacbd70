from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.bounds import error_budget
from ntkpipe.dynamics.direct_bounds import direct_budget
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import (
    KrylovSolution,
    combined_weights,
    means_from_basis,
    means_from_weights,
    prefers_basis,
)
from ntkpipe.dynamics.sampling import (
    RowSample,
    TestErrors,
    independent_share,
    largest_of_all,
    matrix_noise,
    maximum_safety,
    norm_safety,
    sample_indices,
)
from ntkpipe.dynamics.stopping import stop_rule
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.linalg.lanczos import block_lanczos as package_lanczos
from ntkpipe.linalg.operator import DenseOperator

N = 160
DYNAMICS = ["gradient_flow", "gradient_descent", "momentum"]
TIMES = [0, 1, 10, 100, 1e3, 1e4, 1e6, math.inf]
# The bound may not be looser than this where the error is above the floor of rounding.
LOOSE = 1e4


def spectrum(name, condition):
    if name == "logarithmic":
        return np.geomspace(100, 100 / condition, N)
    if name == "power":
        return 100 * np.maximum(np.arange(1.0, N + 1) ** -2, 1 / condition)
    return np.where(np.arange(N) < N // 2, 100.0, 100 / condition) * np.linspace(1, 1.2, N)


def problem_and_reference(make_problem, f_of, eigenvalues, seed=0):
    p = make_problem(eigenvalues, seed=seed)
    scale = np.trace(p.train) / p.n
    ridges = [0.0, 1e-6 * scale, 1e-2 * scale]
    f = f_of(p)
    return p, f, ridges, gp.means(Eigensystem.of(p.train), p.test_train, p.targets, f, TIMES, ridges)


def assert_bounds(budget, p, means, exact, floor):
    """The bound holds for every entry, and is not absurd wherever the largest error of a time and ridge is above the
    floor.
    """
    error, bound = np.abs(means - exact), budget.bound(p.diagonal)
    assert bound.shape == error.shape
    assert (error <= bound).all(), np.argwhere(error > bound)[:5]
    worst, allowed = error.max((2, 3)), bound.max((2, 3))
    above = worst > floor
    assert (allowed[above] <= LOOSE * worst[above]).all(), (allowed / np.maximum(worst, 1e-300))[above]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5, 1e8])
@pytest.mark.parametrize("name", ["logarithmic", "power", "clusters"])
def test_one_basis_serves_every_time_and_ridge_within_its_bound(dynamics, name, condition, make_problem, block_lanczos):
    p, f, ridges, exact = problem_and_reference(
        make_problem, lambda p: make_filter(dynamics, p.n, p.c), spectrum(name, condition)
    )
    rows = sample_indices(p.n, 32)
    # After very few steps at a condition of 1e8 nothing in the basis tells how small the kernel gets: those start at
    # 12.
    for steps in (4, 12, 25, 60) if condition < 1e8 else (12, 25, 60):
        result = block_lanczos(p.train, p.targets, steps)
        solution = KrylovSolution.from_lanczos(result)
        means = means_from_basis(p.test_train @ result.basis.T, solution.coordinates(f, TIMES, ridges))
        # Rounding of the reference itself: eps times the condition number of each solve.
        floor = 100 * np.finfo(float).eps * np.minimum(condition, 1e8) * np.abs(exact).max()
        for sample in (None, RowSample(rows, p.train[rows] @ result.basis.T)):
            assert_bounds(error_budget(solution, f, TIMES, ridges, rows=sample), p, means, exact, floor)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", [0, 1])
def test_float32_tiles_and_products_are_within_the_bound(dynamics, condition, seed, make_problem, block_lanczos):
    p, f, ridges, exact = problem_and_reference(
        make_problem, lambda p: make_filter(dynamics, p.n, p.c), spectrum("power", condition), seed
    )
    stored, test_stored = p.train.astype(np.float32), p.test_train.astype(np.float32)
    rows, tests = sample_indices(p.n, 32), sample_indices(len(p.test_train), 6, seed=1)

    class Rounded:
        """Products rounded to float32, as of the fast mode."""

        def __matmul__(self, x):
            return (stored @ x.astype(np.float32)).astype(np.float64)

        def __len__(self):
            return p.n

    for steps in (10, 40):
        for matrix in (stored.astype(np.float64), Rounded()):
            if isinstance(matrix, Rounded):
                result = rounded_lanczos(matrix, p.targets, steps, block_lanczos)
            else:
                result = block_lanczos(matrix, p.targets, steps)
            solution = KrylovSolution.from_lanczos(result)
            weights = solution.coordinates(f, TIMES, ridges)
            product = test_stored @ combined_weights(result.basis, weights).astype(np.float32)
            means = means_from_weights(product.astype(np.float64), (len(TIMES), len(ridges), p.c))
            columns = sample_indices(p.n, 32, seed=2)
            off = test_stored[:, columns].astype(np.float64) - p.test_train[:, columns]
            rounded = test_stored[tests].astype(np.float64) @ (result.basis.T @ weights)
            product_errors = np.abs(means[:, :, tests] - rounded) / np.sqrt(p.diagonal[tests])[:, None]
            budget = error_budget(
                solution,
                f,
                TIMES,
                ridges,
                rows=RowSample(rows, stored[rows].astype(np.float64) @ result.basis.T, p.train[rows] @ result.basis.T),
                tests=replace(
                    TestErrors.of_columns(off, p.diagonal, p.n),
                    product=largest_of_all(product_errors, len(p.test_train)),
                ),
            )
            assert (budget.storage_train >= 0).all()
            assert (budget.storage_test[1:] > 0).all()
            assert_bounds(budget, p, means, exact, 1e-13 * np.abs(exact).max())


def rounded_lanczos(matrix, targets, steps, block_lanczos):
    """Block Lanczos whose projected matrix comes from rounded products: exact recurrences, then products replaced."""
    dense = matrix @ np.eye(len(matrix))
    result = block_lanczos(dense, targets, steps)
    products = np.asarray(matrix @ result.basis.T)
    projected = result.basis @ products
    result.projected = (projected + projected.T) / 2
    return result


@pytest.mark.parametrize("condition", [1e2, 1e5])
def test_evaluates_the_packages_own_lanczos(condition, make_problem):
    p, f, ridges, exact = problem_and_reference(
        make_problem, lambda p: make_filter("gradient_flow", p.n, p.c), spectrum("power", condition)
    )
    rule = stop_rule(f, TIMES, ridges, largest_test_diagonal=float(p.diagonal.max()), tolerance=1e-7)
    result = package_lanczos(DenseOperator(p.train), p.targets, max_steps=60, stop=rule)
    # The solver asks no more once its space is invariant, as here at a small condition.
    assert rule.history[-1][2] <= 1e-7 or result.invariant
    assert rule.history[-1][1] <= len(result.basis)
    assert [h[0] for h in rule.history] == sorted({h[0] for h in rule.history})
    solution = KrylovSolution.from_lanczos(result)
    means = means_from_basis(p.test_train @ result.basis.T, solution.coordinates(f, TIMES, ridges))
    budget = error_budget(solution, f, TIMES, ridges)
    assert (budget.krylov * np.sqrt(p.diagonal.max()) <= 1e-7).all()
    assert_bounds(budget, p, means, exact, 100 * np.finfo(float).eps * condition * np.abs(exact).max())
    assert np.abs(means - exact).max() <= 1e-7 + 1e-10 * condition**0.5


def test_stop_rule_defaults_to_convergence_and_ends_at_an_invariant_space(make_problem, block_lanczos):
    p = make_problem(np.concatenate([np.full(5, 3.0), np.full(20, 1.0)]))
    f = make_filter("gradient_flow", p.n, p.c)
    rule = stop_rule(f, None, [0.0], largest_test_diagonal=1.0, tolerance=1e-300)
    assert rule.times == (math.inf,)
    result = block_lanczos(p.train, p.targets, 10)  # two distinct eigenvalues: invariant after two steps
    assert result.coupling.size == 0
    assert rule(result)
    assert rule.history == [(2, len(result.basis), 0.0)]


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_singular_kernels_stay_finite_and_within_the_bound(dynamics, make_problem, block_lanczos):
    eigenvalues = np.concatenate([np.geomspace(0.1, 100, 60), np.zeros(20)])
    p, f, ridges, exact = problem_and_reference(make_problem, lambda p: make_filter(dynamics, p.n, p.c), eigenvalues)
    result = block_lanczos(p.train, p.targets, 40)
    solution = KrylovSolution.from_lanczos(result)
    means = means_from_basis(p.test_train @ result.basis.T, solution.coordinates(f, TIMES, ridges))
    assert np.isfinite(means).all()
    unlearnt = solution.unlearnt(f, TIMES, ridges)
    assert unlearnt.shape == (len(TIMES), len(ridges))
    assert unlearnt[-1, 0] > 0
    assert not unlearnt[:, 1:].any()
    assert not unlearnt[:3].any()
    rows = sample_indices(p.n, 40)
    budget = error_budget(solution, f, TIMES, ridges, rows=RowSample(rows, p.train[rows] @ result.basis.T))
    # Nothing tells these directions from ones that are learnt late: the answer is named for what it is, and has no bound.
    assert budget.kind[-1, 0] == "minimum_norm"
    assert np.isinf(budget.factor[-1, 0]).all()
    bounded = budget.kind != "minimum_norm"
    assert np.isfinite(budget.factor[bounded]).all()
    assert bounded[:, 1:].all()
    assert bounded[:3].all()
    assert (np.abs(means - exact) <= budget.bound(p.diagonal)).all()
    assert budget.kind[-1, 2] == "rigorous"


@pytest.mark.parametrize("stored", [np.float64, np.float32])
def test_a_dense_eigensystem_has_the_same_bounds(stored, make_problem):
    p, f, ridges, exact = problem_and_reference(
        make_problem, lambda p: make_filter("gradient_flow", p.n, p.c), spectrum("power", 1e4)
    )
    kernel = p.train.astype(stored).astype(np.float64)
    system = Eigensystem.of(kernel)
    solution = KrylovSolution.from_eigensystem(system.values, system.vectors, p.targets)
    means = gp.means(system, p.test_train, p.targets, f, TIMES, ridges)
    rows = sample_indices(p.n, 32)
    sample = RowSample(rows, kernel[rows] @ system.vectors, p.train[rows] @ system.vectors)
    budget = error_budget(solution, f, TIMES, ridges, rows=sample)
    assert not budget.krylov.any()
    floor = 1e-12 if stored is np.float64 else 1e-13
    assert_bounds(budget, p, means, exact, floor * 1e2 * np.abs(exact).max())


def test_direct_solutions_have_a_bound_too(make_problem):
    p, _, ridges, exact = problem_and_reference(
        make_problem, lambda p: make_filter("gradient_flow", p.n, p.c), spectrum("power", 1e4)
    )
    kernel = p.train.astype(np.float32).astype(np.float64)
    weights = np.stack([np.linalg.solve(kernel + r * np.eye(p.n), p.targets) for r in ridges])
    values = np.linalg.eigvalsh(kernel)
    rows = sample_indices(p.n, 32)
    budget = direct_budget(
        weights,
        p.targets,
        ridges,
        rows,
        p.train[rows],
        smallest=values[0],
        largest=values[-1],
        rows_stored=kernel[rows],
    )
    assert_bounds(budget, p, np.matmul(p.test_train, weights)[None], exact[-1:], 1e-11 * np.abs(exact).max())


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_the_storage_term_counts_what_independent_errors_reach(condition, make_problem):
    n = 500
    p = make_problem(np.maximum(np.arange(1.0, n + 1) ** -1.5, 1 / condition), p=300)
    kernel = p.train.astype(np.float32).astype(np.float64)
    ridges = [0.0, 1e-3]
    exact = np.stack([p.test_train @ np.linalg.solve(p.train + r * np.eye(n), p.targets) for r in ridges])
    weights = np.stack([np.linalg.solve(kernel + r * np.eye(n), p.targets) for r in ridges])
    rows = sample_indices(n, 64)
    smallest = float(np.linalg.eigvalsh(kernel)[0])
    budget = direct_budget(
        weights, p.targets, ridges, rows, p.train[rows], smallest=smallest, largest=1.0, rows_stored=kernel[rows]
    )
    error = np.abs(np.matmul(p.test_train, weights) - exact)
    bound = budget.storage_train[0][:, None, :] * np.sqrt(p.diagonal)[None, :, None]
    assert (error <= bound).all()  # this term alone covers it
    assert independent_share(n) == pytest.approx(14 / 500**0.5)
    assert error.max() > bound.max() / 500


def test_both_ways_to_the_means_agree(make_problem, block_lanczos):
    p, f, ridges, _ = problem_and_reference(
        make_problem, lambda p: make_filter("gradient_flow", p.n, p.c), spectrum("power", 1e3)
    )
    result = block_lanczos(p.train, p.targets, 8)
    coordinates = KrylovSolution.from_lanczos(result).coordinates(f, TIMES, ridges)
    shape = (len(TIMES), len(ridges), p.c)
    assert coordinates.shape == (len(TIMES), len(ridges), len(result.basis), p.c)
    by_weights = means_from_weights(p.test_train @ combined_weights(result.basis, coordinates), shape)
    by_basis = means_from_basis(p.test_train @ result.basis.T, coordinates)
    np.testing.assert_allclose(by_weights, by_basis, atol=1e-12 * np.abs(by_basis).max())
    assert prefers_basis(95, shape)
    assert not prefers_basis(96, shape)


def test_zero_targets_predict_zero(make_problem, block_lanczos):
    p = make_problem(np.geomspace(1, 10, 12))
    result = block_lanczos(p.train, np.zeros((12, 3)), 3)
    f = make_filter("gradient_flow", 12, 3)
    solution = KrylovSolution.from_lanczos(result)
    means = means_from_basis(p.test_train @ result.basis.T, solution.coordinates(f, TIMES, [0.0]))
    assert means.shape == (len(TIMES), 1, len(p.test_train), 3)
    assert not means.any()
    assert not error_budget(solution, f, TIMES, [0.0]).bound(p.diagonal).any()


def test_non_finite_recurrences_are_refused(make_problem, block_lanczos):
    p = make_problem(np.geomspace(1, 10, 12))
    result = block_lanczos(p.train, p.targets, 2)
    result.projected[0, 0] = np.nan
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        KrylovSolution.from_lanczos(result)


def test_samples_are_distinct_sorted_and_reproducible():
    rows = sample_indices(1000, 64, seed=3)
    assert len(set(rows.tolist())) == 64
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < 1000
    np.testing.assert_array_equal(rows, sample_indices(1000, 64, seed=3))
    np.testing.assert_array_equal(sample_indices(5, 64), np.arange(5))


def test_safety_covers_gaussian_samples():
    rng = np.random.default_rng(0)
    assert norm_safety(10, 10) == 1.0
    for k in (8, 16, 64):
        sampled = np.sqrt(1000 / k) * np.linalg.norm(rng.standard_normal((20_000, k)), axis=1)
        # A norm of 1000 Gaussians is below 34 but for 1 in a million.
        assert (norm_safety(k, 1000) * sampled > 34).all()
    assert norm_safety(64, 1000) < 2.5
    assert maximum_safety(64, 10_000) < 15


def near_pair(rng, distance):
    """A kernel of 40 points, the last nearly equal to the first, with another target; its test points; exact in float64."""
    x = rng.standard_normal((48, 5))
    x[39] = x[0] + distance * rng.standard_normal(5)
    kernel = np.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1)) + 0.1 * np.eye(48)
    kernel[0, 39] = kernel[39, 0] = kernel[0, 39] + 0.1  # the pair shares its noise: only the distance tells them apart
    y = rng.standard_normal((40, 2))
    return kernel[:40, :40], kernel[40:, :40], np.diagonal(kernel)[40:], y


@pytest.mark.parametrize("ridge", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("distance", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("whole", [True, False])
def test_directions_that_rounding_hides_do_not_take_their_error_with_them(ridge, distance, whole, block_lanczos):
    rng = np.random.default_rng(4)
    kernel, test, diagonal, y = near_pair(rng, distance)
    errors = 1e-7 * rng.standard_normal(kernel.shape)
    stored = kernel + (errors + errors.T) / 2
    noise = matrix_noise(stored - kernel, 40)
    f = make_filter("gradient_flow", 40, 2)
    if whole:
        system = Eigensystem.of(stored)
        solution = KrylovSolution.from_eigensystem(system.values, system.vectors, y, noise)
    else:
        solution = KrylovSolution.from_lanczos(block_lanczos(stored, y, 20), noise)
    basis = solution.basis.T
    rows = RowSample(np.arange(40), stored @ basis, kernel @ basis)
    times = [1e3, 1e9, math.inf]
    means = means_from_basis(test @ basis, solution.coordinates(f, times, [ridge]))
    exact = np.stack([_flow(kernel, test, y, f, t, ridge) for t in times])[:, None]
    budget = error_budget(solution, f, times, [ridge], rows=rows)
    assert (np.abs(means - exact) <= budget.bound(diagonal)).all()
    hidden = distance**2 < 1e-6
    left = solution.unlearnt(f, times, [ridge])
    assert (left[-1, 0] > 0) == (hidden and ridge < noise)
    assert (budget.kind[-1, 0] == "minimum_norm") == (hidden and ridge == 0)
    assert np.isfinite(budget.factor[:-1]).all()


def _flow(kernel, test, y, f, time, ridge):
    """The exact means: the smallest eigenvalue, near the square of the distance, is above the rounding of float64."""
    values, vectors = np.linalg.eigh(kernel)
    return test @ vectors @ (f.weights(values + ridge, time)[:, None] * (vectors.T @ y))


def test_null_directions_of_copies_are_left_out_quietly():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20, 30))
    x[19] = x[0]
    kernel, y = x @ x.T / 30, rng.standard_normal((20, 2))
    y[[0, 19]] = y[[0, 19]].mean(axis=0)
    values, vectors = np.linalg.eigh(kernel)
    f = make_filter("gradient_flow", 20, 2)
    known = KrylovSolution.from_eigensystem(values, vectors, y, copies=1)
    unknown = KrylovSolution.from_eigensystem(values, vectors, y)
    assert known.unlearnt(f, [math.inf], [0.0]).tolist() == [[0]]
    assert unknown.unlearnt(f, [math.inf], [0.0]).tolist() == [[1]]
    assert np.isfinite(error_budget(known, f, [math.inf], [0.0]).factor).all()
    assert np.isinf(error_budget(unknown, f, [math.inf], [0.0]).factor).all()


@pytest.mark.parametrize("sampled", [16, 60])
def test_every_test_row_is_bounded_by_its_own_entries(sampled):
    """One image's row is a thousand times as wrong as the others': a sample of 16 of 300 images would most likely miss it."""
    rng = np.random.default_rng(6)
    n, p, c = 60, 300, 3
    off = 1e-7 * rng.standard_normal((p, n))
    off[137] *= 1e3
    diagonal = rng.uniform(0.5, 2.0, p)
    weights = rng.standard_normal((2, n, c))
    columns = sample_indices(n, sampled)
    errors = TestErrors.of_columns(off[:, columns], diagonal, n)
    budget = direct_budget(
        weights, np.zeros((n, c)), [1.0, 10.0], columns, np.eye(n)[columns], smallest=0.0, largest=1.0, tests=errors
    )
    bound = budget.storage_test[0][:, None, :] * np.sqrt(diagonal)[None, :, None]
    assert (np.abs(off @ weights) <= bound).all()
    assert (bound.max() <= 300 * np.abs(off @ weights).max()).all()


def test_noise_bounds_what_errors_do_to_eigenvalues():
    rng = np.random.default_rng(7)
    for n in (50, 200):
        errors = rng.uniform(-1e-6, 1e-6, (n, n))
        errors = np.tril(errors) + np.tril(errors, -1).T
        rows = sample_indices(n, 32)
        moved = np.abs(np.linalg.eigvalsh(errors)).max()
        assert moved <= matrix_noise(errors[rows], n) <= 8 * moved
        assert matrix_noise(errors, n) == pytest.approx(moved)
    assert matrix_noise(np.zeros((0, 5)), 5) == 0.0


def test_outputs_of_any_scale_stop_alike(make_problem):
    """The tolerance is one of each output's own scale: a small one is not taken for converged, nor a large one for far off."""
    p = make_problem(spectrum("power", 1e4))
    f = make_filter("gradient_flow", p.n, p.c)
    steps = []
    for scale in (1e-8, 1.0, 1e6):
        targets = p.targets * scale
        rule = stop_rule(
            f, TIMES, [1e-3], largest_test_diagonal=1.0, tolerance=1e-5, scales=np.abs(targets).max(axis=0)
        )
        result = package_lanczos(DenseOperator(p.train), targets, max_steps=80, stop=rule)
        steps.append(result.steps)
        assert rule.history[-1][2] <= 1e-5
    assert len(set(steps)) == 1
