"""Turns raw pixels into the inputs of a kernel, in float64 and in chunks of bounded memory.

The steps are, in order: scaling of uint8 to 0..1, standardisation per channel (with statistics at full resolution),
block mean, unit norm, ZCA whitening.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import row_chunks
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.images import as_planes
from ntkpipe.kernels.sequences import filled, lengths_of

_log = logging.getLogger(__name__)

# The version is part of every data fingerprint. Raise it when prepared values change by more than rounding.
PREPROCESSING_VERSION = 1


@dataclass(frozen=True)
class Whitening:
    """The map `x -> (x - mean) @ matrix` on flattened images, with `mean` `(d,)` and `matrix` `(d, d)` float64."""

    mean: np.ndarray
    matrix: np.ndarray
    mean_eigenvalue: float


@dataclass(frozen=True)
class Preprocessing:
    """A fitted chain of steps. `apply` maps raw images to prepared images.

    Args:
        mean: `(c,)` mean of the scaled pixels per channel; None without standardisation.
        std: `(c,)` standard deviation per channel, 1 where a channel is constant; None without standardisation.
        downsample: edge of the blocks of the block mean, in pixels.
        unit_norm: whether every image is scaled to unit Euclidean norm.
        whitening: the ZCA whitening; None without whitening.
        rows: number of training images behind the statistics.
    """

    mean: np.ndarray | None
    std: np.ndarray | None
    downsample: int
    unit_norm: bool
    whitening: Whitening | None
    rows: int

    @classmethod
    def stored(cls, summary: dict[str, Any]) -> Preprocessing:
        """Make the steps from a `summary`.

        Raises:
            DataError: if they include whitening, whose matrix is not in a summary.
        """
        if summary.get("zca_mean_eigenvalue") is not None:
            raise DataError(
                "the training points are whitened (data.zca), and the whitening is not stored: predict with a run, "
                "which reads its raw data again (ntkpipe predict run_dir=DIR data.new=FILE, "
                "nk.open_run(DIR).predict(x)), or train without data.zca"
            )
        mean, std = summary["mean"], summary["std"]
        return cls(
            None if mean is None else np.array(mean),
            None if std is None else np.array(std),
            int(summary["downsample"]),
            bool(summary["unit_norm"]),
            None,
            int(summary["statistics_rows"]),
        )

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Return prepared images `(n, h / downsample, w / downsample, c)` float64 of raw images `(n, h, w, c)`.

        An image of zeros stays zero under `unit_norm`.
        """
        # Block means commute with the affine standardisation, and taking them first leaves less to standardise.
        x = block_mean(_scaled(raw), self.downsample)
        if self.mean is not None and self.std is not None:
            x -= self.mean
            x /= self.std
        if self.unit_norm:
            present = as_planes(filled(x))
            norms = np.sqrt(np.einsum("nhwc,nhwc->n", present, present))
            x /= np.where(norms > 0, norms, 1.0).reshape(-1, *(1,) * (x.ndim - 1))
        if self.whitening is not None:
            flat = x.reshape(x.shape[0], -1)
            flat -= self.whitening.mean
            x = (flat @ self.whitening.matrix).reshape(x.shape)
        return x

    def transform(self, raw: np.ndarray, order: np.ndarray, dtype: str) -> np.ndarray:
        """Prepare the images `raw[order]` a chunk at a time, in `dtype`. Values that overflow it become infinite."""
        shape = output_shape(raw.shape[1:], self.downsample)
        out = np.empty((order.shape[0], *shape), dtype=dtype)
        with np.errstate(over="ignore"):
            for rows in row_chunks(order.shape[0], raw[0].size):
                out[rows] = self.apply(raw[order[rows]])
        return out

    def summary(self) -> dict[str, Any]:
        """Return the steps and their statistics as plain JSON values."""
        return {
            "version": PREPROCESSING_VERSION,
            "mean": None if self.mean is None else self.mean.tolist(),
            "std": None if self.std is None else self.std.tolist(),
            "downsample": self.downsample,
            "unit_norm": self.unit_norm,
            "zca_mean_eigenvalue": None if self.whitening is None else self.whitening.mean_eigenvalue,
            "statistics_rows": self.rows,
        }


