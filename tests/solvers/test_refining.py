"""Refinement at t = inf: float32 tiles give what a dense solution of entries computed in float64 gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.data.points import Dataset
from ntkpipe.errors import ConfigError
from ntkpipe.gram.products import product_task
from ntkpipe.solvers.refined import RefinedSolution
from ntkpipe.solvers.refining import refine
from ntkpipe.solvers.solver import Solver
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.exact_products import exact_products
from ntkpipe.sources.gram import Gram
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.graph import Task, TaskResult
from ntkpipe.tasks.serial import SerialExecutor

N, P, C = 90, 15, 3
RIDGES = (0.0, 1e-3)
COPIES = ((80, 3), (81, 3), (85, 40))
SOLVERS = (nk.Krylov(), nk.Eigh(), nk.Cholesky(), nk.ConjugateGradients())
FCN = nk.zoo.fcn(depth=2)


class Images:
    """Random smooth images with copies among them, their kernel in tiles, and the dense answers in float64."""

    def __init__(self, kernel: Any, **options: Any) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((N + P, 6, 6, 2)).astype(np.float32)
        for copy, first in COPIES:
            x[copy] = x[first]
        data = Dataset(x[:N], rng.standard_normal((N, C)), x[N:], rng.standard_normal((P, C)))
        self.y = data.targets
        self.gram = Gram(kernel, data, edge=32, **options)
        self.gram.compute(progress=False)
        source, here = self.gram.opened.source, SerialExecutor()
        self.train = source.exact_rows("train", np.arange(N), N, here, 1)
        self.test = source.exact_rows("test", np.arange(P), N, here, 1)
        self.copies = self.gram.opened.blocks.copies
        assert self.copies.count == len(COPIES)

    def matrix(self, name: str) -> np.ndarray:
        return self.copies.average_matrix(self.train[name])

    def weights(self, name: str, ridge: float) -> np.ndarray:
        """Of least norm where equal points make the kernel singular."""
        matrix = self.matrix(name)
        absolute = ridge * float(self.gram.train(name).diagonal(plain=True).mean())
        values, vectors = np.linalg.eigh(matrix + absolute * np.eye(N))
        kept = values > 1e-12 * values[-1]
        return vectors[:, kept] @ ((vectors[:, kept].T @ self.copies.average(self.y)) / values[kept, None])

    def means(self, name: str, ridge: float) -> np.ndarray:
        return self.test[name] @ self.weights(name, ridge)

    def solve(self, solver: Solver, name: str, **options: Any) -> Any:
        asked = {"times": math.inf, "ridges": ridges_of(solver), "progress": False, **options}
        return solver.solve(self.gram.train(name), self.y, **asked)


def ridges_of(solver: Solver) -> tuple[float, ...]:
    return (1e-5, 1e-3) if solver.kind == "cholesky" else RIDGES  # a factor takes no equal points without a ridge


@lru_cache(maxsize=4)
def images(kind: str) -> Images:
    if kind == "fcn":
        return Images(FCN)
    if kind == "convolutions":
        return Images(nk.zoo.cnn_gap(depth=2))
    if kind == "sum":
        return Images(nk.KernelSum((FCN, nk.zoo.fcn(depth=1)), weights=(0.5, 2.0)))
    return Images(FCN, augment="hflip")


def errors(found: Any, here: Images, name: str) -> tuple[np.ndarray, Any]:
    made = found.evaluate(here.gram.test(name))
    exact = np.stack([here.means(name, ridge) for ridge in found.problem.asked_ridges])
    return np.abs(made.mean[-1] - exact), made


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda one: one.kind)
@pytest.mark.parametrize("kind", ["fcn", "convolutions"])
@pytest.mark.parametrize("name", ["ntk", "nngp"])
def test_one_step_leaves_the_square_of_the_relative_error(solver: Solver, kind: str, name: str) -> None:
    here = images(kind)
    plain, _ = errors(here.solve(solver, name), here, name)
    solution = here.solve(dataclasses.replace(solver, refine=1), name)
    assert isinstance(solution, RefinedSolution)
    error, made = errors(solution, here, name)
    assert (error <= made.bound[-1] + 1e-13).all()
    assert made.estimate is not None
    assert np.mean(error <= made.estimate[-1] + 1e-13) >= 0.99
    # Relative to the weights the first error was the correction, and what is left is as small a share of it, or the share of the
    # correction's residual that conjugate gradients leave.
    (correction,) = solution.facts["refinement"]["corrections"]
    assert correction < 1e-3
    assert error.max() < 100 * max(correction, 1e-5) * plain.max() + 1e-13
    assert np.median(made.estimate[-1]) < 1e-2 * np.median(
        here.solve(solver, name).evaluate(here.gram.test(name)).estimate
    )


@pytest.mark.parametrize("kind", ["sum", "flips"])
def test_every_kernel_that_is_computed_is_computed_again(kind: str) -> None:
    here = images(kind)
    plain, _ = errors(here.solve(nk.Eigh(), "ntk"), here, "ntk")
    error, made = errors(here.solve(nk.Eigh(refine=1), "ntk"), here, "ntk")
    assert error.max() < 1e-3 * plain.max()
    assert (error <= made.bound[-1] + 1e-13).all()


def test_two_steps_end_at_the_rounding_of_float64() -> None:
    here = images("fcn")
    error, made = errors(here.solve(nk.Eigh(refine=2), "nngp"), here, "nngp")
    largest = float(np.linalg.eigvalsh(here.matrix("nngp"))[-1])
    values = np.linalg.eigvalsh(here.matrix("nngp"))
    smallest = float(values[values > 1e-10 * largest][0])
    assert error.max() < 10 * np.finfo(float).eps * largest / smallest
    assert (error <= made.bound[-1]).all()


def wide_rbf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel of a condition of some millions on 60 points, which float32 hardly resolves."""
    squares = np.sum((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2, axis=2)
    return np.exp(-squares / 13).astype(a.dtype)


def test_steps_beyond_the_rounding_of_float64_keep_what_earlier_steps_have_reached() -> None:
    n, p, rng = 60, 5, np.random.default_rng(0)
    x, y = rng.standard_normal((n + p, 4)).astype(np.float32), rng.standard_normal((n, 2))
    gram = Gram(wide_rbf, Dataset(x[:n], y, x[n:], np.zeros((p, 2))), name="wide rbf", edge=32)
    gram.compute(progress=False)
    source, here = gram.opened.source, SerialExecutor()
    train = source.exact_rows("train", np.arange(n), n, here, 1)["gram"]
    test = source.exact_rows("test", np.arange(p), n, here, 1)["gram"]
    exact = test @ np.linalg.solve(train, y)
    values = np.linalg.eigvalsh(train)
    assert 1e6 < values[-1] / values[0] < 1e7
    for steps in (3, 4, 6):
        found = nk.Eigh(refine=steps).solve(gram.train(), y, times=math.inf, progress=False)
        assert isinstance(found, RefinedSolution)
        made = found.evaluate(gram.test())
        error = np.abs(made.mean[0, 0] - exact)
        assert error.max() < 10 * np.finfo(float).eps * values[-1] / values[0] * np.abs(exact).max()
        assert (error <= made.bound[0, 0]).all()


@pytest.mark.parametrize("outputs", [2, 40])
def test_an_output_without_targets_does_not_keep_others_from_being_refined(outputs: int) -> None:
    n, p, rng = 40, 4, np.random.default_rng(0)
    x, y = rng.standard_normal((n + p, 4)).astype(np.float32), rng.standard_normal((n, outputs))
    y[:, 0] = 0.0
    data = Dataset(x[:n], rng.standard_normal((n, outputs)), x[n:], np.zeros((p, outputs)))
    gram = Gram(wide_rbf, data, name=f"wide rbf of {outputs}", edge=32)
    gram.compute(progress=False)
    source, here = gram.opened.source, SerialExecutor()
    train = source.exact_rows("train", np.arange(n), n, here, 1)["gram"]
    test = source.exact_rows("test", np.arange(p), n, here, 1)["gram"]
    found = nk.Krylov(tolerance=1e-9, refine=2).solve(gram.train(), y, times=math.inf, ridges=1e-2, progress=False)
    assert isinstance(found, RefinedSolution)
    made = found.evaluate(gram.test())
    ridge = made.absolute_ridges[0]
    np.testing.assert_allclose(made.mean[0, 0], test @ np.linalg.solve(train + ridge * np.eye(n), y), atol=1e-11)
    assert not made.mean[..., 0].any()


def test_refined_predictions_warn_of_a_learning_rate_as_others_do() -> None:
    here, fast = images("fcn"), nk.Dynamics(learning_rate=1e9)
    plain, refined, both = (
        here.solve(solver, "ntk", dynamics=fast, times=times).evaluate(here.gram.test("ntk")).warnings
        for solver, times in (
            (nk.Eigh(), math.inf),
            (nk.Eigh(refine=1), math.inf),
            (nk.Eigh(refine=1), (1.0, math.inf)),
        )
    )
    assert any("largest stable learning rate" in text for text in plain)
    assert refined == both == plain


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda one: one.kind)
def test_leave_one_out_errors_are_refined(solver: Solver) -> None:
    here, name = images("fcn"), "nngp"
    found = here.solve(dataclasses.replace(solver, refine=1), name).leave_one_out()
    matrix, apart = here.train[name], here.copies.sizes[found.rows] == 1
    for j, ridge in enumerate(ridges_of(solver)):
        absolute = ridge * float(matrix.diagonal().mean())
        if ridge:
            inverse = np.linalg.inv(matrix + absolute * np.eye(N))
            wanted = (inverse @ here.y) / inverse.diagonal()[:, None]
            np.testing.assert_allclose(found.residuals[j], wanted[found.rows], atol=1e-6)  # targets are of size one
            continue
        keep = np.flatnonzero(
            here.copies.first == np.arange(N)
        )  # a point of each group, with the mean of their targets
        inverse = np.linalg.inv(matrix[np.ix_(keep, keep)])
        wanted = (inverse @ here.copies.average(here.y)[keep]) / inverse.diagonal()[:, None]
        rows = found.rows[apart]
        np.testing.assert_allclose(found.residuals[j][apart], wanted[np.searchsorted(keep, rows)], rtol=1e-6)
    assert len(found.rows) == (N if solver.kind in ("eigh", "cholesky") else 64)
    assert found.exact == (len(found.rows) == N)


