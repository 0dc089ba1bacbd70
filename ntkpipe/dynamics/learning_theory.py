"""Learning curves of kernel regression from a spectrum: predicted test and training errors for any training-set size.

The operator of the kernel has eigenvalues l_i, the target has coefficients v_i, and n points are drawn at random. With the
absolute ridge d and the noise variance s2, kappa solves `sum l_i / (l_i + kappa) + d / kappa = n`. Then, with L_i = l_i / (l_i + kappa)
and E0 = n / (n - sum L_i^2),

    test MSE  = E0 (sum (1 - L_i)^2 v_i^2 + s2)      (against noisy targets)
    train MSE = (d / (n kappa))^2 test MSE

(arXiv:2110.03922, arXiv:2002.02561, arXiv:2006.13198). The theory predicts squared error, not accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class LearningTheory:
    """The prediction for one training-set size.

    Args:
        kappa: the effective ridge. Modes with l_i far above it are learned; 0 if every mode is learned.
        E0: factor of overfitting, at least 1; infinite at the interpolation threshold.
        test_mse: expected squared error per output on new points, whose targets have the same noise.
        train_mse: expected squared error per output on the training points.
        learnability: learned share of the target's power, `sum L_i v_i^2 / sum v_i^2`; 0 for a zero target.
        effective_dimension: `sum L_i`, the number of learned modes.
    """

    kappa: float
    E0: float
    test_mse: float
    train_mse: float
    learnability: float
    effective_dimension: float


def learning_theory(
    eigenvalues: np.ndarray, coefficients: np.ndarray, n: float, ridge: float = 0.0, noise: float = 0.0
) -> LearningTheory:
    """Predicted errors of kernel regression on n random points.

    Args:
        eigenvalues: eigenvalues of the kernel's operator, `(modes,)`, not negative: those of a Gram matrix of M points divided by M.
        coefficients: coefficients of the target, `(modes,)`, or `(modes, outputs)`: squares are averaged over outputs.
        n: training points, above 0.
        ridge: absolute, added to the diagonal of the Gram matrix.
        noise: variance of the targets' noise.

    Raises:
        ConfigError: if an argument is negative or not finite, or shapes differ.
    """
    spectrum, power = _checked(eigenvalues, coefficients, n, ridge, noise)
    return theory_of_measure(spectrum, np.ones_like(spectrum), power, n, ridge, noise)


def theory_of_measure(
    spectrum: np.ndarray, counts: np.ndarray, power: np.ndarray, n: float, ridge: float = 0.0, noise: float = 0.0
) -> LearningTheory:
    """The result of `learning_theory` for eigenvalues with multiplicities. Arguments are not checked.

    Args:
        spectrum: eigenvalues of the operator, `(modes,)`, not negative.
        counts: number of modes with each eigenvalue, `(modes,)`, any numbers from 0.
        power: squares of the target's coefficients, mean over outputs and sum over the modes of each eigenvalue, `(modes,)`.
        n: training points.
        ridge: absolute.
        noise: variance.
    """
    kappa = _effective_ridge(spectrum, counts, n, ridge)
    if kappa == 0.0:  # every mode is learnt, without regularisation
        learnt = (spectrum > 0.0).astype(float)
        dimension = float(np.sum(counts * learnt))
        missed, free, share = 1.0 - learnt, n - dimension, 1.0 - dimension / n
    else:
        learnt, missed = spectrum / (spectrum + kappa), kappa / (spectrum + kappa)
        dimension = float(np.sum(counts * learnt))
        # n - sum L^2 without cancellation.
        free, share = ridge / kappa + float(np.sum(counts * learnt * missed)), ridge / (n * kappa)
    overfitting = n / free if free > 0.0 else math.inf
    risk = float(np.sum(missed**2 * power)) + noise
    test = overfitting * risk if risk > 0.0 else 0.0
    train = share**2 * test if share > 0.0 else 0.0
    total = float(power.sum())
    learnability = float(np.sum(learnt * power)) / total if total > 0.0 else 0.0
    return LearningTheory(kappa, overfitting, test, train, learnability, dimension)


def _checked(
    eigenvalues: np.ndarray, coefficients: np.ndarray, n: float, ridge: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    spectrum = np.asarray(eigenvalues, np.float64)
    values = np.asarray(coefficients, np.float64)
    if spectrum.ndim != 1 or values.ndim not in (1, 2) or len(values) != len(spectrum) or not len(spectrum):
        raise ConfigError(
            f"eigenvalues {spectrum.shape} and coefficients {values.shape} must be (modes,) and (modes,) or (modes, outputs)"
        )
    if not (np.isfinite(spectrum).all() and np.isfinite(values).all()):
        raise ConfigError("eigenvalues and coefficients must be finite: remove the modes that are not")
    if spectrum.min() < 0.0:
        raise ConfigError(
            f"the smallest eigenvalue is {spectrum.min():.3g}: a kernel has no negative eigenvalues. Set those from rounding to 0"
        )
    for name, value, least in (("ridge", ridge, "at least 0"), ("noise", noise, "at least 0"), ("n", n, "above 0")):
        if not math.isfinite(value) or value < 0.0 or (name == "n" and value == 0.0):
            raise ConfigError(f"{name}={value!r} must be a finite number, {least}")
    power = np.square(values)
    return spectrum, power if power.ndim == 1 else power.mean(axis=1)


def _effective_ridge(spectrum: np.ndarray, counts: np.ndarray, n: float, ridge: float) -> float:
    """The root kappa; 0 if there are at most as many modes as points, and no ridge."""
    positive, many = spectrum[spectrum > 0.0], counts[spectrum > 0.0]
    if ridge == 0.0 and n >= float(many.sum()):
        return 0.0

    def excess(log_kappa: float) -> float:
        kappa = math.exp(log_kappa)
        return float(np.sum(many * positive / (positive + kappa))) + ridge / kappa - n

    high = math.log((float(np.sum(many * positive)) + ridge) / n)  # L_i <= l_i / kappa
    step = 1.0
    low = high - step
    while excess(low) < 0.0:
        step *= 2.0
        low -= step
        if low < -700.0:  # kappa is below the smallest number, so it counts as 0
            return 0.0
    high += 1e-9  # if all eigenvalues are equal, the bound may be the root itself
    return math.exp(float(brentq(excess, low, high, xtol=1e-15, rtol=1e-15)))  # type: ignore[arg-type]
