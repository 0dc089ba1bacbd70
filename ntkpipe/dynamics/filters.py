"""Spectral filters: what training for a time does to each eigenvalue of the kernel.

On squared loss `||f - y||^2 / (2 n c)` an infinitely wide network is linear in its parameters (Lee et al. 2019,
arXiv:1902.06720), so its prediction is `f0_* + T_* phi(A) (y - f0)` with `A` the train-train kernel plus ridge. A
filter is that `phi`. Float64 throughout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError

# A diverging filter is cut here, so that products with kernel rows stay finite; such a number is no prediction.
DIVERGED = 1e150
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class SpectralFilter(ABC):
    """Maps eigenvalues and a training time to dual weights.

    Args:
        n: training images.
        c: outputs (columns of the targets).
        learning_rate: per step, of the loss `||f - y||^2 / (2 n c)`.

    Raises:
        ConfigError: if one of them is not positive.
    """

    n: int
    c: int
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if min(self.n, self.c) < 1 or not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"a filter needs n={self.n}, outputs={self.c} and predict.learning_rate={self.learning_rate}, "
                "all positive and finite"
            )

    def weights(self, eigenvalues: np.ndarray, time: float, *, cutoff: float = 0.0) -> np.ndarray:
        """The filter `phi`: dual weights per unit of target.

        Args:
            eigenvalues: of the train-train kernel plus ridge, any shape; slightly negative ones (rounding) count as
                zero.
            time: in steps, `inf` allowed.
            cutoff: eigenvalues at or below it are null (`null_cutoff`). A null direction follows the regular limit of
                `phi` while that is below `1 / cutoff`, and is left unlearnt (weight 0) afterwards: the kernel between
                train and test vanishes there, so its weight would only amplify rounding.

        Returns:
            Float64, the shape of `eigenvalues`, always finite.

        Raises:
            ConfigError: if `time` is negative, NaN, or not a whole number of discrete steps.
        """
        self.check_time(time)
        eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
        drop = self.unlearnt(eigenvalues, time, cutoff=cutoff)
        safe = np.where(drop, 1.0, np.maximum(eigenvalues, 0.0))
        return np.where(drop, 0.0, self._weights(safe, float(time)))

    def decay(self, eigenvalues: np.ndarray, time: float, *, cutoff: float = 0.0) -> np.ndarray:
        """The share of a target component still to be learnt, `1 - l phi(l)`; 1 where it never is. See `weights`."""
        self.check_time(time)
        eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
        drop = self.unlearnt(eigenvalues, time, cutoff=cutoff)
        safe = np.where(drop, 1.0, np.maximum(eigenvalues, 0.0))
        return np.where(drop, 1.0, self._decay(safe, float(time)))

    def unlearnt(self, eigenvalues: np.ndarray, time: float, *, cutoff: float = 0.0) -> np.ndarray:
        """Boolean mask of the null eigenvalues that `weights` leaves out at this time; worth a warning when any is set."""
        limit = self.scaled_time(time)
        if limit == math.inf or limit * cutoff > 1.0:
            return np.asarray(eigenvalues) <= cutoff
        return np.zeros(np.shape(eigenvalues), dtype=bool)

    def check_time(self, time: float) -> None:
        """Refuses times that this filter has no value for."""
        if not time >= 0:
            raise ConfigError(f"predict.times={time}: a training time is at least 0")

    def scaled_time(self, time: float) -> float:
        """The filter's value at eigenvalue zero, for gradient flow `s = rate * t / (n c)`; `inf` at `inf`."""
        return self.learning_rate * time / (self.n * self.c)

    @property
    def scaled_rate(self) -> float:
        """Of one step, `rate / (n c)`: times the largest eigenvalue it is the rate in units of one over the curvature."""
        return self.learning_rate / (self.n * self.c)

    def max_learning_rate(self, largest: float) -> float:
        """The largest learning rate at which *discrete* training at this filter's momentum converges."""
        return max_learning_rate(largest, self.n, self.c)

    def instability(self, largest: float) -> str | None:
        """Says that the learning rate is beyond the stable maximum for the largest eigenvalue; None if it is not."""
        limit = self.max_learning_rate(largest)
        if self.learning_rate <= limit:
            return None
        return (
            f"predict.learning_rate={self.learning_rate:g} is beyond the largest stable one, {limit:.6g}: a finite "
            f"network trained in discrete steps diverges{self._instability_detail()}. Lower it; times scale inversely."
        )

    def _instability_detail(self) -> str:
        return ", although these continuous-time predictions do not"

    @abstractmethod
    def _weights(self, eigenvalues: np.ndarray, time: float) -> np.ndarray: ...

    @abstractmethod
    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray: ...


