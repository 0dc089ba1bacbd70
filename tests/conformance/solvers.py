"""What every solver must do. A solver subclasses `SolverConformance` and says how it is made."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ntkpipe.config import SolverConfig
from ntkpipe.errors import ConfigError, DataError, IdentityError, IncompleteError
from ntkpipe.solvers.solution import Solution
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.arrays import ArrayKernel
from ntkpipe.sources.gram import Gram
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor

N, P, C = 40, 6, 3
RIDGES = (1e-2, 1e-1)
SPECTRA = {
    "well_conditioned": np.linspace(1, 10, N + P),
    "decaying": np.logspace(-4, 1, N + P),
    "one_outlier": np.concatenate([np.linspace(0.3, 1, N + P - 1), [1e3]]),
}


class Problem:
    """Points of a kernel with a prescribed spectrum: n to train on, p to predict, and the answers by a dense solver."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        q, _ = np.linalg.qr(rng.normal(size=(N + P,) * 2))
        whole = (q * eigenvalues) @ q.T
        whole = (whole + whole.T) / 2
        self.train, self.test, self.own = whole[:N, :N], whole[N:, :N], whole.diagonal()[N:]
        self.targets = rng.normal(size=(N, C))
        # Tiles of 16 rows: the last ones are ragged.
        self.gram = Gram.from_arrays(self.train, self.test, self.own, edge=16)

    def absolute(self, ridge: float) -> float:
        return ridge * float(self.train.diagonal().mean())

    def means(self, ridge: float, targets: np.ndarray | None = None) -> np.ndarray:
        y = self.targets if targets is None else targets
        return self.test @ np.linalg.solve(self.train + self.absolute(ridge) * np.eye(N), y)

    def variances(self, ridge: float) -> np.ndarray:
        weights = np.linalg.solve(self.train + self.absolute(ridge) * np.eye(N), self.test.T)
        return self.own - np.einsum("pn,np->p", self.test, weights)


class Interrupted(MemoryStore):
    """A store that fails at its k-th write from now on, as a killed process would stop."""

    left: ClassVar[list[float]] = [math.inf]

    def put(self, key: str, data: Any, **options: Any) -> Any:
        if not key.startswith("leases/"):
            self.left[0] -= 1
            if self.left[0] < 0:
                raise ConnectionAbortedError("killed")
        return super().put(key, data, **options)