def output_shape(shape: tuple[int, ...], downsample: int) -> tuple[int, ...]:
    """Return the shape `(h, w, c)` of an image after the block mean. Volumes `(d, h, w, c)` keep their shape.

    Raises:
        ConfigError: if `downsample` does not divide height and width, or is above 1 for volumes.
    """
    if len(shape) == 4:
        if downsample > 1:
            raise ConfigError(f"data.downsample={downsample} is for images, and these are volumes: leave it out")
        return shape
    h, w, c = shape
    if h % downsample or w % downsample:
        raise ConfigError(f"data.downsample={downsample} must divide the height and width of the images, {h} x {w}")
    return h // downsample, w // downsample, c


def block_mean(x: np.ndarray, edge: int) -> np.ndarray:
    """Average blocks of `edge` x `edge` pixels, which maps `(n, h, w, c)` to `(n, h / edge, w / edge, c)`.

    Raises:
        ConfigError: if `edge` does not divide height and width.
    """
    shape = output_shape(x.shape[1:], edge)
    if edge == 1:
        return x
    h, w, c = shape
    return x.reshape(-1, h, edge, w, edge, c).mean(axis=(2, 4))


def fit(raw: np.ndarray, rows: np.ndarray, config: DataConfig, fixed: np.ndarray | None = None) -> Preprocessing:
    """Fit the steps to the training images `raw[rows]`.

    Args:
        raw: `(n, h, w, c)`, uint8 or float.
        rows: `(m,)` row numbers. They are sorted, so that statistics do not depend on the seed of the stored order.
        config: the steps to take.
        fixed: `(c,)` bool mask of channels that standardisation leaves unchanged.

    Raises:
        ConfigError: if `downsample` does not divide the images, or the covariance of a whitening is singular. Also if
            sequences of different lengths would be downsampled or whitened.
        DataError: if all images are equal and whitening is set, or statistics overflow.
    """
    output_shape(raw.shape[1:], config.downsample)
    if (config.downsample > 1 or config.zca is not None) and lengths_of(raw) is not None:
        raise ConfigError(
            "sequences of different lengths cannot be downsampled or whitened: leave data.downsample and data.zca out"
        )
    mean = std = None
    if config.standardize == "channel":
        mean, std = channel_statistics(raw, rows)
        if fixed is not None:
            mean, std = np.where(fixed, 0.0, mean), np.where(fixed, 1.0, std)
    plain = Preprocessing(mean, std, config.downsample, config.unit_norm, None, rows.shape[0])
    if config.zca is None:
        return plain
    whitening = _fit_zca(raw, rows, plain, config.zca)
    return Preprocessing(mean, std, config.downsample, config.unit_norm, whitening, rows.shape[0])


