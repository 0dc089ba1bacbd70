"""The problem of a solver: a kernel, targets, training dynamics, times and ridges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.dynamics.filters import SpectralFilter, absolute_ridge, make_filter
from ntkpipe.dynamics.times import Numbers, several
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.sources.kernels import TrainKernel
from ntkpipe.storage.checksum import content_hash, digest

SMALLEST_TARGET = 1e-120
"""The largest target of an output that is not all zero is at least this: squares of its rounding errors are then above 1e-280."""


@dataclass(frozen=True)
class Dynamics:
    """The training dynamics of the networks.

    Args:
        name: `gradient_flow`, `gradient_descent` or `momentum`.
        learning_rate: learning rate of a step on `||f - y||^2 / (2 n c)`.
        momentum: coefficient of heavy-ball momentum; only for `momentum`.
    """

    name: str = "gradient_flow"
    learning_rate: float = 1.0
    momentum: float = 0.9

    def filter(self, n: int, c: int) -> SpectralFilter:
        """The spectral filter for n training images and c outputs.

        Raises:
            ConfigError: if a name or value is invalid.
        """
        return make_filter(self.name, n, c, learning_rate=self.learning_rate, momentum=self.momentum)


@dataclass(frozen=True)
class Problem:
    """The linear algebra problem of one kernel. Made by `make_problem`.

    Args:
        kernel: the train-train kernel of n points.
        own_targets: (n, c) float64.
        targets: (n, c), averaged over equal points, which does not change predictions (`linalg.copies`).
        targets_key: digest of the targets.
        dynamics: the training dynamics.
        filter: spectral filter of the dynamics for this number of images and outputs.
        times: times in steps, ascending; None if they are chosen from the spectrum.
        ridges: absolute.
        asked_ridges: the configured ridges, in `ridge_scale`.
        ridge_scale: `relative` or `absolute`.
        error_estimate: whether to estimate errors of predictions beside the bounds: `auto` (if it is cheap), `true` or
            `false`.
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
        """Name of the kernel."""
        return self.kernel.name

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, c) of the targets."""
        n, c = self.targets.shape
        return n, c

    @property
    def scales(self) -> np.ndarray:
        """The largest target of each output, (c,), or 1 if all are zero. Tolerances are relative to it."""
        largest = np.abs(self.targets).max(axis=0, initial=0.0)
        return np.where(largest > 0, largest, 1.0)

    @property
    def answers(self) -> int:
        """Number of known times multiplied by number of ridges."""
        return len(self.times or ()) * len(self.ridges)

    def solve_key(self, products: str, kernel: TrainKernel | None = None) -> str:
        """Key of a basis: a digest of everything that determines it. All times, ridges and filters share a basis.

        Args:
            products: precision of the products.
            kernel: another part; None is the kernel of the problem.
        """
        one = kernel or self.kernel
        merged = {"equal": one.copies.count} if one.copies.count else {}
        labels = [self.targets_key, one.n]
        return digest({"gram": one.identity, "kernel": one.source, "labels": labels, "products": products, **merged})

    def with_own_targets(self, weights: np.ndarray, ridge: float) -> np.ndarray:
        """Weights (n, c) for every point's own target instead of the mean over equal points.

        The difference is in the null space of the kernel, where `A^-1` is `1 / ridge`. Without a ridge there is no
        solution for it, and the weights for the means are returned.
        """
        return weights if ridge == 0 else weights + (self.own_targets - self.targets) / ridge

    def at(self, times: Numbers | None, ridges: Numbers | None) -> Problem:
        """The same problem at other times and ridges (in the scale of the problem); None keeps the present ones.

        Raises:
            ConfigError: if a time or ridge is invalid.
        """
        found = self if ridges is None else self._with_ridges(several(ridges))
        return found if times is None else replace(found, times=_checked_times(times, self.filter))

    def leading(self, n: int) -> Problem:
        """The same problem for the first n training points, without estimates. Relative ridges follow their diagonal."""
        kernel, own = self.kernel.leading(n), self.own_targets[:n]
        trained = self.dynamics.filter(n * kernel.images_per_row, own.shape[1])
        targets = kernel.copies.average(own)
        smaller = replace(self, kernel=kernel, own_targets=own, targets=targets, filter=trained, error_estimate="false")
        return smaller.at(None, self.asked_ridges)

    def _with_ridges(self, asked: tuple[float, ...]) -> Problem:
        if not asked or len(set(asked)) != len(asked):
            raise ConfigError(f"ridges={list(asked)} must hold at least one value, each once")
        # A relative ridge refers to the kernel of the original images, also if flipped images are added.
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
    """Check the arguments of `Solver.solve` and build the problem.

    Raises:
        ConfigError: if times, ridges or dynamics are invalid.
        DataError: if targets do not fit the kernel, are not finite, or so small that their squares underflow.
    """
    own = np.asarray(targets, dtype=np.float64)
    own = own[:, None] if own.ndim == 1 else own
    if own.ndim != 2 or len(own) != kernel.n or not own.shape[1]:
        raise DataError(
            f"targets have shape {np.shape(targets)}: give ({kernel.n}, c), a row for each row of the kernel"
        )
    if not np.isfinite(own).all():
        raise DataError("targets hold NaN or infinite values: clean them first")
    sizes = np.abs(own).max(axis=0, initial=0.0)
    if (small := np.flatnonzero((sizes > 0) & (sizes < SMALLEST_TARGET))).size:
        raise DataError(
            f"the targets of output {small[0]} are at most {sizes[small[0]]:.3g}, and squares of such numbers underflow: multiply them so "
            f"that they exceed {SMALLEST_TARGET:g}"
        )
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
