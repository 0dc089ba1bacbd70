"""Losses other than the squared one, as function-space gradient flow needs them: gradients in outputs, and bounds on their curvature.

The loss of training is `L(f) = sum_i l(f_i, y_i) / (n c)`, f_i the c outputs at the i-th of n points; of `squared` that is
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
    """Upper bound on the eigenvalues of its Hessian in the outputs of a point."""
    no_end: ClassVar[str] = ""
    """Why there is no answer at t = inf; empty if there is one."""
    classes: ClassVar[bool] = False
    """Whether targets are classes."""

    def targets(self, given: np.ndarray) -> np.ndarray:
        """Targets (n, c) as the loss takes them, from those of squared loss.

        Raises:
            DataError: if they are none of its kind.
        """
        return given

    @abstractmethod
    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`dl/df`, (n, c), at outputs and targets (n, c)."""

    @abstractmethod
    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """`l(f_i, y_i)`, (n,)."""


@dataclass(frozen=True)
class Squared(Loss):
    """`|f - y|^2 / 2`."""

    name = "squared"

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return f - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return 0.5 * ((f - y) ** 2).sum(axis=-1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """`-sum_k y_k log softmax(f)_k`, y the one-hot class or probabilities; outputs are logits."""

    name = "cross_entropy"
    classes = True
    # diag(p) - p p^T has row sums of absolute values 2 p (1 - p).
    curvature = 0.5
    no_end = "has no finite limit where the classes can be separated, as a kernel of full rank separates them: outputs grow like log t"

    def targets(self, given: np.ndarray) -> np.ndarray:
        """See `Loss`: probabilities."""
        return class_probabilities(given, self.name)

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return scipy.special.softmax(f, axis=-1) - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return -(y * scipy.special.log_softmax(f, axis=-1)).sum(axis=-1)


@dataclass(frozen=True)
class Logistic(Loss):
    """`sum_k log(1 + exp(f_k)) - y_k f_k`, y in [0, 1]: an independent binary decision per output, one class against the rest."""

    name = "logistic"
    classes = True
    curvature = 0.25
    no_end = CrossEntropy.no_end

    def targets(self, given: np.ndarray) -> np.ndarray:
        """See `Loss`: probabilities; of one output the larger of two values is 1."""
        if given.shape[1] > 1:
            return class_probabilities(given, self.name)
        values = np.unique(given)
        if len(values) != 2:
            raise DataError(f"loss={self.name} of one output takes two values of targets, and there are {len(values)}")
        return (given == values[1]).astype(np.float64)

    def gradient(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return scipy.special.expit(f) - y

    def value(self, f: np.ndarray, y: np.ndarray) -> np.ndarray:
        """See `Loss`."""
        return (np.logaddexp(0.0, f) - y * f).sum(axis=-1)


@dataclass(frozen=True)
class Huber(Loss):
    """`r^2 / 2` of every output's `r = f - y` up to `|r| = delta`, and `delta (|r| - delta / 2)` beyond.

    Args:
        delta: in the units of the targets as they are solved for.

    Raises:
        ConfigError: if it is not positive.
    """

    delta: float = 1.0

    name = "huber"
    no_end = "ends where squared loss does, at outputs that fit every target: use predict.loss=squared for t = inf"

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


def make_loss(name: str, *, delta: float = 1.0) -> Loss:
    """By its name.

    Raises:
        ConfigError: for another name.
    """
    if name == "huber":
        return Huber(delta)
    known: dict[str, type[Loss]] = {one.name: one for one in (Squared, CrossEntropy, Logistic)}
    if name not in known:
        raise ConfigError(f"loss={name} is not one of {', '.join((*known, Huber.name))}")
    return known[name]()


def class_probabilities(targets: np.ndarray, name: str) -> np.ndarray:
    """One-hot classes, or probabilities (n, c), of targets that are these less a number for each row.

    Raises:
        DataError: if they are none.
    """
    c = targets.shape[1]
    found = targets - (targets.sum(axis=1, keepdims=True) - 1.0) / c
    if c < 2 or found.min() < -_SIMPLEX or found.max() > 1 + _SIMPLEX:
        raise DataError(
            f"loss={name} takes classes: targets (n, c) of at least two columns, one-hot or probabilities, less 1/c or 1/2 or nothing; "
            f"these are (n, {c}) and reach from {targets.min():.3g} to {targets.max():.3g}. Real targets have squared or huber"
        )
    return np.clip(found, 0.0, 1.0)
