"""Gradient flow as a sum of shifted inverses: `phi_s(A) b = Re sum_k c_k (A + z_k / s)^-1 b`.

This is the midpoint rule on Talbot's contour around the negative axis, with the parameters of Trefethen, Weideman &
Schmelzer 2006, doi:10.1007/s10543-006-0077-9, for `phi(x) = (1 - exp(-x)) / x = (1 / 2 pi i) int exp(z) / (z (z + x)) dz`.
Conjugate nodes are combined. With 14 nodes the error is `min(2e-14, 1e-14 / x)` for every x from 0 to 1e14. With two nodes of
the full contour less it is 3.9 times larger, and with more nodes rounding errors grow.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

NODES = 14
# Largest errors of phi, of sqrt(x) phi, and of exp(-x) over x >= 0: twice the measured values.
PHI_ERROR, ROOT_ERROR, DECAY_ERROR = 2.5e-14, 4e-15, 2e-14


@lru_cache(maxsize=1)
def contour() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes z, the weights of `phi` and those of `exp(-x)`: `phi(x) ~ Re sum c / (z + x)`. Each is (NODES,) complex."""
    n = 2 * NODES
    theta = (2 * np.arange(NODES, n) + 1) * np.pi / n - np.pi
    z = n * (0.5017 * theta / np.tan(0.6407 * theta) - 0.6122 + 0.2645j * theta)
    slope = n * (0.5017 / np.tan(0.6407 * theta) - 0.5017 * 0.6407 * theta / np.sin(0.6407 * theta) ** 2 + 0.2645j)
    decay = 2 * np.exp(z) * slope / (1j * n)
    return z, decay / z, decay


def flow_shifts(scaled_time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shifts, and the weights of `1 / (l + shift)`, for `phi_s(l) = (1 - exp(-l s)) / l` and for `exp(-l s)`.

    Args:
        scaled_time: s, positive and finite.
    """
    z, phi, decay = contour()
    return z / scaled_time, phi, decay / scaled_time