def test_finite_times_are_as_the_solver_left_them() -> None:
    here, times = images("fcn"), (100.0, math.inf)
    plain = here.solve(nk.Krylov(), "ntk", times=times).evaluate(here.gram.test("ntk"))
    found = here.solve(nk.Krylov(refine=1), "ntk", times=times).evaluate(here.gram.test("ntk"), covariance="diagonal")
    assert found.times == times
    np.testing.assert_array_equal(found.mean[0], plain.mean[0])
    np.testing.assert_array_equal(found.budget.storage_train[0], plain.budget.storage_train[0])
    assert found.budget.storage_train[1].max() < 1e-3 * plain.budget.storage_train[1].max()
    assert found.covariance is not None
    assert found.covariance.variance.shape == (2, len(RIDGES), P)


def test_kernels_share_a_pass_and_a_second_asking_makes_none() -> None:
    here, place = images("fcn"), Workspace(executor=Counting())
    solutions = [here.solve(nk.Eigh(), name, workspace=place) for name in ("ntk", "nngp")]
    tasks = place.executor.tasks
    found = refine(solutions, place, 1)
    once = place.executor.tasks - tasks
    here.solve(nk.Eigh(refine=1), "ntk", workspace=place)
    assert place.executor.tasks == tasks + once  # its product lies in the store
    for one in found:
        assert errors(one, here, one.name)[0].max() < 1e-7


