"""Predictions about learning from a kernel's spectrum: alignment, effective dimension, learning curves, and learning times of modes.

They come from a `SpectralMeasure` of the Gram matrix of M training points. The theory of learning curves (`learning_theory`) uses
the eigenvalues divided by M. Its test error is that of the points outside of a training set of n points,
`(M E - n train) / (M - n)`, where E is the error of all M points. If all eigenvectors are known, the test error is computed for each point
(`left_over`). The theory predicts squared error, not accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ntkpipe.dynamics.extrapolation import Extrapolated, extrapolate
from ntkpipe.dynamics.learning_theory import theory_of_measure
from ntkpipe.dynamics.left_over import left_over_error
from ntkpipe.dynamics.power_law import PowerLawRange, widest_power_law
from ntkpipe.dynamics.spectral_measure import SpectralMeasure
from ntkpipe.errors import ConfigError

TRUSTED = 0.25
"""Share of the sample up to which errors that were predicted from sums over the spectrum were within 4% of measured errors on images."""

SPREAD = 0.3
"""Relative spread of the diagonal of the inverse above which generalised cross-validation is unreliable, because image norms vary."""


@dataclass(frozen=True)
class PredictedError:
    """The predicted errors at one training-set size and ridge.

    Args:
        n: number of training points.
        ridge: the configured ridge.
        kappa: the effective ridge, in units of eigenvalues of the operator.
        E0: factor of overfitting.
        test_mse: mean squared error per output on the points outside of the training set.
        test_mse_error: standard error of `test_mse` from the random probes; 0 for a dense spectrum.
        train_mse: mean squared error per output on the training points.
        learnability: share of the targets' power that is learnt.
        effective_dimension: number of modes that are learnt.
    """

    n: int
    ridge: float
    kappa: float
    E0: float
    test_mse: float
    test_mse_error: float
    train_mse: float
    learnability: float
    effective_dimension: float


@dataclass(frozen=True)
class CrossValidated:
    """Errors on new points at one ridge, estimated by cross-validation on the M points.

    Args:
        ridge: the configured ridge.
        gcv: generalised cross-validation (GCV), `M y^T A^-2 y / (tr A^-1)^2` per output; None if the inverse is unknown.
        gcv_error: standard error of `gcv`.
        leave_one_out: mean squared leave-one-out error of the sampled rows; None if the inverse is unknown.
        leave_one_out_error: standard error of `leave_one_out` over the rows; 0 if all rows are used.
        spread: standard deviation of the diagonal of the inverse divided by its mean. GCV is misleading if it is large.
        rows: number of sampled rows.
    """

    ridge: float
    gcv: float | None
    gcv_error: float
    leave_one_out: float | None
    leave_one_out_error: float
    spread: float | None
    rows: int


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a train-train kernel and predictions from them, made by `ntkpipe.spectrum`.

    Args:
        name: name of the kernel.
        n: number of training points.
        measure: eigenvalues, counts and weights.
        noise: level of rounding errors of the entries and of sums; smaller eigenvalues are not meaningful.
        learning_unit: n times the number of outputs divided by the learning rate. A mode of eigenvalue l is learnt at the time
            `learning_unit / l`.
        ridges: the configured ridges.
        absolute_ridges: the ridges that are added to the diagonal.
        scale: (c,) divisors of the targets before the solve. Errors are multiplied by them, so that they have the units of
            the data like measured ones; shares of the targets' norm are not. None is 1.
    """

    name: str
    n: int
    measure: SpectralMeasure
    noise: float
    learning_unit: float
    ridges: tuple[float, ...]
    absolute_ridges: tuple[float, ...]
    scale: np.ndarray | None = None

    @cached_property
    def _in_units(self) -> SpectralMeasure:
        """The measure of the targets in the units of the data, for errors."""
        return self.measure if self.scale is None else replace(self.measure, along=self.measure.along * self.scale)

    @property
    def is_dense(self) -> bool:
        """Whether every eigenvalue is known."""
        return not len(self.measure.probes)

    @property
    def eigenvalues(self) -> np.ndarray:
        """The leading eigenvalues of the Gram matrix, largest first."""
        return self.measure.values[: self.measure.leading]

    @property
    def label_energy(self) -> np.ndarray:
        """Share of the targets' squared norm, over all outputs, along each leading eigenvector."""
        return self._energy()[: self.measure.leading]

    @property
    def learning_times(self) -> np.ndarray:
        """Training time in steps at which each leading mode is learnt, `1 / (eta l)`."""
        with np.errstate(divide="ignore"):
            return self.learning_unit / self.eigenvalues

    def _energy(self) -> np.ndarray:
        power = self.measure.power.sum(axis=1)
        total = float(power.sum())
        return power / total if total > 0.0 else power

    def alignment(self) -> tuple[float, float]:
        """Alignment of the kernel with the targets' `Y Y^T`, and its standard error.

        It is their inner product divided by both norms (arXiv:1203.0550).
        """
        along = self.measure.along
        inner = float(np.sum(self.measure.values[:, None] * along**2))
        norm = float(np.linalg.norm(along.T @ along))
        if norm == 0.0:
            return 0.0, 0.0
        return self.measure.estimate(
            lambda counts: inner / norm / math.sqrt(float(np.sum(counts * self.measure.values**2)))
        )

    def effective_dimension(self, position: int) -> tuple[float, float]:
        """`tr K (K + ridge)^-1` at one of the ridges, and its standard error. Without ridge it is the rank."""
        ridge = self.absolute_ridges[position]
        if ridge == 0.0:
            return self.measure.trace(lambda values: (values > self.noise).astype(float))
        return self.measure.trace(lambda values: values / (values + ridge))

    def power_laws(self) -> dict[str, PowerLawRange | None]:
        """Power laws of the eigenvalues, and of the targets' power beyond a position in the spectrum, as functions of the position."""
        left = 1.0 - np.cumsum(self._energy())
        place = np.cumsum(self.measure.counts)
        return {
            "eigenvalues": widest_power_law(self.measure.index, self.measure.values),
            "label_energy_left": widest_power_law(place, np.where(left > 1e-9, left, 0.0)),
        }

    def density(self, bins: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Density of states: edges of logarithmic bins `(bins + 1,)`, number of eigenvalues in each bin, and standard errors."""
        values = self.measure.values
        high = float(values.max(initial=1.0)) * (1.0 + 1e-9)
        above = values[values > max(self.noise, 1e-12 * high)]
        low = float(above.min(initial=high / 2.0)) * (1.0 - 1e-9)
        edges = np.geomspace(low, high, bins + 1)
        place = np.digitize(values, edges) - 1
        made = [self.measure.estimate(lambda counts, k=k: float(counts[place == k].sum())) for k in range(bins)]
        return edges, np.array([value for value, _ in made]), np.array([error for _, error in made])

    def learning_curve(self, sizes: Sequence[int] | None = None, position: int = 0) -> list[PredictedError]:
        """Predicted errors of training sets drawn from these points.

        Args:
            sizes: numbers of training points, below the number of points; None is a few sizes up to half of it.
            position: index of the ridge.

        Raises:
            ConfigError: if a size is below 1, or not below the number of points.
        """
        asked = default_sizes(self.n) if sizes is None else [int(size) for size in sizes]
        check_sizes(asked, self.n)
        return [self._predicted(size, position) for size in asked]

    def extrapolated(self, sizes: Sequence[int] | None = None, position: int = 0) -> list[Extrapolated]:
        """Errors for more training points than the kernel has, extrapolated from predicted errors, with a band.

        The extrapolation uses sizes up to a quarter of the points, and the leave-one-out error of all points if it is known.

        Args:
            sizes: numbers of training points, above the number of points; None is two, four and eight times as many.
            position: index of the ridge.

        Raises:
            ConfigError: if a size is not above the number of points or is too large, or there are too few points.
        """
        trusted = [size for size in default_sizes(self.n) if size <= TRUSTED * self.n]
        known = [(one.n, one.test_mse) for one in self.learning_curve(trusted, position)]
        checked = self.cross_validated(position)
        if checked.leave_one_out is not None and checked.rows == self.n:
            known.append((self.n, checked.leave_one_out))
        known = [(n, error) for n, error in known if error > 0.0]
        wanted = [factor * self.n for factor in (2, 4, 8)] if sizes is None else [int(size) for size in sizes]
        n, errors = zip(*known, strict=True) if known else ((), ())
        # Relative standard deviation of the mean of n c squared normal variables.
        spread = math.sqrt(2.0 / (self.n * self.measure.along.shape[1]))
        return extrapolate(n, errors, wanted, self.ridges[position], spread=spread)

    def beyond(self, position: int = 0) -> list[Extrapolated]:
        """`extrapolated` to two, four and eight times the number of points; empty if there are too few points."""
        try:
            return self.extrapolated(None, position)
        except ConfigError:
            return []

    def _predicted(self, size: int, position: int) -> PredictedError:
        ridge = self.absolute_ridges[position]
        operator = self.measure.values / self.n
        operator = np.where(self.measure.values > self.noise, operator, 0.0)
        power = self._in_units.power.mean(axis=1) / self.n

        def corrected(counts: np.ndarray) -> float:
            made = theory_of_measure(operator, counts, power, size, ridge)
            return (self.n * made.test_mse - size * made.train_mse) / (self.n - size)

        value, error = self.measure.estimate(corrected)
        by_point = self._left_over(size, position)
        value = value if by_point is None else by_point
        made = theory_of_measure(operator, self.measure.counts, power, size, ridge)
        return PredictedError(
            size,
            self.ridges[position],
            made.kappa,
            made.E0,
            value,
            error,
            made.train_mse,
            made.learnability,
            made.effective_dimension,
        )

    @cached_property
    def _left_over_errors(self) -> dict[tuple[int, float], float | None]:
        """Computed errors by size and absolute ridge. They are cached, because each takes a few factorisations."""
        return {}

    def _left_over(self, size: int, position: int) -> float | None:
        """The error on points outside of the training set, point by point; None if only sums over the spectrum are known."""
        measure, ridge = self._in_units, self.absolute_ridges[position]
        values = np.where(measure.values > self.noise, measure.values, 0.0)
        if not self.is_dense or (ridge <= self.noise and int(np.count_nonzero(values)) <= size):
            return None
        key = (size, ridge)
        if key not in self._left_over_errors:
            power, operator = measure.power.mean(axis=1) / self.n, values / self.n
            start = self.n * theory_of_measure(operator, measure.counts, power, size, ridge).kappa
            matrix = (measure.units.T * (values + ridge)) @ measure.units
            targets = measure.units.T @ measure.along
            self._left_over_errors[key] = left_over_error(matrix, targets, size, start) if start > 0.0 else None
        return self._left_over_errors[key]

    def cross_validated(self, position: int = 0) -> CrossValidated:
        """Generalised cross-validation and leave-one-out errors of the M points.

        Both are None without ridge if small eigenvalues are not resolved, in particular if only products with the kernel were used.
        """
        ridge, measure = self.absolute_ridges[position], self._in_units
        unknown = CrossValidated(self.ridges[position], None, 0.0, None, 0.0, None, len(measure.rows))
        resolved = self.is_dense and float(measure.values.min()) > self.noise
        if ridge <= self.noise and not resolved:
            return unknown
        inverse = 1.0 / (measure.values + ridge)
        squares = float(np.sum(inverse[:, None] ** 2 * measure.power)) / measure.along.shape[1]
        gcv, error = measure.estimate(lambda counts: self.n * squares / float(np.sum(counts * inverse)) ** 2)
        diagonal = inverse @ measure.units**2
        left_out = (measure.units * inverse[:, None]).T @ measure.along / diagonal[:, None]
        errors = np.mean(left_out**2, axis=1)
        spread = float(diagonal.std() / diagonal.mean())
        sampled = 0.0 if len(errors) == self.n else float(errors.std(ddof=1) / math.sqrt(len(errors)))
        return CrossValidated(
            self.ridges[position], gcv, error, float(errors.mean()), sampled, spread, len(measure.rows)
        )

    def warnings(self) -> list[str]:
        """Warnings about unreliable results."""
        found = []
        for position, ridge in enumerate(self.ridges):
            spread = self.cross_validated(position).spread
            if spread is not None and spread > SPREAD:
                found.append(
                    f"ridge {ridge:g}: diagonal entries of the inverse spread by {spread:.2f} of their mean, so GCV is misleading; "
                    "use leave-one-out (norms of the points vary: data.unit_norm=true makes them equal)"
                )
        return found

    def to_dict(self, sizes: Sequence[int] | None = None) -> dict[str, Any]:
        """All results, JSON-ready."""
        alignment, alignment_error = self.alignment()
        edges, states, states_error = self.density()
        ridges = range(len(self.ridges))
        return {
            "kernel": self.name,
            "n": self.n,
            "dense": self.is_dense,
            "passes": self.measure.passes,
            "eigenvalues": self.eigenvalues.tolist(),
            "label_energy": self.label_energy.tolist(),
            "learning_times": self.learning_times.tolist(),
            "density_of_states": {
                "edges": edges.tolist(),
                "eigenvalues": states.tolist(),
                "standard_error": states_error.tolist(),
            },
            "target_alignment": alignment,
            "target_alignment_error": alignment_error,
            "power_laws": {k: None if law is None else asdict(law) for k, law in self.power_laws().items()},
            "ridges": [
                {
                    "ridge": self.ridges[k],
                    "absolute_ridge": self.absolute_ridges[k],
                    "effective_dimension": self.effective_dimension(k)[0],
                    "effective_dimension_error": self.effective_dimension(k)[1],
                    **asdict(self.cross_validated(k)),
                }
                for k in ridges
            ],
            "learning_curve": [asdict(one) for k in ridges for one in self.learning_curve(sizes, k)],
            "extrapolated": [asdict(one) for k in ridges for one in self.beyond(k)],
            "warnings": self.warnings(),
        }

    def lines(self, sizes: Sequence[int] | None = None) -> list[str]:
        """Lines of text for the user."""
        alignment = self.alignment()[0]
        how = (
            "all eigenvalues"
            if self.is_dense
            else f"{self.measure.leading} leading eigenvalues, {self.measure.passes} passes"
        )
        lines = [
            f"{self.name}: {self.n:,} points, {how}; target alignment {alignment:.3g}",
            f"  largest eigenvalue {self.eigenvalues[0]:.4g}, learnt at t = {self.learning_times[0]:.3g}; the 10 leading directions hold "
            f"{100 * self.label_energy[:10].sum():.3g}% of the label energy"
            if len(self.eigenvalues)
            else "  no eigenvalue has converged: set a larger top=",
        ]
        for name, law in self.power_laws().items():
            if law is not None:
                text = f"  {_SPOKEN[name]} i^-{law.exponent:.3g} (± {law.standard_error:.1g})"
                lines.append(f"{text} for i from {law.low:.3g} to {law.high:.3g}")
        for k, ridge in enumerate(self.ridges):
            checked = self.cross_validated(k)
            dimension = self.effective_dimension(k)[0]
            text = f"  ridge {ridge:g}: effective dimension {dimension:.4g}"
            if checked.gcv is not None and checked.leave_one_out is not None:
                text += f", squared error by generalised cross-validation (GCV) {checked.gcv:.4g}"
                text += f", by leave-one-out {checked.leave_one_out:.4g}"
                if checked.leave_one_out_error:
                    text += f" ± {checked.leave_one_out_error:.2g} ({checked.rows} rows)"
            lines.append(text)
            for one in self.learning_curve(sizes, k):
                doubt = (
                    ""
                    if self.is_dense or one.n <= TRUSTED * self.n
                    else "   (less certain: beyond a quarter of the sample)"
                )
                lines.append(
                    f"    n = {one.n:>8,}: predicted squared error {one.test_mse:.4g}, {one.effective_dimension:.4g} modes and "
                    f"{100 * one.learnability:.3g}% of the targets learnt{doubt}"
                )
            for far in self.beyond(k):
                lines.append(
                    f"    n = {far.n:>8,}: extrapolated squared error {far.test_mse:.4g} (between {far.low:.4g} and {far.high:.4g})"
                )
        of = "targets" if self.scale is None else "data"
        lines.append(
            f"  The theory predicts squared errors, in squared units of the {of}. It does not predict accuracy."
        )
        return [*lines, *(f"warning: {text}" for text in self.warnings())]


_SPOKEN = {
    "eigenvalues": "the i-th eigenvalue decreases as",
    "label_energy_left": "the label energy beyond the i-th eigenvector decreases as",
}


def check_sizes(sizes: Sequence[int], n: int) -> None:
    """Check that training sizes leave new points.

    Raises:
        ConfigError: if a size is not from 1 to n - 1.
    """
    for size in sizes:
        if not 0 < size < n:
            raise ConfigError(
                f"sizes: {size} must be from 1 to {n - 1}, below the {n} points of the kernel, because the theory uses the "
                "rest as new points. Use smaller sizes, or compute a larger kernel"
            )


def default_sizes(n: int) -> list[int]:
    """A few training-set sizes up to half of n points."""
    return sorted({max(1, n >> k) for k in range(6, 0, -1)} - {n})
