"""Spectral filters: the effect of training for a given time on each eigenvalue of the kernel.

With squared loss `||f - y||^2 / (2 n c)`, an infinitely wide network is linear in its parameters (Lee et al. 2019,
arXiv:1902.06720). Its prediction is `f0_* + T_* phi(A) (y - f0)`, with `A` the train-train kernel plus ridge. The
function `phi` is the filter. All computations are in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError

# Limit on the size of a diverging filter, so that products with kernel rows stay finite. Variances contain squares of filters, and
# norms take their squares again, so the fourth power is finite too. Such values are not meaningful predictions.
DIVERGED = 1e60
# Products of eigenvalues and times are cut here: they may overflow, and every exponential of them has long reached its limit.
_ENDED = 1e300
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class SpectralFilter(ABC):
    """Maps eigenvalues and a training time to dual weights.

    Args:
        n: number of training images.
        c: number of outputs (columns of the targets).
        learning_rate: learning rate per step for the loss `||f - y||^2 / (2 n c)`.

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
            eigenvalues: eigenvalues of the train-train kernel plus ridge, of any shape. Slightly negative ones (rounding) count as
                zero.
            time: time in steps; may be `inf`.
            cutoff: eigenvalues at or below it are null (`null_cutoff`). A null direction has the regular limit of
                `phi` while this is below `1 / cutoff`. Afterwards it is left out (weight 0): the kernel between
                train and test vanishes there, so its weight would only amplify rounding.

        Returns:
            Float64, the shape of `eigenvalues`, always finite.

        Raises:
            ConfigError: if `time` is negative, NaN, or not a whole number of discrete steps.
        """
        drop, safe = self._checked(eigenvalues, time, cutoff)
        return np.where(drop, 0.0, self._weights(safe, float(time)))

    def decay(self, eigenvalues: np.ndarray, time: float, *, cutoff: float = 0.0) -> np.ndarray:
        """The share of a target component that is not learnt yet, `1 - l phi(l)`; 1 if it is left out. See `weights`."""
        drop, safe = self._checked(eigenvalues, time, cutoff)
        return np.where(drop, 1.0, self._decay(safe, float(time)))

    def _checked(self, eigenvalues: np.ndarray, time: float, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
        """The mask of `unlearnt`, and the eigenvalues in float64: at least 0, and 1 where they are left out."""
        self.check_time(time)
        eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
        drop = self.unlearnt(eigenvalues, time, cutoff=cutoff)
        return drop, np.where(drop, 1.0, np.maximum(eigenvalues, 0.0))

    def unlearnt(self, eigenvalues: np.ndarray, time: float, *, cutoff: float = 0.0) -> np.ndarray:
        """Boolean mask of the null eigenvalues that `weights` leaves out at this time. Callers should warn if there are any."""
        limit = self.scaled_time(time)
        if limit == math.inf or limit * cutoff > 1.0:
            return np.asarray(eigenvalues) <= cutoff
        return np.zeros(np.shape(eigenvalues), dtype=bool)

    def check_time(self, time: float) -> None:
        """Check that this filter is defined at a time.

        Raises:
            ConfigError: if it is not.
        """
        if not time >= 0:
            raise ConfigError(f"predict.times={time}: a training time is at least 0")

    def scaled_time(self, time: float) -> float:
        """The value of the filter at eigenvalue zero. For gradient flow it is `s = rate * t / (n c)`; it is `inf` at `inf`."""
        return self.learning_rate * time / (self.n * self.c)

    @property
    def scaled_rate(self) -> float:
        """The scaled learning rate `rate / (n c)`. Times the largest eigenvalue, it is the rate in units of the inverse curvature."""
        return self.learning_rate / (self.n * self.c)

    def max_learning_rate(self, largest: float) -> float:
        """The largest learning rate for which *discrete* training with this filter's momentum converges."""
        return max_learning_rate(largest, self.n, self.c)

    def instability(self, largest: float) -> str | None:
        """A warning if the learning rate is above the stable maximum for the largest eigenvalue; None otherwise."""
        limit = self.max_learning_rate(largest)
        if self.learning_rate <= limit:
            return None
        return (
            f"predict.learning_rate={self.learning_rate:g} is above the largest stable learning rate, {limit:.6g}: a finite "
            f"network trained in discrete steps diverges{self._instability_detail()}. Set a smaller rate; "
            "a tenth of the rate takes ten times the steps."
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
        with np.errstate(over="ignore"):  # then the end of training is reached
            x = eigenvalues * s
        # expm1 keeps full relative accuracy for small x, where 1 - exp(-x) has lost all digits.
        learnt = -np.expm1(-x)
        early = s * np.where(x > 0, learnt / np.where(x > 0, x, 1.0), 1.0)
        return np.where(x > 1, learnt / np.where(x > 1, eigenvalues, 1.0), early)

    def _decay(self, eigenvalues: np.ndarray, time: float) -> np.ndarray:
        s = self.scaled_time(time)
        with np.errstate(over="ignore"):
            return np.zeros_like(eigenvalues) if s == math.inf else np.exp(-eigenvalues * s)


@dataclass(frozen=True)
class GradientDescent(SpectralFilter):
    """Discrete gradient descent: `phi = (1 - (1 - rate l / (n c))^t) / l` for a whole number `t` of steps.

    Components with `rate l / (n c) > 2` diverge. Their weights are limited to `DIVERGED` in size. Check `instability`
    first.
    """

    def check_time(self, time: float) -> None:
        """Check that a time is a whole number of steps, at least 0; see `SpectralFilter.check_time`."""
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
        """`(1 - x)^time` for `x >= 1` without overflow. Its limit is above `DIVERGED`."""
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

    Time is `tau = sqrt(rate) t` and `2 gamma = (1 - momentum) / sqrt(rate)`. The network starts at rest. With `a = l
    / (n c)` each residual satisfies `h'' + 2 gamma h' + a h = 0`, `h(0) = 1`, `h'(0) = 0`. The solution has a closed form, which
    is overdamped for `a < gamma^2` and oscillates otherwise.

    Raises:
        ConfigError: if `momentum` is not in `[0, 1)`.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)

    @property
    def gamma(self) -> float:
        """Half the friction, per unit of `tau`."""
        return (1.0 - self.momentum) / (2.0 * math.sqrt(self.learning_rate))

    def tau(self, time: float) -> float:
        """The time of the equation, `sqrt(rate) t`."""
        return math.sqrt(self.learning_rate) * time

    def scaled_time(self, time: float) -> float:
        """The value of the filter at eigenvalue zero, `(x - 1 + exp(-x)) / (4 gamma^2 n c)` with `x = 2 gamma tau`."""
        tau, gamma = self.tau(time), self.gamma
        if tau == math.inf:
            return math.inf
        x = 2 * gamma * tau
        # (x - 1 + exp(-x)) / (2 gamma)^2. For small x its series avoids cancellation.
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
        with np.errstate(over="ignore"):
            # exp(-gamma tau) cosh(kappa tau) with combined exponents, because cosh alone overflows.
            over = 0.5 * (np.exp(-slow * tau) + np.exp(-(gamma + kappa) * tau)) + gamma * self._sinh(kappa, slow, tau)
            damping, phase = min(gamma * tau, _ENDED), np.minimum(kappa * tau, _ENDED)
        under = math.exp(-damping) * (np.cos(phase) + damping * np.sinc(phase / np.pi))
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
        with np.errstate(over="ignore"):
            early = (gamma + np.sqrt(a)) * tau < 0.5
            first, last = np.expm1(-slow * tau), np.expm1(-fast * tau)
        # For strong overdamping: a divided difference of (1 - exp(-r tau)) / r, which is exact as slow -> 0.
        far = a * (-first / slow + last / fast) / np.where(kappa > 0, 2 * kappa, 1.0)
        direct = 1.0 - self._decay(a * self.n * self.c, tau / math.sqrt(self.learning_rate))
        value = np.where((a < gamma**2) & (kappa > 0.1 * gamma), far, direct)
        # At early times 1 - h is about a tau^2 / 2, and both forms suffer from cancellation. The Taylor series of the equation has terms
        # below 0.5^k / k!. At late times the powers of tau would overflow.
        return np.where(early, self._series(np.where(early, a, 0.0), tau), value) if early.any() else value

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
    """The filter of `predict.dynamics`.

    Args:
        dynamics: `gradient_flow`, `gradient_descent` or `momentum`.
        n: number of training images.
        c: number of outputs.
        learning_rate: learning rate per step.
        momentum: momentum coefficient, only for `momentum`.

    Raises:
        ConfigError: if the name is unknown or a value is invalid.
    """
    if dynamics == "gradient_flow":
        return GradientFlow(n, c, learning_rate)
    if dynamics == "gradient_descent":
        return GradientDescent(n, c, learning_rate)
    if dynamics == "momentum":
        return Momentum(n, c, learning_rate, momentum)
    raise ConfigError(f"predict.dynamics={dynamics!r} is not one of gradient_flow, gradient_descent, momentum")