class Counting(SerialExecutor):
    """Counts tasks of products, and fails at one of them, as a driver that is killed."""

    def __init__(self, last: float = math.inf) -> None:
        super().__init__()
        self.tasks, self.last = 0, last

    def run(self, graph: Any) -> Iterator[TaskResult]:  # type: ignore[override]
        for task in graph:
            assert isinstance(task, Task)
            if task.function is product_task:
                if self.tasks >= self.last:
                    raise ConnectionAbortedError("killed")
                self.tasks += 1
            yield from super().run([task])


def test_a_killed_pass_goes_on_with_the_same_bits() -> None:
    here, store = images("fcn"), MemoryStore("killed-refinement")
    x = np.random.default_rng(1).standard_normal((N, 2))
    asked = [(here.gram.train("ntk"), x), (here.gram.train("nngp"), x)]
    whole = Counting()
    wanted = exact_products(asked, whole, MemoryStore("whole-refinement"))
    for k, name in enumerate(("ntk", "nngp")):
        np.testing.assert_allclose(wanted[k], here.train[name] @ x, rtol=1e-12, atol=1e-10)
    assert whole.tasks == 6  # of the lower triangle of 3 by 3 tiles
    with pytest.raises(ConnectionAbortedError):
        exact_products(asked, Counting(4), store)
    rest = Counting()
    for made, one in zip(exact_products(asked, rest, store), wanted, strict=True):
        np.testing.assert_array_equal(made, one)
    assert rest.tasks == 2
    assert not [key for key in store.list("refine/") if "product" not in key]


