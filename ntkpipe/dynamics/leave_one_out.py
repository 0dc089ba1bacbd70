"""Leave-one-out residuals of kernel regression at t = inf, without refitting.

With the kernel plus ridge A and `u = A^-1 y`, the error of the prediction of image i from all others is `u_i / [A^-1]_ii`
(Rasmussen & Williams 2006, section 5.4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntkpipe.linalg.eigh import Eigensystem


def residuals_from_eigensystem(
    system: Eigensystem, targets: np.ndarray, ridges: Sequence[float], copies: int = 0
) -> np.ndarray:
    """The target `y_i` minus its prediction from the other images, for every ridge. It takes 2 n^2 flops per ridge.

    Args:
        system: eigendecomposition of the (n, n) train-train kernel, without ridge.
        targets: (n, c).
        ridges: R absolute ridges.
        copies: number of exact null directions from equal points. Without a ridge they are left out, which is right for every point that
            no other point equals.

    Returns:
        (R, n, c) float64; NaN for ridges with which the kernel is numerically singular, so that no residual is defined.
    """
    rotated, squared = system.vectors.T @ targets, system.vectors**2
    out = np.full((len(ridges), *targets.shape), np.nan)
    for j, ridge in enumerate(ridges):
        values, cutoff = system.shifted(ridge)
        kept = values > cutoff
        if np.count_nonzero(~kept) <= (copies if ridge == 0 else 0):
            inverse = np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)
            out[j] = (system.vectors @ (rotated * inverse[:, None])) / (squared @ inverse)[:, None]
    return out