def check_momentum(momentum: float) -> None:
    """Check a momentum.

    Raises:
        ConfigError: if it is not in `[0, 1)`.
    """
    if not 0 <= momentum < 1:
        raise ConfigError(f"predict.momentum={momentum} must be at least 0 and below 1")


def max_learning_rate(largest: float, n: int, c: int, *, momentum: float | None = None) -> float:
    """Largest stable learning rate of discrete training, `2 (1 + momentum) n c / l_max`; `inf` for a zero kernel.

    Args:
        largest: largest eigenvalue of the train-train kernel plus ridge.
        n: number of training images.
        c: number of outputs.
        momentum: coefficient of heavy-ball momentum; None and 0 are plain gradient descent.
    """
    if largest <= 0:
        return math.inf
    return 2.0 * (1.0 + (momentum or 0.0)) * n * c / float(largest)


def absolute_ridge(ridge: float, diagonal: np.ndarray, scale: str = "relative") -> float:
    """The number that is added to the diagonal: `ridge`, or `ridge` times the mean of the kernel's train diagonal.

    Raises:
        ConfigError: if the ridge is negative or not finite, or the scale is unknown.
    """
    if not 0 <= ridge < math.inf:
        raise ConfigError(f"predict.ridges={ridge} must be at least 0 and finite")
    if scale not in ("relative", "absolute"):
        raise ConfigError(f"predict.ridge_scale={scale!r} is not one of relative, absolute")
    return float(ridge) if scale == "absolute" else float(ridge) * float(np.mean(diagonal, dtype=np.float64))
