"""Images as a loader found them, and the checks that every data set must pass before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.errors import DataError

_log = logging.getLogger(__name__)

# Working memory of a pass over a data set: the float64 copy of one chunk of images.
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class RawImages:
    """Images and labels in the order of their source.

    Args:
        x_train: `(n, h, w, c)`, uint8 or a float dtype.
        y_train: `(n,)` integer labels, or `(n,)` or `(n, c)` regression targets.
        x_test: as `x_train`.
        y_test: as `y_train`.
        class_names: of labels 0, 1, ...; None where the source does not name them.
        index_train: position of each training image in the source; None is 0, 1, ...
        index_test: likewise of each test image.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None = None
    index_train: np.ndarray | None = None
    index_test: np.ndarray | None = None


def row_chunks(n: int, row_values: int) -> Iterator[slice]:
    """Slices of at most `n` rows whose float64 copy takes about 16 MB.

    Args:
        n: number of rows.
        row_values: values in each row.
    """
    step = max(1, _CHUNK_BYTES // (8 * max(1, row_values)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def checked(raw: RawImages, *, drop_invalid: bool) -> RawImages:
    """`raw` in the standard layout, refused with a remedy where it cannot be used.

    Arrays `(n, h, w)` become `(n, h, w, 1)`; `(n, d)` become `(n, 1, 1, d)`, so that per-channel statistics are per
    feature.

    Args:
        raw: what a loader returned.
        drop_invalid: drop images with NaN or infinite pixels instead of refusing them.

    Raises:
        DataError: if an array is empty, of a wrong dtype or shape, or not finite; if images and labels differ in
            number; if training and test images differ in shape or dtype.
    """
    x_train, x_test = _layout("x_train", raw.x_train), _layout("x_test", raw.x_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"training images have shape {_times(x_train.shape[1:])} and test images {_times(x_test.shape[1:])} "
            "(height x width x channels): bring them to the same shape"
        )
    if x_train.dtype != x_test.dtype:
        raise DataError(
            f"x_train is {x_train.dtype} and x_test is {x_test.dtype}: store both in the same dtype, "
            "because uint8 pixels are divided by 255 and floats are not"
        )
    y = {}
    for name, labels, images in (("y_train", raw.y_train, x_train), ("y_test", raw.y_test, x_test)):
        y[name] = np.asarray(labels)
        if y[name].ndim == 0 or y[name].shape[0] != images.shape[0]:
            count = y[name].shape[0] if y[name].ndim else 1
            raise DataError(f"{name} has {count} entries for {images.shape[0]} images: they must pair up one to one")
    raw = replace(raw, x_train=x_train, x_test=x_test, **y)
    raw = _finite(raw, "train", drop_invalid)
    return _finite(raw, "test", drop_invalid)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _layout(name: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "uf" or (x.dtype.kind == "u" and x.dtype.itemsize > 1) or x.dtype.itemsize > 8:
        raise DataError(
            f"{name} is {x.dtype}: pixels must be uint8 (0..255, divided by 255) or float16, float32, float64 (as they "
            "are). Convert the array with astype"
        )
    if not 2 <= x.ndim <= 4:
        raise DataError(
            f"{name} has shape {x.shape}: it must be (n, height, width, channels), (n, height, width) or (n, features)"
        )
    if x.size == 0:
        raise DataError(f"{name} is empty (shape {x.shape}): at least one image with at least one pixel is needed")
    if x.ndim == 2:
        x = x[:, None, None, :]
    elif x.ndim == 3:
        x = x[..., None]
    if x.shape[1] in (1, 3) and x.shape[3] == x.shape[2] > 4:
        _log.warning(
            "%s has shape %s, read as height %d, width %d, channels %d. If it is channels-first, transpose it to "
            "(n, height, width, channels)",
            name,
            x.shape,
            *x.shape[1:],
        )
    # One byte order everywhere, so that equal values have equal hashes.
    return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))


def _finite(raw: RawImages, part: str, drop: bool) -> RawImages:
    x: np.ndarray = getattr(raw, f"x_{part}")
    n = x.shape[0]
    index = getattr(raw, f"index_{part}")
    index = np.arange(n, dtype=np.int64) if index is None else np.asarray(index, dtype=np.int64)
    if x.dtype.kind == "u":
        return replace(raw, **{f"index_{part}": index})
    good = np.ones(n, dtype=bool)
    for rows in row_chunks(n, x[0].size):
        good[rows] = np.isfinite(x[rows]).all(axis=(1, 2, 3))
    bad = np.flatnonzero(~good)
    if bad.size == 0:
        return replace(raw, **{f"index_{part}": index})
    named = ", ".join(str(index[i]) for i in bad[:10]) + (", ..." if bad.size > 10 else "")
    if not drop:
        raise DataError(
            f"{bad.size} of {n} images in x_{part} hold NaN or infinite pixels (rows {named}): "
            "clean them, or set data.drop_invalid=true to leave these images out"
        )
    if bad.size == n:
        raise DataError(
            f"every image in x_{part} holds NaN or infinite pixels: nothing is left after data.drop_invalid=true"
        )
    _log.warning("dropped %d of %d images in x_%s with NaN or infinite pixels (rows %s)", bad.size, n, part, named)
    y: np.ndarray = getattr(raw, f"y_{part}")
    return replace(raw, **{f"x_{part}": x[good], f"y_{part}": y[good], f"index_{part}": index[good]})
