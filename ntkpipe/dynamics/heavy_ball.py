"""The filter of discrete gradient descent with momentum. It is exact for steps, without the limit of small rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.filters import DIVERGED, GradientDescent, check_momentum, max_learning_rate


@dataclass(frozen=True)
class HeavyBall(GradientDescent):
    """Heavy-ball momentum, which starts at rest: `r_{s+1} = r_s + momentum (r_s - r_{s-1}) - (rate l / (n c)) r_s`.

    Args:
        momentum: between 0 and 1.

    Raises:
        ConfigError: if `momentum` is not in `[0, 1)`.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)

    def max_learning_rate(self, largest: float) -> float:
        """See `SpectralFilter.max_learning_rate`."""
        return max_learning_rate(largest, self.n, self.c, momentum=self.momentum)

    def _weights(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        if time == math.inf:
            return np.where(self._stable(eigenvalues), 1.0 / eigenvalues, DIVERGED)
        return self._after(eigenvalues, time)[0]

    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        if time == math.inf:
            return np.where(self._stable(eigenvalues), 0.0, DIVERGED)
        return self._after(eigenvalues, time)[1]

    def _stable(self, eigenvalues: np.ndarray) -> np.ndarray:
        return self.scaled_time(1) * eigenvalues < 2.0 * (1.0 + self.momentum)

    def _after(self, eigenvalues: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The filter and the remaining residual after a number of steps."""
        unit = self.scaled_time(1)
        left, before = np.ones_like(eigenvalues), np.ones_like(eigenvalues)
        weights, earlier = np.zeros_like(eigenvalues), np.zeros_like(eigenvalues)
        for _ in range(int(time)):
            weights, earlier = weights + self.momentum * (weights - earlier) + unit * left, weights
            left, before = left + self.momentum * (left - before) - unit * eigenvalues * left, left
            left, weights = (np.clip(one, -DIVERGED, DIVERGED) for one in (left, weights))
        return weights, left
