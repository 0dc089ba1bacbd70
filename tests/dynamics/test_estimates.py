"""Estimates of the errors of predictions: the first order that they stand on, and what they say where that is not known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ntkpipe.dynamics.estimates import (
    SIGMAS,
    Disturbance,
    RowFacts,
    disturbance,
    error_estimate,
    few_rows,
    growth,
    moved_weights,
    movement_of,
    row_scales,
)
from ntkpipe.dynamics.filters import GradientDescent, GradientFlow, Momentum
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.movement import summed_outputs
from ntkpipe.dynamics.sampling import RowSample, TestErrors

DRAWS = 40
SIZE = 1e-7


def _errors(rng: np.random.Generator, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Errors of entries, independent, as large as those of float32."""
    return SIZE * np.sqrt(np.outer(left, right)) * rng.standard_normal((len(left), len(right)))


def _sensitivity(problem: SimpleNamespace, filter_: GradientFlow, time: float, ridge: float) -> np.ndarray:
    """(p,) of the exact kernel."""
    values, vectors = np.linalg.eigh(problem.train)
    applied = (vectors * filter_.weights(values + ridge, time)) @ vectors.T @ problem.test_train.T
    return np.sqrt(row_scales(problem.train.diagonal()) @ applied**2)


@pytest.mark.parametrize(("time", "least"), [(1e1, 0.4), (1e3, 0.4), (1e5, 0.7), (math.inf, 0.9)])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_one_sigma_is_the_root_mean_square_of_what_errors_of_the_tiles_do(make_problem, time, least, ridge) -> None:
    """Perturbed kernels predict as far from the exact one as is estimated: at most, and early not by much less."""
    problem = make_problem(np.geomspace(1e-2, 1e2, 60), p=8)
    rng, own = np.random.default_rng(1), problem.train.diagonal()
    trained = GradientFlow(problem.n, problem.c)

    def means(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, KrylovSolution]:
        space = KrylovSolution.from_eigensystem(*np.linalg.eigh(train), problem.targets)
        return test @ space.dual_weights(trained, (time,), (ridge,)), space

    exact, _ = means(problem.train, problem.test_train)
    total, sigma = np.zeros_like(exact), np.zeros_like(exact)
    sensitivity = _sensitivity(problem, trained, time, ridge)[None, None]
    for _ in range(DRAWS):
        off = np.tril(_errors(rng, own, own))
        stored = problem.train + off + np.tril(off, -1).T
        off = _errors(rng, problem.diagonal, own)
        found, space = means(stored, problem.test_train + off)
        sample = RowSample(np.arange(problem.n), stored @ space.basis.T, problem.train @ space.basis.T)
        facts = RowFacts(row_scales(own), float(own.mean()), problem.n, 0.0)
        made = disturbance(space, trained, (time,), (ridge,), sample, facts)
        tests = TestErrors.of_columns(off, problem.diagonal, problem.n)
        estimate = error_estimate(made, sensitivity, sample, tests, problem.diagonal, float(own.mean()))
        total += (found - exact) ** 2
        sigma += (estimate[0, 0] / SIGMAS) ** 2
    ratio = math.sqrt(total.sum() / sigma.sum())
    assert least < ratio < 1.1
    assert (np.sqrt(total) < 1.5 * np.sqrt(sigma)).all()


def test_a_truncated_space_is_off_by_less_than_its_means_may_still_move(make_problem, block_lanczos) -> None:
    problem = make_problem(np.geomspace(1e-2, 1e2, 120), p=20)
    trained, times = GradientFlow(problem.n, problem.c), (1e2, 1e4, math.inf)
    exact = KrylovSolution.from_eigensystem(*np.linalg.eigh(problem.train), problem.targets)
    wanted = problem.test_train @ exact.dual_weights(trained, times, (0.0,))
    for steps in (6, 10, 14, 18):
        space = KrylovSolution.from_lanczos(block_lanczos(problem.train, problem.targets, steps))
        moved = moved_weights(space, steps, trained, times, (0.0,))
        assert moved is not None
        movement = np.abs(problem.test_train @ space.basis.T @ moved[:, 0])  # (T, p, c)
        found = problem.test_train @ space.dual_weights(trained, times, (0.0,))
        error = np.abs(found - wanted).reshape(-1, len(times), problem.c).transpose(1, 0, 2)
        for t in range(len(times)):
            assert error[t].max() <= movement[t].max() + 1e-12