@dataclass(frozen=True)
class GradientFlow(SpectralFilter):
    """Gradient flow: `phi = (1 - exp(-l s)) / l`, `s = rate t / (n c)`; `s` at `l = 0`, and `1 / l` at `t = inf`."""

    def _weights(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        s = self.scaled_time(time)
        if s == math.inf:
            return 1.0 / eigenvalues
        x = eigenvalues * s
        # expm1 keeps full relative accuracy for small x, where 1 - exp(-x) has lost all digits.
        return s * np.where(x > 0, -np.expm1(-x) / np.where(x > 0, x, 1.0), 1.0)

    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        s = self.scaled_time(time)
        return np.zeros_like(eigenvalues) if s == math.inf else np.exp(-eigenvalues * s)


@dataclass(frozen=True)
class GradientDescent(SpectralFilter):
    """Discrete gradient descent: `phi = (1 - (1 - rate l / (n c))^t) / l`, `t` a whole number of steps.

    Components with `rate l / (n c) > 2` diverge; their weights are cut at `DIVERGED` in size: check `instability`
    first.
    """

    def check_time(self, time: float) -> None:
        """Refuses negative times and parts of steps."""
        super().check_time(time)
        if math.isfinite(time) and time != int(time):
            raise ConfigError(f"predict.times={time}: discrete gradient descent takes whole steps")

    def _weights(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        x = self.scaled_time(1) * eigenvalues
        if time == math.inf:
            return np.where(x < 2, 1.0 / eigenvalues, DIVERGED)
        contracting = x < 1
        safe = np.where(contracting & (x > 0), x, 0.5)
        small = -np.expm1(time * np.log1p(-safe)) / safe
        small = np.where(x > 0, small, time)
        large = (1.0 - self._power(x, time)) / np.where(contracting, 1.0, x)
        return self.scaled_time(1) * np.clip(np.where(contracting, small, large), -DIVERGED, DIVERGED)

    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        x = self.scaled_time(1) * eigenvalues
        if time == math.inf:
            return np.where(x < 2, 0.0, DIVERGED)
        if time == 0:
            return np.ones_like(eigenvalues)
        inside = np.where(x < 1, np.maximum(x, 0.0), 0.0)
        return np.clip(np.where(x < 1, np.exp(time * np.log1p(-inside)), self._power(x, time)), -DIVERGED, DIVERGED)

    @staticmethod
    def _power(x: np.ndarray, time: float) -> np.ndarray:
        """`(1 - x)^time` for `x >= 1` without overflow; the cut lies beyond `DIVERGED`."""
        if time == 0:
            return np.ones_like(x)
        size = np.maximum(x - 1.0, 0.0)
        with np.errstate(divide="ignore"):
            exponent = np.minimum(time * np.log(size), 600.0)
        return np.exp(exponent) * (-1.0 if int(time) % 2 else 1.0)

    def _instability_detail(self) -> str:
        return ", and so do these predictions"


@dataclass(frozen=True)
class Momentum(SpectralFilter):
    """Heavy-ball momentum in continuous time: `f'' = -A grad - 2 gamma f'`.

    Time is `tau = sqrt(rate) t` and `2 gamma = (1 - momentum) / sqrt(rate)`; the network starts at rest. With `a = l
    / (n c)` each residual obeys `h'' + 2 gamma h' + a h = 0`, `h(0) = 1`, `h'(0) = 0`, solved in closed form:
    overdamped for `a < gamma^2`, else oscillating.

    Raises:
        ConfigError: if `momentum` is not in `[0, 1)`.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"predict.momentum={self.momentum} must be at least 0 and below 1")

    @property
    def gamma(self) -> float:
        """Half the friction, per unit of `tau`."""
        return (1.0 - self.momentum) / (2.0 * math.sqrt(self.learning_rate))

    def tau(self, time: float) -> float:
        """The equation's own time, `sqrt(rate) t`."""
        return math.sqrt(self.learning_rate) * time

    def scaled_time(self, time: float) -> float:
        """The filter's value at eigenvalue zero, `(x - 1 + exp(-x)) / (4 gamma^2 n c)` with `x = 2 gamma tau`."""
        tau, gamma = self.tau(time), self.gamma
        if tau == math.inf:
            return math.inf
        x = 2 * gamma * tau
        # (x - 1 + exp(-x)) / (2 gamma)^2, by its series where that cancels.
        value = tau**2 * (0.5 - x / 6 + x**2 / 24 - x**3 / 120) if x < 1e-3 else (x + math.expm1(-x)) / (2 * gamma) ** 2
        return value / (self.n * self.c)

    def max_learning_rate(self, largest: float) -> float:
        """The largest stable learning rate of discrete heavy-ball steps."""
        return max_learning_rate(largest, self.n, self.c, momentum=self.momentum)

    def _weights(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        if time == math.inf:
            return 1.0 / eigenvalues
        a = eigenvalues / (self.n * self.c)
        safe = np.where(a > 0, a, 1.0)
        learnt = np.where(a > 0, self._learnt(safe, self.tau(time)) / safe, 0.0) / (self.n * self.c)
        return np.where(a > 0, learnt, self.scaled_time(time))

    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        if time == math.inf:
            return np.zeros_like(eigenvalues)
        a = eigenvalues / (self.n * self.c)
        tau, gamma = self.tau(time), self.gamma
        kappa = np.sqrt(np.abs(gamma**2 - a))
        slow = a / (gamma + kappa)  # gamma - kappa without cancellation
        # exp(-gamma tau) cosh(kappa tau) with the exponents joined, since cosh alone overflows.
        over = 0.5 * (np.exp(-slow * tau) + np.exp(-(gamma + kappa) * tau)) + gamma * self._sinh(kappa, slow, tau)
        under = math.exp(-gamma * tau) * (np.cos(kappa * tau) + gamma * tau * np.sinc(kappa * tau / np.pi))
        return np.where(a < gamma**2, over, under)

    def _sinh(self, kappa: np.ndarray, slow: np.ndarray, tau: float) -> np.ndarray:
        """`exp(-gamma tau) sinh(kappa tau) / kappa` with its limit `tau exp(-gamma tau)`."""
        x = 2 * kappa * tau
        ratio = np.where(x > 0, -np.expm1(-x) / np.where(x > 0, x, 1.0), 1.0)
        return tau * np.exp(-slow * tau) * ratio

    def _learnt(self, a: np.ndarray, tau: float) -> np.ndarray:
        """`1 - h(tau)` to full relative accuracy for `a > 0`."""
        gamma = self.gamma
        kappa = np.sqrt(np.abs(gamma**2 - a))
        fast = gamma + kappa
        slow = a / fast
        # Far below critical damping: a divided difference of (1 - exp(-r tau)) / r, exact as slow -> 0.
        far = a * (-np.expm1(-slow * tau) / slow + np.expm1(-fast * tau) / fast) / np.where(kappa > 0, 2 * kappa, 1.0)
        direct = 1.0 - self._decay(a * self.n * self.c, tau / math.sqrt(self.learning_rate))
        value = np.where((a < gamma**2) & (kappa > 0.1 * gamma), far, direct)
        # Early on 1 - h is about a tau^2 / 2 and both forms cancel: Taylor series of the equation, terms below 0.5^k
        # / k!.
        early = (gamma + np.sqrt(a)) * tau < 0.5
        return np.where(early, self._series(np.where(early, a, 0.0), tau), value)

    def _series(self, a: np.ndarray, tau: float) -> np.ndarray:
        previous, current = np.ones_like(a), np.zeros_like(a)  # coefficients times tau^k
        total = np.zeros_like(a)
        for k in range(16):
            following = (-2 * self.gamma * tau * (k + 1) * current - a * tau**2 * previous) / ((k + 2) * (k + 1))
            total -= following
            previous, current = current, following
        return total


def make_filter(
    dynamics: str, n: int, c: int, *, learning_rate: float = 1.0, momentum: float = 0.9
) -> GradientFlow | GradientDescent | Momentum:
    """The filter named by `predict.dynamics`.

    Args:
        dynamics: `gradient_flow`, `gradient_descent` or `momentum`.
        n: training images.
        c: outputs.
        learning_rate: per step.
        momentum: read by `momentum` only.

    Raises:
        ConfigError: on an unknown name or an impossible value.
    """
    if dynamics == "gradient_flow":
        return GradientFlow(n, c, learning_rate)
    if dynamics == "gradient_descent":
        return GradientDescent(n, c, learning_rate)
    if dynamics == "momentum":
        return Momentum(n, c, learning_rate, momentum)
    raise ConfigError(f"predict.dynamics={dynamics!r} is not one of gradient_flow, gradient_descent, momentum")


def max_learning_rate(largest: float, n: int, c: int, *, momentum: float | None = None) -> float:
    """Largest stable learning rate of discrete training, `2 (1 + momentum) n c / l_max`; `inf` for a zero kernel.

    Args:
        largest: eigenvalue of the train-train kernel plus ridge.
        n: training images.
        c: outputs.
        momentum: of heavy-ball momentum; None and 0 are plain gradient descent.
    """
    if largest <= 0:
        return math.inf
    return 2.0 * (1.0 + (momentum or 0.0)) * n * c / float(largest)


def absolute_ridge(ridge: float, diagonal: np.ndarray, scale: str = "relative") -> float:
    """The number added to the diagonal: `ridge` itself, or times the mean of this kernel's own train diagonal.

    Raises:
        ConfigError: on a negative or non-finite ridge, or an unknown scale.
    """
    if not 0 <= ridge < math.inf:
        raise ConfigError(f"predict.ridges={ridge} must be at least 0 and finite")
    if scale not in ("relative", "absolute"):
        raise ConfigError(f"predict.ridge_scale={scale!r} is not one of relative, absolute")
    return float(ridge) if scale == "absolute" else float(ridge) * float(np.mean(diagonal, dtype=np.float64))
