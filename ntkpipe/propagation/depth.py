"""Variance, correlation and NTK of two inputs layer by layer, and condition numbers for n equally distant inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.correlation import gap_map
from ntkpipe.propagation.maps import Maps

_EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


@dataclass(frozen=True)
class Depths:
    """Quantities after each of the linear layers 1 to `depth`, arrays `(depth,)`.

    Args:
        variance: q, which is at its fixed point from the first layer on.
        gap: `1 - c` of the correlation c.
        ntk: NTK of an input with itself.
        ntk_gap: NTK of an input with itself minus the NTK of the two inputs.
    """

    variance: np.ndarray
    gap: np.ndarray
    ntk: np.ndarray
    ntk_gap: np.ndarray

    @property
    def correlation(self) -> np.ndarray:
        """Correlation c of the two inputs."""
        return 1.0 - self.gap

    @property
    def ntk_ratio(self) -> np.ndarray:
        """NTK of the two inputs divided by that of one: at criticality 1/3 for smooth nonlinearities, and 1/4 for
        ReLU.
        """
        return 1.0 - self.ntk_gap / self.ntk

    def condition(self, inputs: int) -> np.ndarray:
        """Return the condition number of the NTK of `inputs` inputs that all have this pairwise distance.

        It is infinite where the inputs coincide.
        """
        with np.errstate(divide="ignore"):
            return inputs * (self.ntk / self.ntk_gap - 1.0) + 1.0


def depths(maps: Maps, w_std: float, q_star: float, correlation: float, depth: int) -> Depths:
    """Follow two inputs through the layers in the `ntk` parameterisation.

    Args:
        maps: maps of the nonlinearity.
        w_std: standard deviation of the weights.
        q_star: fixed point of the variance, above 0.
        correlation: correlation after the first layer, -1 to 1.
        depth: number of linear layers.

    Raises:
        ConfigError: if the correlation or the depth is out of range, or the variance is 0.
    """
    if not -1.0 <= correlation <= 1.0:
        raise ConfigError(f"correlation={correlation} must be from -1 to 1")
    if depth < 1:
        raise ConfigError(f"depth={depth} must be at least 1")
    if not (math.isfinite(q_star) and q_star > 0.0):
        raise ConfigError(f"signals of variance {q_star:g} have no correlation: set b_std above 0, or a larger w_std")
    w2, q = np.array([w_std**2]), np.array([q_star])
    following = gap_map(maps, w2, q)
    chi_1 = float(w2[0] * maps.squares(q).dot[0])
    gaps, ntks, ntk_gaps = np.empty(depth), np.empty(depth), np.empty(depth)
    gap, ntk, ntk_gap = 1.0 - correlation, q_star, q_star * (1.0 - correlation)
    for k in range(depth):
        gaps[k], ntks[k], ntk_gaps[k] = gap, ntk, ntk_gap
        after, slope = (float(part[0]) for part in following(np.array([gap])))
        # chi_1 T - slope (T - D)
        gap, ntk, ntk_gap = after, q_star + chi_1 * ntk, q_star * after + (chi_1 - slope) * ntk + slope * ntk_gap
        if not math.isfinite(ntk):
            gaps, ntks, ntk_gaps = gaps[: k + 1], ntks[: k + 1], ntk_gaps[: k + 1]
            break
    return Depths(np.full(len(gaps), q_star), gaps, ntks, ntk_gaps)


def depth_that_loses(xi_c: float, dtype: str) -> float:
    """Return the depth at which deviations of the correlation fall below rounding (half the distance of 1 to the next
    number): 16.6 xi in float32, 36.7 xi in float64.
    """
    return xi_c * -math.log(0.5 * _EPS[dtype])


def depth_that_splits(chi_1: float, dtype: str, relative: float = 1e-2) -> float:
    """Return the depth at which rounding makes equal inputs different; it is infinite unless the network is chaotic.

    Args:
        chi_1: factor by which the difference grows in each layer.
        dtype: `float32` or `float64`.
        relative: relative difference of the kernels that counts as different.
    """
    return math.log(relative / _EPS[dtype]) / math.log(chi_1) if 1.0 < chi_1 < math.inf else math.inf