def test_a_solution_is_loaded_as_it_was_saved(tmp_path: Any) -> None:
    here, place = images("fcn"), Workspace()
    solution = here.solve(nk.Krylov(refine=1), "ntk", workspace=place)
    solution.save(tmp_path / "a.npz")
    loaded = nk.Krylov().load(tmp_path / "a.npz", here.gram.train("ntk"), here.y)
    first, second = (one.evaluate(here.gram.test("ntk")) for one in (solution, loaded))
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.bound, second.bound)
    np.testing.assert_array_equal(first.estimate, second.estimate)


def test_one_ridge_is_picked_and_others_are_refused() -> None:
    here = images("fcn")
    solution, test = here.solve(nk.Eigh(refine=1), "ntk"), here.gram.test("ntk")
    np.testing.assert_allclose(
        solution.evaluate(test, ridges=1e-3).mean[:, 0], solution.evaluate(test).mean[:, 1], rtol=1e-11
    )
    with pytest.raises(ConfigError, match="were not refined"):
        solution.evaluate(test, ridges=0.5)


def test_new_points_are_refined_too() -> None:
    here = images("fcn")
    solution = here.solve(nk.Eigh(refine=1), "ntk")
    x = np.random.default_rng(5).standard_normal((4, 6, 6, 2)).astype(np.float32)
    made, plain = solution.predict(x, progress=False), here.solve(nk.Eigh(), "ntk").predict(x, progress=False)
    assert 0 < np.abs(made.mean - plain.mean).max() < 1e-4
    assert made.error_bound.max() < 1e-3 * plain.error_bound.max()


def test_what_has_nothing_to_compute_again_is_refused() -> None:
    here = images("fcn")
    with pytest.raises(ConfigError, match="was given"):
        nk.Eigh(refine=1).solve(here.train["ntk"], here.y)
    given = Gram.from_arrays(here.train["ntk"].astype(np.float32), here.test["ntk"].astype(np.float32))
    with pytest.raises(ConfigError, match="was given"):
        nk.Eigh(refine=1).solve(given.train(), here.y)
    with pytest.raises(ConfigError, match="requested times are finite"):
        here.solve(nk.Eigh(refine=1), "ntk", times=10.0)
    with pytest.raises(ConfigError, match=r"solver\.refine"):
        nk.Eigh(refine=-1)


def test_what_float32_cannot_resolve_is_left_as_it_was_and_says_so() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 4, 4, 1)).astype(np.float32)
    x[30:] = x[:30] * np.float32(1 + 1e-6)  # near copies: eigenvalues below the rounding of the tiles
    data = Dataset(x, rng.standard_normal((60, 1)), x[:5], rng.standard_normal((5, 1)))
    gram = Gram(FCN, data, edge=32)
    gram.compute(progress=False)
    found = nk.Eigh(refine=1).solve(gram.train("ntk"), data.targets, times=math.inf, progress=False)
    assert not isinstance(found, RefinedSolution)
    assert "failed" in found.facts["refinement"]
    assert any("not refined" in text for text in found.evaluate(gram.test("ntk")).warnings)
