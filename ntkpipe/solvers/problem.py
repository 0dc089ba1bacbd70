"""What a solver is asked: a kernel, targets, training dynamics, times and ridges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter, absolute_ridge, make_filter
from ntkpipe.dynamics.times import Numbers, several
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import content_hash, digest


@dataclass(frozen=True)
class Dynamics:
    """How networks are trained.

    Args:
        name: `gradient_flow`, `gradient_descent` or `momentum`.
        learning_rate: of a step on `||f - y||^2 / (2 n c)`.
        momentum: of heavy-ball momentum; read by `momentum` alone.
    """

    name: str = "gradient_flow"
    learning_rate: float = 1.0
    momentum: float = 0.9

    def filter(self, n: int, c: int) -> SpectralFilter:
        """Of n training images and c outputs.

        Raises:
            ConfigError: on an unknown name or an impossible value.
        """
        return make_filter(self.name, n, c, learning_rate=self.learning_rate, momentum=self.momentum)


@dataclass(frozen=True)
class Problem:
    """One kernel's linear algebra; made by `make_problem`.

    Args:
        kernel: among the n training points.
        own_targets: (n, c) float64.
        targets: (n, c), of equal points the mean of theirs, which changes no prediction (`linalg.copies`).
        targets_key: names the targets.
        dynamics: as asked for.
        filter: the same for this many images and outputs.
        times: in steps, ascending; None until the spectrum is known.
        ridges: absolute.
        asked_ridges: the same as they were asked for, in `ridge_scale`.
        ridge_scale: `relative` or `absolute`.
        error_estimate: whether errors of predictions are estimated besides their bounds: `auto` where that is cheap, `true` or `false`.
    """

    kernel: TrainKernel
    own_targets: np.ndarray
    targets: np.ndarray
    targets_key: str
    dynamics: Dynamics
    filter: SpectralFilter
    times: tuple[float, ...] | None
    ridges: tuple[float, ...]
    asked_ridges: tuple[float, ...]
    ridge_scale: str
    error_estimate: str = "auto"

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.name

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        n, c = self.targets.shape
        return n, c

    @property
    def scales(self) -> np.ndarray:
        """(c,) the largest target of each output, 1 where all are zero: a tolerance is relative to it."""
        largest = np.abs(self.targets).max(axis=0, initial=0.0)
        return np.where(largest > 0, largest, 1.0)

    @property
    def answers(self) -> int:
        """Times and ridges that are known, multiplied."""
        return len(self.times or ()) * len(self.ridges)

    def solve_key(self, products: str, kernel: TrainKernel | None = None) -> str:
        """Names a basis by all that determines it: not by times, ridges or filters, which all share one.

        Args:
            products: precision in which it is made.
            kernel: another part; None is the problem's own.
        """
        one = kernel or self.kernel
        merged = {"equal": one.copies.count} if one.copies.count else {}
        labels = [self.targets_key, one.n]
        return digest({"gram": one.identity, "kernel": one.source, "labels": labels, "products": products, **merged})

    def with_own_targets(self, weights: np.ndarray, ridge: float) -> np.ndarray:
        """Weights (n, c) for every point's own target instead of the means of equal points.

        What was averaged away lies in the null space of the kernel, where `A^-1` is `1 / ridge`; without ridge it has no solution,
        and the weights are those of the means.
        """
        return weights if ridge == 0 else weights + (self.own_targets - self.targets) / ridge

    def at(self, times: Numbers | None, ridges: Numbers | None) -> Problem:
        """The same at other times and ridges (in the scale of the problem); None leaves them.

        Raises:
            ConfigError: on impossible ones.
        """
        found = self if ridges is None else self._with_ridges(several(ridges))
        return found if times is None else replace(found, times=_checked_times(times, self.filter))

    def leading(self, n: int) -> Problem:
        """The same with the first n training points alone, and no estimates; relative ridges follow their diagonal."""
        kernel, own = self.kernel.leading(n), self.own_targets[:n]
        trained = self.dynamics.filter(n * kernel.images_per_row, own.shape[1])
        targets = kernel.copies.average(own)
        smaller = replace(self, kernel=kernel, own_targets=own, targets=targets, filter=trained, error_estimate="false")
        return smaller.at(None, self.asked_ridges)

    def _with_ridges(self, asked: tuple[float, ...]) -> Problem:
        if not asked or len(set(asked)) != len(asked):
            raise ConfigError(f"ridges={list(asked)} must hold at least one value, each once")
        # A relative ridge is one of the images' own kernel, flips or not: its trace is that of the doubled set's mean image.
        diagonal = self.kernel.diagonal(plain=True)
        ridges = tuple(absolute_ridge(ridge, diagonal, self.ridge_scale) for ridge in asked)
        return replace(self, ridges=ridges, asked_ridges=asked)


def make_problem(
    kernel: TrainKernel,
    targets: np.ndarray,
    *,
    times: Numbers | None = None,
    ridges: Numbers = (0.0,),
    ridge_scale: str = "relative",
    dynamics: Dynamics | None = None,
    targets_key: str | None = None,
    error_estimate: str = "auto",
) -> Problem:
    """A checked problem; arguments as of `Solver.solve`.

    Raises:
        ConfigError: on impossible times, ridges or dynamics.
        DataError: on targets that do not fit the kernel, or are not finite.
    """
    own = np.asarray(targets, dtype=np.float64)
    own = own[:, None] if own.ndim == 1 else own
    if own.ndim != 2 or len(own) != kernel.n or not own.shape[1]:
        raise DataError(
            f"targets have shape {np.shape(targets)}: give ({kernel.n}, c), a row for each row of the kernel"
        )
    if not np.isfinite(own).all():
        raise DataError("targets hold NaN or infinite values: clean them first")
    dynamics = dynamics or Dynamics()
    trained = dynamics.filter(kernel.n * kernel.images_per_row, own.shape[1])
    key = content_hash(np.ascontiguousarray(own).tobytes()) if targets_key is None else targets_key
    averaged = kernel.copies.average(own)
    found = Problem(kernel, own, averaged, key, dynamics, trained, None, (), (), ridge_scale, error_estimate)
    return found.at(times, ridges)


def _checked_times(times: Numbers, spectral_filter: SpectralFilter) -> tuple[float, ...]:
    found = tuple(sorted(several(times)))
    if not found or len(set(found)) != len(found) or math.isnan(found[0]) or found[0] < 0:
        raise ConfigError(f"times={list(found)} must hold at least one time, each once and at least 0")
    for time in found:
        spectral_filter.check_time(time)
    return found
