"""Decay of spatial patterns in convolutional networks: Fourier modes of the averaging operator (arXiv:1806.05393).

Every layer averages deviations of the covariances from their fixed point over the filter taps. It multiplies mode k by
`chi lambda_k` with `lambda_k = sum over taps of v_tap exp(2 pi i k tap / extent)`. With uniform taps, all modes but the
constant one decay even at chi = 1. With variance at the central tap only ("delta-orthogonal"), none decays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.propagation.correlation import depth_scale


def averaging_modes(extent: Sequence[int], window: Sequence[int], taps: str = "uniform") -> np.ndarray:
    """Return the absolute eigenvalues of the averaging operator with circular padding.

    Args:
        extent: number of pixels along each axis.
        window: number of filter taps along each axis.
        taps: `uniform` gives all taps equal variance; `delta` gives all variance to the central tap.

    Returns:
        `|lambda_k|`, of shape `extent`; it is 1 for the constant mode.

    Raises:
        ConfigError: if a number is below 1, or `taps` is unknown.
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
    """Return the number of layers in which each mode falls to 1 / e, of the shape of `modes`.

    Args:
        modes: from `averaging_modes`.
        chi: slope of the correlation map at its fixed point.
    """
    return depth_scale(np.asarray(chi * modes))
