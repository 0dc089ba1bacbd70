from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.bounds import error_budget, largest_factor, time_grid
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.restarted import RestartedWeights
from ntkpipe.dynamics.sampling import RowSample, TestErrors, sample_indices
from ntkpipe.errors import ConfigError
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.restarted import restarted_lanczos
from ntkpipe.linalg.solution import Reason

N = 160
TIMES = (0.0, 1.0, 1e3, 1e5, math.inf)


class Memory:
    """A checkpoint in memory that is replaced from `start` on, as that on a store."""

    def __init__(self):
        self.records: dict[int, tuple[int, dict[str, np.ndarray]]] = {}

    def append(self, start, step, arrays):
        assert start < step
        self.records = {key: value for key, value in self.records.items() if key < start}
        self.records[start] = step, {name: array.copy() for name, array in arrays.items()}

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        start = 0
        while start in self.records:
            start, arrays = self.records[start]
            yield arrays


def spectrum(condition):
    return 100 * np.maximum(np.arange(1.0, N + 1) ** -1.5, 1 / condition) * np.linspace(1.2, 1, N)


class Setup:
    """A restarted solve of a problem with a known dense answer."""

    def __init__(self, make_problem, condition, *, tolerance=1e-6, times=TIMES, dynamics="gradient_flow", seed=0):
        self.p = make_problem(spectrum(condition), seed=seed)
        scale = np.trace(self.p.train) / N
        self.ridges, self.times = (0.0, 1e-3 * scale, 1e-1 * scale), times
        self.f = make_filter(dynamics, self.p.n, self.p.c)
        self.exact = gp.means(
            Eigensystem.of(self.p.train), self.p.test_train, self.p.targets, self.f, times, self.ridges
        )
        self.rows, self.tolerance = sample_indices(N, 32), tolerance
        self.stored = self.p.train

    def good(self, solution, steps):
        assert steps > 0
        worst = largest_factor(solution, self.f, self.times, self.ridges)
        return worst * math.sqrt(self.p.diagonal.max()) <= self.tolerance

    def answer(self, start):
        watched = np.concatenate([self.stored[self.rows], self.p.train[self.rows]])
        return RestartedWeights(
            self.f, self.times, self.ridges, self.p.targets, start, grid=time_grid, good=self.good,
            indices=self.rows, watched=watched,
        )  # fmt: skip

    def solve(self, capacity, *, max_steps=400, checkpoint=None, on_step=None, first_checkpoint=None):
        operator = DenseOperator(self.stored)
        first = block_lanczos(
            operator, self.p.targets, max_steps=max_steps, max_vectors=capacity, checkpoint=first_checkpoint
        )
        answer = self.answer(first.start)
        reason, steps = restarted_lanczos(
            operator, answer, capacity=capacity, max_steps=max_steps, ridge=0.0, first=first, checkpoint=checkpoint,
            checkpoint_every=3, on_step=on_step,
        )  # fmt: skip
        return reason, steps, answer.solution

    def check(self, solution, floor):
        weights = solution.coordinates(self.f, self.times, self.ridges)
        means = np.matmul(self.p.test_train, weights)
        budget = error_budget(
            solution, self.f, self.times, self.ridges,
            rows=RowSample(self.rows, self.stored[self.rows], self.p.train[self.rows]),
            tests=TestErrors(0.0),
        )  # fmt: skip
        error, bound = np.abs(means - self.exact), budget.bound(self.p.diagonal)
        assert (error <= bound).all(), (error / bound).max((2, 3))
        worst, allowed = error.max((2, 3)), bound.max((2, 3))
        above = worst > floor
        assert (allowed[above] <= 1e5 * worst[above]).all(), allowed[above] / worst[above]
        return error.max(), budget


@pytest.mark.parametrize(("condition", "capacity"), [(1e1, 24), (1e3, 24), (1e3, 40), (1e4, 50), (1e6, 40)])
def test_restarts_reach_the_dense_answer_within_the_bound(make_problem, condition, capacity):
    setup = Setup(make_problem, condition)
    reason, steps, solution = setup.solve(capacity, max_steps=2000)
    assert reason is Reason.CONVERGED
    assert condition < 1e3 or 2 * steps > capacity  # several cycles of blocks of 3
    worst, budget = setup.check(solution, 1e-13 * condition)
    assert worst <= 1e-6
    assert (budget.krylov * math.sqrt(setup.p.diagonal.max()) <= 1e-6).all()
    assert (budget.kind[:-1] == "rigorous").all() or condition < 1e4


