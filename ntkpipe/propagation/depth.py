"""Signals layer by layer: variance, correlation and the NTK of two inputs, and how n equally distant ones are conditioned."""

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
    """Of layers 1 to `depth`, arrays `(depth,)`: after each linear layer.

    Args:
        variance: q, which has settled from the first layer on.
        gap: `1 - c` of the correlation c.
        ntk: of an input with itself.
        ntk_gap: by how much the NTK of both inputs is smaller.
    """

    variance: np.ndarray
    gap: np.ndarray
    ntk: np.ndarray
    ntk_gap: np.ndarray

    @property
    def correlation(self) -> np.ndarray:
        """Of both inputs, c."""
        return 1.0 - self.gap

    @property
    def ntk_ratio(self) -> np.ndarray:
        """The NTK of both inputs over that of one: 1/3 at criticality of smooth nonlinearities, 1/4 of ReLU's."""
        return 1.0 - self.ntk_gap / self.ntk

    def condition(self, inputs: int) -> np.ndarray:
        """Condition number of the NTK of so many inputs, any two as far apart as these; infinite where they coincide."""
        with np.errstate(divide="ignore"):
            return inputs * (self.ntk / self.ntk_gap - 1.0) + 1.0


def depths(maps: Maps, w_std: float, q_star: float, correlation: float, depth: int) -> Depths:
    """Two inputs of the settled variance on their way down, in the `ntk` parameterisation.

    Args:
        maps: of the nonlinearity.
        w_std: of the weights.
        q_star: the settled variance, above 0.
        correlation: after the first layer, -1 to 1.
        depth: linear layers.

    Raises:
        ConfigError: if the correlation or the depth is out of range, or the variance vanishes.
    """
    if not -1.0 <= correlation <= 1.0:
        raise ConfigError(f"correlation={correlation} must be from -1 to 1")
    if depth < 1:
        raise ConfigError(f"depth={depth} must be at least 1")
    if not (math.isfinite(q_star) and q_star > 0.0):
        raise ConfigError(f"signals of variance {q_star:g} have no correlations: set b_std above 0, or a larger w_std")
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
    """Layers after which rounding is all that is left of a correlation's deviation: 16 xi in float32, 36 xi in float64."""
    return xi_c * -math.log(_EPS[dtype])


def depth_that_splits(chi_1: float, dtype: str, relative: float = 1e-2) -> float:
    """Layers after which an input and its duplicate elsewhere, which differ by rounding, are apart; infinite unless chaotic.

    Args:
        chi_1: by which the difference grows from layer to layer.
        dtype: `float32` or `float64`.
        relative: difference of the kernels that is called apart.
    """
    return math.log(relative / _EPS[dtype]) / math.log(chi_1) if 1.0 < chi_1 < math.inf else math.inf
