"""Predictions with one kernel. One pass over the test-train tiles serves every time and ridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.dynamics.bounds import ErrorBudget
from ntkpipe.dynamics.estimates import error_estimate
from ntkpipe.dynamics.gains import ESTIMATE, RIGOROUS
from ntkpipe.dynamics.sampling import TestErrors, largest_of_all, sample_indices
from ntkpipe.errors import ConfigError, DataError, NumericalError
from ntkpipe.linalg.assemble import unit_vectors
from ntkpipe.linalg.eigh import null_cutoff
from ntkpipe.linalg.operator import rectangular_operator
from ntkpipe.predictions.points import TestPoints
from ntkpipe.predictions.schema import Predictions
from ntkpipe.sources.kernels import TestKernel
from ntkpipe.uncertainty.covariance import predictive_covariance
from ntkpipe.uncertainty.predictive import PredictiveCovariance

if TYPE_CHECKING:
    from ntkpipe.solvers.solution import Solution
    from ntkpipe.solvers.workspace import Workspace


@dataclass(frozen=True)
class KernelPredictions:
    """Predictions of p test points with one kernel, in the order of the test kernel's rows.

    Args:
        name: name of the kernel.
        times: T times in steps.
        ridges: R configured ridges.
        absolute_ridges: R ridges as they are added to the diagonal.
        ridge_scale: scale of `ridges`, `relative` or `absolute`.
        mean: (T, R, p, c) float64.
        budget: bounds on the errors of the means, by origin.
        test_diagonal: (p,) `k(x, x)`.
        estimates_diagonal: whether `test_diagonal` was estimated.
        covariance: variances over networks, and covariances if requested; None without either.
        warnings: warnings for the user.
        noise: (T, R, c) noise variances of targets about means; None if not requested.
        estimate: (T, R, p, c) estimated errors of `mean`; None without estimates.
        rows_of_point: number of rows of the test kernel that belong to one point. It is 1, or the number of outputs if the kernel has a
            row for each output.
    """

    name: str
    times: tuple[float, ...]
    ridges: tuple[float, ...]
    absolute_ridges: tuple[float, ...]
    ridge_scale: str
    mean: np.ndarray
    budget: ErrorBudget
    test_diagonal: np.ndarray
    estimates_diagonal: bool
    covariance: PredictiveCovariance | None
    warnings: tuple[str, ...]
    noise: np.ndarray | None = None
    estimate: np.ndarray | None = None
    rows_of_point: int = 1

    def by_point(self, rows: int) -> KernelPredictions:
        """The same predictions with all outputs of a point in one row, for a kernel with `rows` rows for each point."""
        if rows == 1:
            return self
        return replace(self, mean=_by_point(self.mean, rows), rows_of_point=rows)

    @property
    def bound(self) -> np.ndarray:
        """Bounds (T, R, p, c) on the errors of `mean`; inf if none is known."""
        found = _by_point(self.budget.bound(self.test_diagonal), self.rows_of_point)
        return np.nan_to_num(found, nan=np.inf, posinf=np.inf)

    def bound_term(self, name: str) -> np.ndarray:
        """A term (T, R, c) of the bounds by its name in `budget`, as a factor of `sqrt(k(x, x))`."""
        return np.repeat(getattr(self.budget, name), self.rows_of_point, axis=-1)

    @property
    def error_estimate(self) -> np.ndarray | None:
        """The exported estimates (T, R, p, c), which are at most the bound; None without estimates."""
        if self.estimate is None:
            return None
        return np.minimum(_by_point(self.estimate, self.rows_of_point), self.bound)

    @property
    def bound_kind(self) -> np.ndarray:
        """(T, R) of str, see `ErrorBudget`. With an estimated diagonal, `rigorous` becomes `estimate`."""
        kind = self.budget.kind
        return np.where(kind == RIGOROUS, ESTIMATE, kind) if self.estimates_diagonal else kind

    @property
    def variance(self) -> np.ndarray | None:
        """Variances (T, R, p) over networks; None if not requested."""
        return None if self.covariance is None else self.covariance.variance


def _by_point(values: np.ndarray, rows: int) -> np.ndarray:
    """Reshape values of rows (T, R, p r, 1) to values of points (T, R, p, r)."""
    return values if rows == 1 else values.reshape(*values.shape[:2], -1, rows)


def joined(parts: Sequence[KernelPredictions], points: TestPoints | None, attributes: dict[str, Any]) -> Predictions:
    """Join predictions of the same points with one or several kernels for the export. Points are in the order of their source.

    Args:
        parts: predictions of each kernel, at the same times and ridges.
        points: the test points. None numbers the points, and their targets are NaN.
        attributes: attributes of the exported predictions.
    """
    first = parts[0]
    p, c = first.mean.shape[2:]
    if points is None:
        points = TestPoints(np.arange(p), tuple(f"output_{k}" for k in range(c)), None, np.full((p, c), np.nan))
    order = np.argsort(points.index, kind="stable")
    units = _Units(points.mean, points.scale)
    terms = ("krylov", "product", "storage_train", "storage_test")
    covariance, variance, variance_bound = None, None, None
    spreads = [part.covariance for part in parts if part.covariance is not None]
    if spreads:
        variance = np.stack([one.variance for one in spreads])[..., order]
        variance_bound = np.stack([one.bound for one in spreads])[..., order]
        matrices = [one.covariance for one in spreads if one.covariance is not None]
        covariance = units.covariance(np.stack(matrices)[..., order, :][..., order]) if matrices else None
        variance, variance_bound = units.variance(variance), units.variance(variance_bound)
    made = [part.error_estimate for part in parts]
    estimates = None
    if any(one is not None for one in made):  # the bound replaces a missing estimate
        pairs = zip(made, parts, strict=True)
        estimates = np.stack([part.bound if one is None else one for one, part in pairs])
    noises = [part.noise for part in parts if part.noise is not None]
    attributes = dict(attributes)
    if points.classes and points.label is None:
        attributes.setdefault("labels", "centered")
    centre = attributes.pop("target_mean", None)
    if centre is not None and points.label is None and not points.classes:
        attributes["target_mean"] = units.mean(np.array(centre)).tolist()
    return Predictions(
        kernels=tuple(part.name for part in parts),
        times=np.array(first.times),
        ridges=np.array(first.ridges),
        ridge_scale=first.ridge_scale,
        test_index=points.index[order],
        class_names=points.class_names,
        label=None if points.label is None else points.label[order],
        target=points.target[order],
        mean=points.exported(np.stack([part.mean for part in parts]))[..., order, :],
        error_bound=units.spread(np.stack([part.bound for part in parts])[..., order, :]),
        error_estimate=None if estimates is None else units.spread(estimates[..., order, :]),
        bound_kind=np.stack([part.bound_kind for part in parts]),
        bound_terms={name: units.spread(np.stack([part.bound_term(name) for part in parts])) for name in terms},
        variance=variance,
        variance_bound=variance_bound,
        covariance=covariance,
        noise=units.spread(units.spread(np.stack(noises))) if noises else None,
        attributes=attributes,
    )


@dataclass(frozen=True)
class _Units:
    """Conversion from the units of the solved targets to the units of the data. Both fields are None if the units are the same.

    Args:
        shift: mean of each output, (c,).
        scale: scale of each output, (c,).
    """

    shift: np.ndarray | None
    scale: np.ndarray | None

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Convert means (..., c)."""
        return values if self.scale is None else values * self.scale + self.shift

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Convert deviations and bounds (..., c)."""
        return values if self.scale is None else values * self.scale

    def variance(self, values: np.ndarray) -> np.ndarray:
        """Convert variances (..., p). The result is (..., p, c) if there are several outputs, because each has its own unit."""
        if self.scale is None:
            return values
        return values * self.scale[0] ** 2 if len(self.scale) == 1 else values[..., None] * self.scale**2

    def covariance(self, values: np.ndarray) -> np.ndarray:
        """Convert covariances (..., p, p). The result is (..., p, p, c) if there are several outputs."""
        return self.variance(values)


def evaluate(
    solution: Solution, test: TestKernel, *, covariance: str, batch: int | None, workspace: Workspace
) -> KernelPredictions:
    """Evaluate a solution at its own times and ridges; see `Solution.evaluate`.

    Raises:
        ConfigError: if a setting is invalid, or the test kernel is an array.
        DataError: if the test kernel has another number of training points.
        NumericalError: if a prediction is not finite.
    """
    problem, times = solution.problem, solution.times
    if isinstance(test, np.ndarray):
        raise ConfigError(
            "a test kernel must come from a Gram: for your own matrices use nk.Gram.from_arrays(train, test).test()"
        )
    if covariance not in ("none", "diagonal", "full"):
        raise ConfigError(f"covariance={covariance!r} is not one of none, diagonal, full")
    if test.shape[1] != problem.kernel.n:
        raise DataError(
            f"the test kernel has {test.shape[1]} columns, but the solution has {problem.kernel.n} training points: give a row for each "
            "test point and a column for each training point"
        )
    means, tests, sensitivity = _means(solution, test, workspace)
    _require_numbers(solution, means)
    budget, found = solution.budget(tests), None
    estimate = None
    if sensitivity is not None:
        mean_diagonal = float(np.mean(problem.kernel.diagonal()))
        estimate = error_estimate(
            solution.disturbance(),
            sensitivity[0],
            solution.sample,
            tests,
            test.diagonal(),
            mean_diagonal,
            sensitivity[1],
            means,
        )
    if covariance != "none":
        found = predictive_covariance(solution, test, full=covariance == "full", batch=batch, workspace=workspace)
    return KernelPredictions(
        name=solution.name,
        times=times,
        ridges=problem.asked_ridges,
        absolute_ridges=problem.ridges,
        ridge_scale=problem.ridge_scale,
        mean=means,
        budget=budget,
        test_diagonal=test.diagonal(),
        estimates_diagonal=test.estimates_diagonal,
        covariance=found,
        warnings=(*warnings_of(solution, budget), *(() if found is None else found.warnings)),
        estimate=estimate,
    )


def _means(
    solution: Solution, test: TestKernel, workspace: Workspace
) -> tuple[np.ndarray, TestErrors, tuple[np.ndarray, np.ndarray | float] | None]:
    """Means, errors of the test tiles, and sensitivities from one pass over the test-train tiles.

    The same pass multiplies unit vectors, which give columns of the stored tiles.

    Returns:
        Means (T, R, p, c); errors of the test-train tiles and of their products; and sensitivities and movements, or None without error
        estimates (see `Sensitivity`).
    """
    settings = solution.solver.config()
    weights, means_of = solution.factors()
    p, n = test.shape
    units = unit_vectors(test.sampled(settings.sample_rows), n)
    rows = sample_indices(p, units.shape[1]) if settings.products == "float32" else np.zeros(0, np.int64)
    sensitivity = solution.sensitivity()
    columns = [weights, units, *([] if sensitivity is None else [sensitivity.columns])]
    splits = [] if sensitivity is None else [weights.shape[1] + units.shape[1]]
    with rectangular_operator(test.matrix, workspace.executor, products=settings.products) as operator:
        made = operator.matmul(np.concatenate(columns, axis=1), splits=splits)
        stored = operator.rows(rows) if len(rows) else np.zeros((0, n))
    product, columns, last = np.split(made, np.cumsum([weights.shape[1], units.shape[1]]), axis=1)
    errors = test.measure(columns, solution.sample.systematic, workspace.executor, settings.sample_rows)
    means = means_of(product)
    if len(rows):
        off = np.abs(means[:, :, rows] - means_of(stored @ weights))
        root = np.sqrt(np.maximum(test.diagonal()[rows], np.finfo(np.float64).tiny))
        errors = replace(errors, product=largest_of_all(off / root[:, None], p))
    return means, errors, None if sensitivity is None else sensitivity.values(last)


def _require_numbers(solution: Solution, means: np.ndarray) -> None:
    """Raise an error if means are not finite. Diverging training is allowed: a warning reports it, and metrics leave it out.

    Raises:
        NumericalError: if means are not finite; the text gives the sizes of targets and eigenvalues.
    """
    problem = solution.problem
    bad = ~np.isfinite(means).all(axis=(2, 3))
    may_diverge = problem.dynamics.name != "gradient_flow"
    if not bad.any() or (may_diverge and problem.filter.instability(solution.largest + max(problem.ridges))):
        return
    t, r = (int(k) for k in np.argwhere(bad)[0])
    targets = float(np.abs(problem.targets).max())
    raise NumericalError(
        f"{problem.name}: predictions at t={solution.times[t]:g}, ridge {problem.ridges[r]:g} are not finite, with targets of up to "
        f"{targets:.3g} and eigenvalues from {solution.smallest:.3g} to {solution.largest:.3g}. If targets or "
        "eigenvalues are above 1e150, scale them (kernel.w_std scales the kernel); otherwise run ntkpipe verify to look for "
        "damaged tiles"
    )


def warnings_of(solution: Solution, budget: ErrorBudget) -> list[str]:
    """Warnings for the user: singular kernels, unstable learning rates and failed refinement. `budget` is that of the predictions."""
    found = []
    problem = solution.problem
    text = problem.filter.instability(solution.largest + min(problem.ridges))
    if text:
        found.append(f"{problem.name}: {text}")
    if why := (solution.facts.get("refinement") or {}).get("failed"):
        found.append(
            f"{problem.name}: not refined (solver.refine): {why}. Set a ridge (predict.ridges), or kernel.dtype=float64."
        )
    lost = solution.left_out()
    if lost is not None and lost.max(initial=0) > 0:
        found.append(_left_out(solution, lost))
        return found
    end = np.ix_(np.isinf(solution.times), np.array(problem.ridges) == 0)
    if np.isinf(budget.factor[end]).any():
        found.append(
            f"{problem.name}: errors of the tiles may be as large as the smallest eigenvalue, so nothing bounds the predictions at "
            "t = inf without a ridge: add one (predict.ridges)."
        )
    return found


def _left_out(solution: Solution, lost: np.ndarray) -> str:
    """A warning about directions that are left out, with the reason and a remedy."""
    kernel = solution.problem.kernel
    first = solution.times[int(np.flatnonzero(lost.max(axis=1))[0])]
    noise, rounding = solution.noise, null_cutoff(kernel.n, solution.largest)
    narrow = kernel.matrix.dtype == np.float32 and noise > rounding
    remedy = "Set a ridge (predict.ridges)"
    if narrow:
        remedy += ", or give a float64 matrix" if kernel.is_given else ", or kernel.dtype=float64"
    return (
        f"{solution.name}: {int(lost.max())} directions have eigenvalues below {max(noise, rounding):.1e}, which "
        f"{'float32 tiles' if narrow else 'float64 arithmetic'} cannot tell from zero. From t = {first:g} on they are left out: "
        "the predictions are those of least norm, and nothing bounds their error (bound_kind minimum_norm). The kernel may have a "
        f"rank below {kernel.n:,}, or some points are nearly equal. {remedy}."
    )
