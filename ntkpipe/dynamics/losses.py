"""Losses for gradient flow in function space: their values, gradients with respect to outputs, and bounds on their curvature.

The training loss is `L(f) = sum_i l(f_i, y_i) / (n c)`, where f_i are the c outputs at the i-th of n points. For `squared` it is
`|f - y|^2 / (2 n c)`, as everywhere in ntkpipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.special

from ntkpipe.errors import ConfigError, DataError

_SIMPLEX = 1e-9


@dataclass(frozen=True)
class Loss(ABC):
    """A convex loss of the outputs at one point."""

    name: ClassVar[str]
    curvature: ClassVar[float] = 1.0
    """Upper bound on the eigenvalues of the Hessian with respect to the outputs of a point."""
    no_end: ClassVar[str] = ""
    """Why there is no answer at t = inf; empty if there is one."""
    classes: ClassVar[bool] = False
    """Whether targets are classes."""

    def targets(self, given: np.ndarray) -> np.ndarray:
        """The targets (n, c) in the format of the loss, from those of squared loss.

        Raises:
            DataError: if the targets do not fit the loss.
        """
        return given

    @abstractmethod
    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The gradient `dl/df` (n, c) at outputs and targets (n, c)."""

    @abstractmethod
    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The loss `l(f_i, y_i)` (n,) of every point."""

    def beyond_kink(self, f: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """How far the gradient is from its value on the other side of a kink, continued smoothly: (n, c), or None without kinks.

        The sign tells the side. The absolute value is zero at the kink.
        """
        del f, y


@dataclass(frozen=True)
class Squared(Loss):
    """Squared loss `|f - y|^2 / 2`."""

    name = "squared"

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return f - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return 0.5 * ((f - y) ** 2).sum(axis=-1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy `-sum_k y_k log softmax(f)_k`, where y is a one-hot class or probabilities. Outputs are logits."""

    name = "cross_entropy"
    classes = True
    # The Hessian diag(p) - p p^T has row sums of absolute values 2 p (1 - p), which are at most 1/2.
    curvature = 0.5
    no_end = "has no finite limit if the classes are separable, as they are for a kernel of full rank: outputs grow like log t"

    def targets(self, given: np.ndarray) -> np.ndarray:
        """See `Loss.targets`. The result contains probabilities."""
        return class_probabilities(given, self.name)

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return scipy.special.softmax(f, axis=-1) - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return -(y * scipy.special.log_softmax(f, axis=-1)).sum(axis=-1)


@dataclass(frozen=True)
class Logistic(Loss):
    """Logistic loss `sum_k log(1 + exp(f_k)) - y_k f_k` with y in [0, 1].

    Each output is an independent binary decision between one class and the rest.
    """

    name = "logistic"
    classes = True
    curvature = 0.25
    no_end = CrossEntropy.no_end

    def targets(self, given: np.ndarray) -> np.ndarray:
        """See `Loss.targets`. The result contains probabilities. With one output, the larger of its two values becomes 1."""
        if given.shape[1] > 1:
            return class_probabilities(given, self.name)
        values = np.unique(given)
        if len(values) != 2:
            raise DataError(f"loss={self.name} with one output needs two target values, but there are {len(values)}")
        return (given == values[1]).astype(np.float64)

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return scipy.special.expit(f) - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return (np.logaddexp(0.0, f) - y * f).sum(axis=-1)


@dataclass(frozen=True)
class Huber(Loss):
    """Huber loss of every output: `r^2 / 2` with `r = f - y` for `|r| <= delta`, and `delta (|r| - delta / 2)` above.

    Args:
        delta: in the units of the targets of the solve.

    Raises:
        ConfigError: if `delta` is not positive.
    """

    delta: float = 1.0

    name = "huber"
    no_end = "has the same limit as squared loss, outputs that fit every target: use predict.loss=squared for t = inf"

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ConfigError(f"predict.huber_delta={self.delta} must be above 0")

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return np.clip(f - y, -self.delta, self.delta)

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        r = np.abs(f - y)
        return np.where(r <= self.delta, 0.5 * r**2, self.delta * (r - 0.5 * self.delta)).sum(axis=-1)

    def beyond_kink(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return np.abs(f - y) - self.delta


def make_loss(name: str, *, delta: float = 1.0) -> Loss:
    """The loss with a name. `delta` is for `huber`.

    Raises:
        ConfigError: if the name is unknown, or `delta` is not positive.
    """
    if name == "huber":
        return Huber(delta)
    known: dict[str, type[Loss]] = {one.name: one for one in (Squared, CrossEntropy, Logistic)}
    if name not in known:
        raise ConfigError(f"loss={name} is not one of {', '.join((*known, Huber.name))}")
    return known[name]()


def class_probabilities(targets: np.ndarray, name: str) -> np.ndarray:
    """One-hot classes or probabilities (n, c) from targets that equal these minus a number for each row.

    Raises:
        DataError: if the targets have no such form.
    """
    c = targets.shape[1]
    found = targets - (targets.sum(axis=1, keepdims=True) - 1.0) / c
    if c < 2 or found.min() < -_SIMPLEX or found.max() > 1 + _SIMPLEX:
        raise DataError(
            f"loss={name} needs classes: targets (n, c) with at least two columns, one-hot or probabilities, minus 1/c, 1/2 or nothing; "
            f"these are (n, {c}) with values from {targets.min():.3g} to {targets.max():.3g}. For real targets use squared or huber"
        )
    return np.clip(found, 0.0, 1.0)