class SolverConformance:
    """Tests of the promises of `Solver` and `Solution`, for any solver."""

    solver: Solver
    every_time = True  # finite times too
    exact_leave_one_out = True

    @pytest.fixture(params=SPECTRA)
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        return Problem(SPECTRA[request.param])

    @pytest.fixture
    def plain(self) -> Problem:
        return Problem(SPECTRA["well_conditioned"])

    def solve(self, problem: Problem, workspace: Workspace | None = None, **options: Any) -> Solution:
        settings = {"times": (math.inf,), "ridges": RIDGES, **options}
        return self.solver.solve(problem.gram.train("gram"), problem.targets, workspace=workspace, **settings)

    def test_predicts_within_its_bound_at_every_ridge(self, problem: Problem) -> None:
        solution = self.solve(problem)
        found = solution.evaluate(problem.gram.test("gram"))
        assert found.mean.shape == (1, len(RIDGES), P, C)
        for r, ridge in enumerate(RIDGES):
            error = np.abs(found.mean[0, r] - problem.means(ridge))
            assert (error <= found.bound[0, r] + 1e-12).all()
            assert found.bound[0, r].max() <= 1e-3 * np.abs(problem.targets).max()
        assert found.absolute_ridges == pytest.approx([problem.absolute(ridge) for ridge in RIDGES])

    def test_variances_lie_within_their_bounds(self, problem: Problem) -> None:
        found = self.solve(problem).evaluate(problem.gram.test("gram"), covariance="diagonal", batch=4)
        assert found.covariance is not None
        for r, ridge in enumerate(RIDGES):
            error = np.abs(found.covariance.variance[0, r] - problem.variances(ridge))
            assert (error <= found.covariance.bound[0, r] + 1e-12).all()

    def test_one_ridge_is_chosen_of_several(self, plain: Problem) -> None:
        solution, test = self.solve(plain), plain.gram.test("gram")
        both, one = solution.evaluate(test), solution.evaluate(test, ridges=RIDGES[1:])
        np.testing.assert_allclose(one.mean[:, 0], both.mean[:, 1], rtol=1e-12, atol=1e-12)
        assert one.ridges == RIDGES[1:]

    def test_a_plain_array_and_tiles_of_any_size_are_one_kernel(self, plain: Problem) -> None:
        tiles = self.solve(plain)
        for kernel in (plain.train, ArrayKernel(plain.train, edge=7)):
            found = self.solver.solve(kernel, plain.targets, times=(math.inf,), ridges=RIDGES)
            np.testing.assert_allclose(found.dual_weights()[0], tiles.dual_weights()[0], atol=1e-4)

    def test_workers_make_no_difference(self, plain: Problem) -> None:
        one = self.solve(plain).dual_weights()[0]
        three = self.solve(plain, Workspace(SerialExecutor(workers=3))).dual_weights()[0]
        np.testing.assert_allclose(three, one, atol=1e-4)

    def test_a_killed_solve_goes_on_from_its_store(self, plain: Problem) -> None:
        store = Interrupted(f"killed-{type(self).__name__}")
        wanted = self.solve(plain).dual_weights()[0]
        kills = 0
        for allowed in range(0, 200):
            store.left[0] = allowed
            try:
                found = self.solve(plain, Workspace(store=store))
                break
            except ConnectionAbortedError:
                kills += 1
        store.left[0] = math.inf
        assert kills > 0
        np.testing.assert_allclose(found.dual_weights()[0], wanted, atol=1e-8)

    def test_what_is_saved_is_loaded(self, plain: Problem, tmp_path: Path) -> None:
        solution, kernel = self.solve(plain), plain.gram.train("gram")
        solution.save(tmp_path / "a.npz")
        again = self.solver.load(tmp_path / "a.npz", kernel, plain.targets)
        test = plain.gram.test("gram")
        before, after = solution.evaluate(test), again.evaluate(test)
        np.testing.assert_array_equal(after.mean, before.mean)
        np.testing.assert_array_equal(after.bound, before.bound)
        with pytest.raises(IdentityError, match="another kernel or other targets"):
            self.solver.load(tmp_path / "a.npz", kernel, plain.targets + 1)
        (tmp_path / "b.npz").write_bytes(b"nothing")
        with pytest.raises(IncompleteError):
            self.solver.load(tmp_path / "b.npz", kernel, plain.targets)

    def test_leave_one_out_is_what_refitting_gives(self, plain: Problem) -> None:
        found = self.solve(plain).leave_one_out()
        assert found.exact == self.exact_leave_one_out
        assert found.residuals.shape == (len(RIDGES), len(found.rows), C)
        for r, ridge in enumerate(RIDGES):
            a = plain.train + plain.absolute(ridge) * np.eye(N)
            for s, i in enumerate(found.rows):
                rest = np.delete(np.arange(N), i)
                guess = plain.train[i, rest] @ np.linalg.solve(a[np.ix_(rest, rest)], plain.targets[rest])
                np.testing.assert_allclose(found.residuals[r, s], plain.targets[i] - guess, atol=1e-3)

    def test_finite_times_are_answered_or_refused(self, plain: Problem) -> None:
        if self.every_time:
            found = self.solve(plain, times=(1.0, math.inf)).evaluate(plain.gram.test("gram"), times=[1.0])
            assert found.times == (1.0,)
            return
        with pytest.raises(ConfigError, match="krylov or eigh"):
            self.solve(plain, times=(1.0, math.inf))
        with pytest.raises(ConfigError, match="krylov or eigh"):
            self.solve(plain).evaluate(plain.gram.test("gram"), times=[1.0])
        with pytest.raises(ConfigError, match="krylov or eigh"):
            self.solve(plain).evaluate(plain.gram.test("gram"), ridges=[0.5])
        with pytest.raises(ConfigError, match="krylov or eigh"):
            self.solve(plain).spectrum()

    def test_the_spectrum_lies_between_its_ends(self, plain: Problem) -> None:
        solution = self.solve(plain)
        values = np.linalg.eigvalsh(plain.train)
        assert solution.largest == pytest.approx(values[-1], rel=1e-2)
        assert 0 <= solution.smallest <= 1.05 * values[0]  # an estimate
        if self.every_time:
            assert solution.spectrum().max() == pytest.approx(solution.largest)

    def test_what_does_not_fit_is_refused(self, plain: Problem) -> None:
        with pytest.raises(DataError, match="targets have shape"):
            self.solver.solve(plain.train, plain.targets[1:])
        with pytest.raises(DataError, match="NaN"):
            self.solver.solve(plain.train, np.full((N, C), np.nan))
        with pytest.raises(DataError, match="square"):
            self.solver.solve(plain.test, plain.targets)
        with pytest.raises(ConfigError, match="ridges"):
            self.solve(plain, ridges=())
        with pytest.raises(ConfigError, match="covariance"):
            self.solve(plain).evaluate(plain.gram.test("gram"), covariance="some")

    def test_settings_are_checked_and_come_from_a_configuration(self) -> None:
        assert type(self.solver).of(self.solver.config()) == self.solver
        assert type(self.solver)().config() == SolverConfig(kind=self.solver.kind)
        with pytest.raises(ConfigError, match="products"):
            replace(self.solver, products="float16")
