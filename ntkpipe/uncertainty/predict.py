"""The prediction stage: one pass over the test-train tiles per kernel serves every time and ridge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import ntkpipe
from ntkpipe.dynamics.bounds import ErrorBudget, direct_budget, error_budget
from ntkpipe.dynamics.filters import null_cutoff
from ntkpipe.dynamics.gains import ESTIMATE, RIGOROUS
from ntkpipe.dynamics.krylov import (
    KrylovSolution,
    means_from_basis,
    means_from_weights,
    prefers_basis,
)
from ntkpipe.dynamics.sampling import TestErrors, largest_of_all, sample_indices
from ntkpipe.dynamics.times import default_times
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.operator import rectangular_operator
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.context import Inputs
from ntkpipe.run.run_dir import now
from ntkpipe.solvers.problem import Solved, dual_weights
from ntkpipe.sources.reference_rows import sampled_units, test_errors
from ntkpipe.tasks.executor import Executor
from ntkpipe.uncertainty.spread import Spread, spread


@dataclass(frozen=True)
class KernelPredictions:
    """One kernel's part of `Predictions`, in stored order: means (T, R, p, c), their budget, and their uncertainty."""

    mean: np.ndarray
    budget: ErrorBudget
    spread: Spread | None


def resolve_times(inputs: Inputs, solved: Sequence[Solved]) -> tuple[float, ...]:
    """The times asked for, ascending; by default a grid over all of training of all kernels, and inf."""
    if inputs.config.predict.times is not None:
        return tuple(sorted(inputs.config.predict.times))
    problems = [s.problem for s in solved]
    largest = max(s.facts["largest"] + max(s.problem.ridges) for s in solved)
    smallest = min(s.facts["smallest"] + min(s.problem.ridges) for s in solved)
    return default_times(problems[0].filter, largest, smallest)


def predict_kernel(
    inputs: Inputs,
    solved: Solved,
    times: tuple[float, ...],
    executor: Executor,
    tell: Callable[[str], None] = lambda line: None,
) -> KernelPredictions:
    """Means, error budget and covariances of one kernel."""
    problem = solved.problem
    means, tests = _means(inputs, solved, times, executor)
    _require_numbers(means, solved, times, may_diverge=inputs.config.predict.dynamics != "gradient_flow")
    systematic = solved.rows.systematic
    if solved.solution is not None:
        budget = error_budget(solved.solution, problem.filter, times, problem.ridges, rows=solved.rows, tests=tests)
    else:
        assert solved.weights is not None
        assert solved.rows.exact is not None
        budget = direct_budget(
            solved.weights,
            problem.targets,
            problem.ridges,
            solved.rows.indices,
            solved.rows.exact,
            smallest=solved.facts["smallest"],
            largest=solved.facts["largest"],
            rows_stored=solved.rows.stored,
            systematic=systematic,
            tests=tests,
        )
    found = None
    if inputs.config.predict.covariance != "none":
        found = spread(inputs, solved, times, executor, tell)
    return KernelPredictions(means, budget, found)


def collect(
    inputs: Inputs,
    solved: Sequence[Solved],
    parts: Sequence[KernelPredictions],
    times: tuple[float, ...],
    warnings: Sequence[str],
    selection: dict[str, Any] | None = None,
) -> Predictions:
    """All kernels' parts as `Predictions`, test images in the order of their source."""
    p = inputs.n_test
    labels = inputs.images.labels()
    order = np.argsort(labels.test_index[:p], kind="stable")
    bound = np.stack([part.budget.bound(s.problem.test_diagonal) for s, part in zip(solved, parts, strict=True)])
    kinds = np.stack([part.budget.kind for part in parts])
    terms = ("krylov", "product", "storage_train", "storage_test")
    covariance, variance, variance_bound = None, None, None
    spreads = [part.spread for part in parts if part.spread is not None]
    if spreads:
        variance = np.stack([one.variance for one in spreads])[..., order]
        variance_bound = np.stack([one.bound for one in spreads])[..., order]
        matrices = [one.covariance for one in spreads if one.covariance is not None]
        covariance = np.stack(matrices)[..., order, :][..., order] if matrices else None
    return Predictions(
        kernels=tuple(s.problem.name for s in solved),
        times=np.array(times),
        ridges=np.array(inputs.config.predict.ridges),
        ridge_scale=inputs.config.predict.ridge_scale,
        test_index=labels.test_index[:p][order],
        class_names=labels.class_names,
        label=None if labels.labels_test is None else labels.labels_test[:p][order],
        target=labels.y_test[:p][order],
        mean=np.stack([part.mean for part in parts])[..., order, :],
        error_bound=np.nan_to_num(bound[..., order, :], nan=math.inf, posinf=math.inf),
        bound_kind=np.where(kinds == RIGOROUS, ESTIMATE, kinds) if inputs.estimates_test_diagonal else kinds,
        bound_terms={name: np.stack([getattr(part.budget, name) for part in parts]) for name in terms},
        variance=variance,
        variance_bound=variance_bound,
        covariance=covariance,
        attributes={
            "ntkpipe": ntkpipe.__version__,
            "created": now(),
            "data": inputs.images.fingerprint,
            "gram": inputs.gram.identity.to_dict(),
            "n_train": inputs.n_train,
            "augment": inputs.config.augment,
            "learning_rate": inputs.config.predict.learning_rate,
            "dynamics": inputs.config.predict.dynamics,
            "labels": inputs.config.data.labels,
            "solver": {s.problem.name: s.facts for s in solved},
            "absolute_ridges": {s.problem.name: list(s.problem.ridges) for s in solved},
            "warnings": list(warnings),
            **({} if selection is None else {"selection": selection}),
        },
    )