def test_many_outputs_move_by_their_root_mean_square() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal((1, 1, 5, 10)), rng.standard_normal((1, 1, 5, 1000)) * np.arange(1, 6)[:, None]
    assert summed_outputs(few) is few
    sums = summed_outputs(many)
    assert sums.shape == (1, 1, 5, 16)
    movement = movement_of(sums, 1000)  # five test points, the largest of which moves most
    assert movement.shape == (1, 1, 5, 1)
    assert 0.5 < movement[0, 0, 4, 0] / np.sqrt(np.mean(many[0, 0, 4] ** 2)) < 2
    np.testing.assert_array_equal(movement_of(few, 10) >= np.abs(few), True)


def test_nothing_has_moved_in_a_whole_basis_and_none_is_left_of_two_steps(make_problem, block_lanczos) -> None:
    problem = make_problem(np.linspace(1, 10, 30))
    trained = GradientFlow(problem.n, problem.c)
    whole = KrylovSolution.from_eigensystem(*np.linalg.eigh(problem.train), problem.targets)
    short = KrylovSolution.from_lanczos(block_lanczos(problem.train, problem.targets, 2))
    for space, steps in ((whole, 1), (short, 2)):
        assert moved_weights(space, steps, trained, (math.inf,), (0.0,)) is None


def test_higher_orders_count_and_have_no_end_where_errors_may_have_made_the_smallest_eigenvalue() -> None:
    assert growth(0.0, 1.0, 0.0, math.inf) == 1.0
    assert growth(1.0, 3.0, 0.0, math.inf) == pytest.approx(4 / 3)  # l_min = 4: one over 1 - 1/4
    assert growth(1.0, 0.0, 0.0, math.inf) == math.inf
    assert growth(1.0, 0.0, 2.0, math.inf) == 1.5
    assert growth(1.0, 0.0, 0.0, 0.1) == pytest.approx(1.1)
    assert growth(1.0, 0.0, 0.0, 0.0) == 1.0


def test_few_rows_raise_an_estimate() -> None:
    assert few_rows(64, 1000) == 1.0
    assert few_rows(4, 1000) == pytest.approx(8.610 / 5, rel=1e-3)  # the 99.95% quantile of Student's distribution
    assert few_rows(4, 4) == 1.0


def test_rows_have_the_scale_of_their_diagonal() -> None:
    np.testing.assert_allclose(row_scales(np.array([1.0, 3.0, 0.0])), [0.75, 2.25, 1e-6])
    np.testing.assert_array_equal(row_scales(np.zeros(2)), [1.0, 1.0])


def test_an_estimate_is_infinite_where_directions_are_left_out() -> None:
    one = np.ones((1, 1, 1))
    for lost, grown in ((math.inf, 1.0), (0.0, math.inf)):
        found = Disturbance(one, 0 * one, one, 0 * one, lost * one if lost else 0 * one, np.array([[grown]]))
        sample = RowSample(np.arange(1), one[0], one[0])
        made = error_estimate(found, np.ones((1, 1, 2)), sample, TestErrors(0.0), np.ones(2), 1.0)
        assert np.isinf(made).all()


@pytest.mark.parametrize(("filter_", "known"), [(GradientDescent(10, 2), True), (Momentum(10, 2), False)])
def test_momentum_has_no_estimate_at_finite_times(make_problem, filter_, known) -> None:
    problem = make_problem(np.linspace(1, 10, 10), c=2)
    space = KrylovSolution.from_eigensystem(*np.linalg.eigh(problem.train), problem.targets)
    sample = RowSample(np.arange(10), problem.train @ space.basis.T)
    facts = RowFacts(np.ones(10), 1.0, 10, 0.0)
    found = disturbance(space, filter_, (3.0, math.inf), (0.0,), sample, facts)
    assert np.isfinite(found.growth[1, 0])
    assert np.isfinite(found.growth[0, 0]) == known
