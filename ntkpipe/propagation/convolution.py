"""How patterns over pixels fade in convolutional networks: Fourier modes of the averaging operator (arXiv:1806.05393).

Deviations of the covariances from their fixed point are averaged over filter taps in every layer: mode k is multiplied by
`chi lambda_k`, `lambda_k = sum over taps of v_tap exp(2 pi i k tap / extent)`. With uniform taps all modes but the constant one
die out at chi = 1 too; with one tap alone ("delta-orthogonal") none does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.correlation import depth_scale


def averaging_modes(extent: Sequence[int], window: Sequence[int], taps: str = "uniform") -> np.ndarray:
    """Eigenvalues of the averaging operator with circular padding.

    Args:
        extent: pixels along each axis.
        window: taps of the filter along each axis.
        taps: `uniform`, all of equal variance; or `delta`, the central one alone.

    Returns:
        `|lambda_k|`, of shape `extent`; 1 of the constant mode.

    Raises:
        ConfigError: if a number is below 1, or `taps` unknown.
    """
    if taps not in ("uniform", "delta"):
        raise ConfigError(f"taps={taps!r} is not one of uniform, delta")
    if len(extent) != len(window) or not all(n >= 1 for n in (*extent, *window)):
        raise ConfigError(
            f"extent={list(extent)} and window={list(window)} must be pixels along the same axes, at least 1"
        )
    modes = np.ones(())
    for pixels, size in zip(extent, window, strict=True):
        offsets = np.arange(size) - (size - 1) / 2 if taps == "uniform" else np.zeros(1)
        waves = np.exp(2j * np.pi * np.outer(np.arange(pixels), offsets) / pixels)
        modes = np.multiply.outer(modes, np.abs(waves.mean(axis=1)))
    return modes


def mode_depths(modes: np.ndarray, chi: float) -> np.ndarray:
    """Layers in which each mode falls to 1 / e, of the shape of `modes`.

    Args:
        modes: from `averaging_modes`.
        chi: slope of the correlation map at its fixed point.
    """
    return depth_scale(np.asarray(chi * modes))