def _require_numbers(means: np.ndarray, solved: Solved, times: tuple[float, ...], *, may_diverge: bool) -> None:
    """Refuse means that are no numbers, unless training diverges, which a warning says and metrics leave out.

    Raises:
        NumericalError: with the sizes that overflow comes from.
    """
    problem = solved.problem
    bad = ~np.isfinite(means).all(axis=(2, 3))
    if not bad.any() or (may_diverge and problem.filter.instability(solved.facts["largest"] + max(problem.ridges))):
        return
    t, r = (int(k) for k in np.argwhere(bad)[0])
    targets = float(np.abs(problem.targets).max())
    raise NumericalError(
        f"{problem.name}: predictions at t={times[t]:g}, ridge {problem.ridges[r]:g} are not finite, with targets of up to "
        f"{targets:.3g} and eigenvalues from {solved.facts['smallest']:.3g} to {solved.facts['largest']:.3g}. Where targets or "
        "eigenvalues are beyond 1e150, scale them (kernel.w_std scales the kernel); where they are not, ntkpipe verify looks for "
        "damaged tiles"
    )


def warnings_of(inputs: Inputs, solved: Solved, times: tuple[float, ...]) -> list[str]:
    """What the user should know: singular kernels, unstable learning rates."""
    found = []
    problem = solved.problem
    text = problem.filter.instability(solved.facts["largest"] + min(problem.ridges))
    if text:
        found.append(f"{problem.name}: {text}")
    if solved.solution is not None:
        lost = solved.solution.unlearnt(problem.filter, times, problem.ridges)
        if lost.max(initial=0) > 0:
            found.append(_left_out(inputs, solved, lost, times))
            return found
    if not solved.facts["smallest"] > 0 and 0.0 in problem.ridges:
        found.append(
            f"{problem.name}: no smallest eigenvalue is known that errors of the tiles could not have made, and without a ridge "
            "nothing bounds the predictions at t = inf: add one (predict.ridges)."
        )
    return found


def _left_out(inputs: Inputs, solved: Solved, lost: np.ndarray, times: tuple[float, ...]) -> str:
    """Which directions are left out, why, and what to do."""
    problem, n = solved.problem, inputs.n_train
    first = times[int(np.flatnonzero(lost.max(axis=1))[0])]
    noise, rounding = solved.facts.get("noise", 0.0), null_cutoff(n, solved.facts["largest"])
    tiles = inputs.config.store_dtype if inputs.job is not None else str(inputs.matrix(problem.source, "train").dtype)
    narrow = tiles == "float32" and noise > rounding
    remedy = "Set a ridge (predict.ridges)"
    if narrow:
        remedy += ", or kernel.dtype=float64" if inputs.job is not None else ", or give a float64 matrix"
    return (
        f"{problem.name}: {int(lost.max())} directions have eigenvalues below {max(noise, rounding):.1e}, which "
        f"{'float32 tiles' if narrow else 'float64 arithmetic'} cannot tell from zero. From t = {first:g} on they are left out: "
        "these are the predictions of least norm, and nothing bounds their error (bound_kind minimum_norm). A kernel of "
        f"rank below {n:,} does this, or points that nearly equal each other. {remedy}."
    )


def _means(
    inputs: Inputs, solved: Solved, times: tuple[float, ...], executor: Executor
) -> tuple[np.ndarray, TestErrors]:
    """Means (T, R, p, c) from one pass over the test-train tiles, and what errors of these tiles and of the products do to them.

    The same pass multiplies unit vectors: columns of the tiles as they are stored.
    """
    problem, solution = solved.problem, solved.solution
    products = inputs.config.solver.products
    coordinates = None
    shape = (len(times), len(problem.ridges), problem.targets.shape[1])
    if isinstance(solution, KrylovSolution) and prefers_basis(len(solution.values), shape):
        coordinates = solution.coordinates(problem.filter, times, problem.ridges)
        weights = solution.basis.T
    else:
        weights = dual_weights(solved, times)[0]
    units = sampled_units(inputs)
    rows = sample_indices(inputs.n_test, units.shape[1]) if products == "float32" else np.zeros(0, np.int64)
    with rectangular_operator(inputs.matrix(problem.source, "test"), executor, products=products) as operator:
        made = operator.matmul(np.concatenate([weights, units], axis=1))
        stored = operator.rows(rows) if len(rows) else np.zeros((0, inputs.n_train))
    product, columns = made[:, : weights.shape[1]], made[:, weights.shape[1] :]

    def means_of(product: np.ndarray) -> np.ndarray:
        return means_from_weights(product, shape) if coordinates is None else means_from_basis(product, coordinates)

    errors = test_errors(inputs, problem.source, columns, solved.rows.systematic, executor)
    means = means_of(product)
    if len(rows):
        off = np.abs(means[:, :, rows] - means_of(stored @ weights))
        root = np.sqrt(np.maximum(problem.test_diagonal[rows], np.finfo(np.float64).tiny))
        errors = replace(errors, product=largest_of_all(off / root[:, None], inputs.n_test))
    return means, errors
