"""What a kernel's spectrum says of learning: alignment, effective dimension, learning curves, times at which modes are learnt.

From a `SpectralMeasure` of the Gram matrix of M training points. The theory of learning curves (`learning_theory`) is asked with
the eigenvalues over M, and its test error is that of the points that a training set of n leaves over,
`(M E - n train) / (M - n)`: E is the error of all M. It predicts squared error, not accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ntkpipe.dynamics.extrapolation import Extrapolated, extrapolate
from ntkpipe.dynamics.learning_theory import theory_of_measure
from ntkpipe.dynamics.power_law import PowerLawRange, widest_power_law
from ntkpipe.dynamics.spectral_measure import SpectralMeasure
from ntkpipe.errors import ConfigError

TRUSTED = 0.25
"""Share of the sample up to which predicted errors of real images were within 4% of measured ones."""

SPREAD = 0.3
"""Relative spread of the inverse's diagonal above which GCV is not to be trusted: norms of the images vary."""


@dataclass(frozen=True)
class PredictedError:
    """The predicted errors at one training-set size and ridge.

    Args:
        n: training points.
        ridge: as it was asked for.
        kappa: the effective ridge, an eigenvalue of the operator.
        E0: factor of overfitting.
        test_mse: mean squared error per output on the points that are left over.
        test_mse_error: its standard error, of random probes; 0 of a dense spectrum.
        train_mse: on the training points.
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
    """Errors on new points as the M points themselves tell them, at one ridge.

    Args:
        ridge: as it was asked for.
        gcv: generalised cross-validation, `M y^T A^-2 y / (tr A^-1)^2` per output; None where the inverse is not known.
        gcv_error: its standard error.
        leave_one_out: mean squared error of leaving each looked-at row out; None where the inverse is not known.
        leave_one_out_error: its standard error over the rows, 0 of all rows.
        spread: standard deviation of the diagonal of the inverse over its mean: large where GCV misleads.
        rows: that were looked at.
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
    """Eigenvalues of a train-train kernel and what follows from them; made by `ntkpipe.spectrum`.

    Args:
        name: of the kernel.
        n: training points.
        measure: eigenvalues, counts and weights.
        noise: of the eigenvalues: smaller ones are rounding of the entries or of sums.
        learning_unit: n times outputs over the learning rate: a mode of eigenvalue l is learnt at the time `learning_unit / l`.
        ridges: as they were asked for.
        absolute_ridges: added to the diagonal.
    """

    name: str
    n: int
    measure: SpectralMeasure
    noise: float
    learning_unit: float
    ridges: tuple[float, ...]
    absolute_ridges: tuple[float, ...]

    @property
    def is_dense(self) -> bool:
        """Every eigenvalue is known."""
        return not len(self.measure.probes)

    @property
    def eigenvalues(self) -> np.ndarray:
        """The leading eigenvalues of the Gram matrix, largest first."""
        return self.measure.values[: self.measure.leading]

    @property
    def label_energy(self) -> np.ndarray:
        """Share of the targets' squared norm along each leading eigenvector, mean over outputs by their norms."""
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
        """Of the kernel with the targets' `Y Y^T`: their inner product over both norms (arXiv:1203.0550); and its standard error."""
        along = self.measure.along
        inner = float(np.sum(self.measure.values[:, None] * along**2))
        norm = float(np.linalg.norm(along.T @ along))
        if norm == 0.0:
            return 0.0, 0.0
        return self.measure.estimate(
            lambda counts: inner / norm / math.sqrt(float(np.sum(counts * self.measure.values**2)))
        )

    def effective_dimension(self, position: int) -> tuple[float, float]:
        """`tr K (K + ridge)^-1` at one of the ridges, and its standard error; the rank without ridge."""
        ridge = self.absolute_ridges[position]
        if ridge == 0.0:
            return self.measure.trace(lambda values: (values > self.noise).astype(float))
        return self.measure.trace(lambda values: values / (values + ridge))

    def power_laws(self) -> dict[str, PowerLawRange | None]:
        """Of the eigenvalues by their place, and of the targets' power that lies beyond a place."""
        left = 1.0 - np.cumsum(self._energy())
        place = np.cumsum(self.measure.counts)
        return {
            "eigenvalues": widest_power_law(self.measure.index, self.measure.values),
            "label_energy_left": widest_power_law(place, np.where(left > 1e-9, left, 0.0)),
        }

    def density(self, bins: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Density of states: edges of bins of the logarithm of eigenvalues `(bins + 1,)`, eigenvalues in each, standard errors."""
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
            sizes: numbers of training points, below the sample; None is a few up to half of it.
            position: of the ridge.

        Raises:
            ConfigError: if a size is not between 1 and the sample.
        """
        asked = default_sizes(self.n) if sizes is None else [int(size) for size in sizes]
        for size in asked:
            if not 0 < size < self.n:
                raise ConfigError(
                    f"sizes: {size} must be from 1 to {self.n - 1}, below the {self.n} points of the kernel: the theory takes the rest "
                    "as the new points. Ask for smaller sizes, or compute a larger kernel"
                )
        return [self._predicted(size, position) for size in asked]

    def extrapolated(self, sizes: Sequence[int] | None = None, position: int = 0) -> list[Extrapolated]:
        """Errors of more training points than there are, extrapolated from predicted ones: what more data would buy, with a band.

        From sizes up to a quarter of the sample, and leave-one-out errors of all of it where they are known.

        Args:
            sizes: numbers of training points, beyond the sample; None is twice, four and eight times as many.
            position: of the ridge.

        Raises:
            ConfigError: for a size that is no extrapolation, or a sample of fewer than 16 points.
        """
        trusted = [size for size in default_sizes(self.n) if size <= TRUSTED * self.n]
        known = [(one.n, one.test_mse) for one in self.learning_curve(trusted, position)]
        checked = self.cross_validated(position)
        if checked.leave_one_out is not None and checked.rows == self.n:
            known.append((self.n, checked.leave_one_out))
        known = [(n, error) for n, error in known if error > 0.0]
        wanted = [factor * self.n for factor in (2, 4, 8)] if sizes is None else [int(size) for size in sizes]
        n, errors = zip(*known, strict=True) if known else ((), ())
        # Of a mean of so many squares of normal numbers.
        spread = math.sqrt(2.0 / (self.n * self.measure.along.shape[1]))
        return extrapolate(n, errors, wanted, self.ridges[position], spread=spread)

    def _beyond(self, position: int) -> list[Extrapolated]:
        """`extrapolated`, of samples and errors that allow it."""
        try:
            return self.extrapolated(None, position)
        except ConfigError:
            return []

    def _predicted(self, size: int, position: int) -> PredictedError:
        ridge = self.absolute_ridges[position]
        operator = self.measure.values / self.n
        operator = np.where(self.measure.values > self.noise, operator, 0.0)
        power = self.measure.power.mean(axis=1) / self.n

        def corrected(counts: np.ndarray) -> float:
            made = theory_of_measure(operator, counts, power, size, ridge)
            return (self.n * made.test_mse - size * made.train_mse) / (self.n - size)

        value, error = self.measure.estimate(corrected)
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

    def cross_validated(self, position: int = 0) -> CrossValidated:
        """Generalised cross-validation and leave-one-out errors at all M points.

        Without ridge, and where products alone are known, small eigenvalues are not resolved: the answer is None.
        """
        ridge, measure = self.absolute_ridges[position], self.measure
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
        """What not to trust."""
        found = []
        for position, ridge in enumerate(self.ridges):
            spread = self.cross_validated(position).spread
            if spread is not None and spread > SPREAD:
                found.append(
                    f"ridge {ridge:g}: diagonal entries of the inverse spread by {spread:.2f} of their mean, so that GCV misleads; "
                    "trust leave-one-out (norms of the points vary: data.unit_norm=true evens them out)"
                )
        return found

    def to_dict(self, sizes: Sequence[int] | None = None) -> dict[str, Any]:
        """JSON-ready."""
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
            "extrapolated": [asdict(one) for k in ridges for one in self._beyond(k)],
            "warnings": self.warnings(),
        }

    def lines(self, sizes: Sequence[int] | None = None) -> list[str]:
        """For people."""
        alignment = self.alignment()[0]
        how = (
            "all eigenvalues"
            if self.is_dense
            else f"{self.measure.leading} leading eigenvalues, {self.measure.passes} passes"
        )
        lines = [
            f"{self.name}: {self.n:,} points, {how}; target alignment {alignment:.3g}",
            f"  largest eigenvalue {self.eigenvalues[0]:.4g}, learnt at t = {self.learning_times[0]:.3g}; the 10 leading ones hold "
            f"{100 * self.label_energy[:10].sum():.3g}% of the label energy"
            if len(self.eigenvalues)
            else "  no eigenvalue has settled: ask for more with top=",
        ]
        for name, law in self.power_laws().items():
            if law is not None:
                lines.append(
                    f"  {name.replace('_', ' ')} fall as i^-{law.exponent:.3g} (± {law.standard_error:.1g}) for i from {law.low:.3g} to "
                    f"{law.high:.3g}"
                )
        for k, ridge in enumerate(self.ridges):
            checked = self.cross_validated(k)
            dimension = self.effective_dimension(k)[0]
            text = f"  ridge {ridge:g}: effective dimension {dimension:.4g}"
            if checked.gcv is not None and checked.leave_one_out is not None:
                text += f", squared error by GCV {checked.gcv:.4g}, by leave-one-out {checked.leave_one_out:.4g}"
                if checked.leave_one_out_error:
                    text += f" ± {checked.leave_one_out_error:.2g} ({checked.rows} rows)"
            lines.append(text)
            for one in self.learning_curve(sizes, k):
                doubt = "" if one.n <= TRUSTED * self.n else "   (beyond a quarter of the sample: less sure)"
                lines.append(
                    f"    n = {one.n:>8,}: predicted squared error {one.test_mse:.4g}, {one.effective_dimension:.4g} modes and "
                    f"{100 * one.learnability:.3g}% of the targets learnt{doubt}"
                )
            for far in self._beyond(k):
                lines.append(
                    f"    n = {far.n:>8,}: extrapolated squared error {far.test_mse:.4g}, from {far.low:.4g} to {far.high:.4g}"
                )
        lines.append("  The theory predicts squared error, not accuracy.")
        return [*lines, *(f"warning: {text}" for text in self.warnings())]


def default_sizes(n: int) -> list[int]:
    """A few training-set sizes up to half of n points."""
    return sorted({max(1, n >> k) for k in range(6, 0, -1)} - {n})