def channel_statistics(raw: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation (ddof 0) of every channel over all pixels of `raw[rows]`.

    A constant channel gets standard deviation 1, with a warning, so that it becomes zero instead of NaN.

    Args:
        raw: `(n, h, w, c)`; uint8 is scaled to 0..1.
        rows: `(m,)` row numbers.

    Returns:
        Mean and standard deviation, `(c,)` float64 each.

    Raises:
        DataError: if the pixels are so large that their squares overflow.
    """
    if raw.dtype == np.uint8:
        mean, std, low, high = _histogram_moments(raw, rows)
    else:
        mean, std, low, high = _moments(raw, rows)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise DataError("values are so large that their variance overflows: rescale them")
    constant = low == high
    if constant.any():
        # Use the exact value: the rounded mean would leave a small residue instead of zero.
        mean = np.where(constant, low, mean)
        std = np.where(constant, 1.0, std)
        _log.warning(
            "channels %s are constant over the training points: centred, not scaled",
            ", ".join(map(str, np.flatnonzero(constant)[:10])) + (", ..." if constant.sum() > 10 else ""),
        )
    return mean, std


def _histogram_moments(raw: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, standard deviation, least and largest value per channel of uint8 pixels / 255.

    They follow from integer counts, so rounding does not grow with the number of pixels, and the order of the images
    does not matter. Summing 5 million CIFAR-10 pixels one by one in float64 gives an error of 5e-12.
    """
    channels = raw.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for part in row_chunks(rows.shape[0], raw[0].size):
        x = raw[rows[part]].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(x[:, channel], minlength=256)
    levels = np.arange(256)
    total = counts.sum(axis=1)
    mean = (counts @ levels) / total / 255.0
    std = np.sqrt((counts * (levels / 255.0 - mean[:, None]) ** 2).sum(axis=1) / total)
    present = np.where(counts > 0, levels, -1)
    low, high = 255 - np.where(counts > 0, 255 - levels, -1).max(axis=1), present.max(axis=1)
    return mean, std, low / 255.0, high / 255.0


def _moments(raw: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, standard deviation, least and largest value per channel of float pixels."""
    channels = raw.shape[-1]
    lengths = lengths_of(raw)
    positions = rows.shape[0] * raw.shape[1] if lengths is None else int(lengths[rows].sum())
    count = positions * math.prod(raw.shape[2:-1])
    total, squares = np.zeros(channels), np.zeros(channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def chunks() -> Iterator[np.ndarray]:
        for part in row_chunks(rows.shape[0], raw[0].size):
            # Channels come first, because NumPy sums pairwise only along a contiguous axis.
            x = _scaled(raw[rows[part]]).reshape(-1, channels)
            x = x if lengths is None else x[~np.isnan(x[:, 0])]
            yield np.ascontiguousarray(x.T)

    with np.errstate(over="ignore", invalid="ignore"):
        for x in chunks():
            total += x.sum(axis=1)
            low, high = np.minimum(low, x.min(axis=1)), np.maximum(high, x.max(axis=1))
        mean = total / count
        # The second pass uses centred pixels, because the one-pass formula E[x^2] - E[x]^2 cancels when |mean| >> std.
        for x in chunks():
            x -= mean[:, None]
            squares += (x * x).sum(axis=1)
    return mean, np.sqrt(squares / count), low, high


def _scaled(raw: np.ndarray) -> np.ndarray:
    x = raw.astype(np.float64)
    if raw.dtype == np.uint8:
        x /= 255.0
    return x


def _fit_zca(raw: np.ndarray, rows: np.ndarray, before: Preprocessing, strength: float) -> Whitening:
    """Fit regularised ZCA (arXiv:2007.15801): `U (S + strength * mean(S))^(-1/2) U^T` for a covariance `U S U^T`."""
    n = rows.shape[0]
    d = int(np.prod(output_shape(raw.shape[1:], before.downsample)))
    mean = np.zeros(d)
    for part in row_chunks(n, raw[0].size):
        mean += before.apply(raw[rows[part]]).reshape(-1, d).sum(axis=0)
    mean /= n
    # dsyrk adds to one triangle in place, with half the arithmetic of x.T @ x and no copy of the matrix per chunk.
    (dsyrk,) = scipy.linalg.get_blas_funcs(("syrk",), dtype=np.float64)
    covariance = np.zeros((d, d), order="F")
    for part in row_chunks(n, raw[0].size):
        x = before.apply(raw[rows[part]]).reshape(-1, d)
        x -= mean
        covariance = dsyrk(1.0 / n, x.T, beta=1.0, c=covariance, overwrite_c=True, lower=True)
    eigenvalues, vectors = scipy.linalg.eigh(covariance, lower=True, overwrite_a=True, driver="evd")
    eigenvalues = np.maximum(eigenvalues, 0.0)
    average = float(eigenvalues.mean())
    if average == 0:
        raise DataError(
            "all training points are equal after preprocessing, so they cannot be whitened: remove data.zca"
        )
    shifted = eigenvalues + strength * average
    if shifted[0] <= d * np.finfo(np.float64).eps * shifted[-1]:
        raise ConfigError(
            f"data.zca={strength}: the covariance of the {d} features is singular ({n} points), so whitening needs a "
            "larger strength, for example data.zca=0.01"
        )
    matrix = (vectors / np.sqrt(shifted)) @ vectors.T
    return Whitening(mean, matrix, average)