@pytest.mark.parametrize("steps", [14, 30])
def test_the_bound_holds_far_from_convergence(make_problem, steps):
    setup = Setup(make_problem, 1e5)
    reason, made, solution = setup.solve(30, max_steps=steps)
    assert (reason, made) == (Reason.MAX_STEPS, steps)
    worst, _ = setup.check(solution, 1e-9)
    assert worst > 1e-6


def test_float32_tiles_are_within_the_bound(make_problem):
    setup = Setup(make_problem, 1e4)
    setup.stored = setup.p.train.astype(np.float32).astype(np.float64)
    _, _, solution = setup.solve(40, max_steps=2000)
    _, budget = setup.check(solution, 1e-12)
    assert (budget.storage_train[1:] > 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_kills_change_nothing(make_problem, seed):
    setup = Setup(make_problem, 1e3)
    _, steps, undisturbed = setup.solve(30, max_steps=1000)
    rng, memory, first_memory, kills = np.random.default_rng(seed), Memory(), Memory(), 0

    class KilledError(Exception):
        pass

    while True:
        left = [int(rng.integers(1, 16))]

        def kill(record, left=left):
            left[0] -= 1
            if not left[0]:
                raise KilledError

        try:
            if memory.records:
                operator, answer = DenseOperator(setup.stored), setup.answer(np.zeros((0, setup.p.c)))
                reason, made = restarted_lanczos(
                    operator, answer, capacity=30, max_steps=1000, ridge=0.0, checkpoint=memory, checkpoint_every=3,
                    on_step=kill,
                )  # fmt: skip
                found = answer.solution
            else:
                reason, made, found = setup.solve(
                    30, max_steps=1000, checkpoint=memory, on_step=kill, first_checkpoint=first_memory
                )
            break
        except KilledError:
            kills += 1
    assert kills > 3
    assert (reason, made) == (Reason.CONVERGED, steps)
    np.testing.assert_allclose(
        found.weights, undisturbed.weights, rtol=0, atol=1e-12 * np.abs(undisturbed.weights).max()
    )
    np.testing.assert_allclose(found.along, undisturbed.along, rtol=0, atol=1e-12 * np.abs(undisturbed.along).max())
    again = setup.answer(np.zeros((0, setup.p.c)))
    done = restarted_lanczos(
        DenseOperator(setup.stored), again, capacity=30, max_steps=1000, ridge=0.0, checkpoint=memory,
        on_step=lambda _: pytest.fail("a pass"),
    )  # fmt: skip
    assert done == (Reason.CONVERGED, steps)
    np.testing.assert_array_equal(again.solution.weights, found.weights)


def test_a_singular_kernel_without_a_ridge_is_never_called_converged_wrongly(make_problem):
    setup = Setup(lambda values, seed: make_problem(np.r_[np.geomspace(0.1, 100, 60), np.zeros(20)]), 1.0)
    setup.rows = sample_indices(80, 32)
    reason, _, solution = setup.solve(30, max_steps=60)
    assert reason is Reason.MAX_STEPS  # targets that no weights reach: what a ridge is for
    assert np.isfinite(solution.weights).all()
    setup.check(solution, math.inf)


def test_momentum_needs_the_whole_basis_but_at_infinity(make_problem):
    with pytest.raises(ConfigError, match=r"solver\.basis_gib"):
        Setup(make_problem, 1e2, dynamics="momentum", times=(10.0, math.inf)).solve(30)
    setup = Setup(make_problem, 1e2, dynamics="momentum", times=(math.inf,))
    reason, _, solution = setup.solve(30, max_steps=1000)
    assert reason is Reason.CONVERGED
    setup.check(solution, 1e-11)


def test_other_times_and_too_small_a_basis_are_refused(make_problem):
    setup = Setup(make_problem, 1e2)
    _, _, solution = setup.solve(40)
    with pytest.raises(ConfigError, match="solve again"):
        solution.coordinates(setup.f, (5.0,), setup.ridges)
    with pytest.raises(ConfigError, match=r"raise solver\.basis_gib"):
        setup.solve(12)
