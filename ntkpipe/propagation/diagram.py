"""The phase diagram: depth scales over a grid of `w_std` and `b_std`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.correlation import correlations, depth_scale
from ntkpipe.propagation.maps import Maps
from ntkpipe.propagation.phase import check_deviations
from ntkpipe.propagation.variance import settled


@dataclass(frozen=True)
class PhaseDiagram:
    """The phase over a grid: arrays `(b_std, w_std)`, NaN where the variance has no limit.

    Args:
        w_std: standard deviations of the weights, `(w_std,)`.
        b_std: standard deviations of the biases, `(b_std,)`.
        q_star: limit of the variance; see `Phase` for this and the following quantities.
        chi_1: infinite where the nonlinearity jumps.
        c_star: see `Phase`.
        xi_c: infinite at criticality, and where the variance vanishes.
    """

    w_std: np.ndarray
    b_std: np.ndarray
    q_star: np.ndarray
    chi_1: np.ndarray
    c_star: np.ndarray
    xi_c: np.ndarray


def phase_diagram(maps: Maps, w_std: np.ndarray, b_std: np.ndarray, input_variance: float = 1.0) -> PhaseDiagram:
    """Compute the phase for every pair of standard deviations.

    Args:
        maps: maps of the nonlinearity.
        w_std: at least 2 ascending values above 0.
        b_std: at least 2 ascending values, at least 0.
        input_variance: see `phase`.

    Raises:
        ConfigError: if a standard deviation is out of range, or an axis has fewer than 2 points.
    """
    for name, axis in (("w_std", w_std), ("b_std", b_std)):
        if len(axis) < 2 or not np.all(np.diff(axis) > 0.0):
            raise ConfigError(
                f"a diagram needs at least 2 ascending values of {name}; for one network set kernel.{name}"
            )
    check_deviations(float(w_std[0]), float(b_std[0]), input_variance)
    w2, b2 = (part.ravel() for part in np.meshgrid(np.square(w_std), np.square(b_std)))
    q = settled(maps, w2, b2, w2 * input_variance + b2)
    made = correlations(maps, w2, q)
    parts = (np.where(np.isfinite(q), q, np.nan), made.chi_1, made.c_star, depth_scale(made.chi_c_star))
    return PhaseDiagram(w_std, b_std, *(part.reshape(len(b_std), len(w_std)) for part in parts))
