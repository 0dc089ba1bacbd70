"""Raw images from a loader, and the checks that every data set must pass before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ntkpipe.errors import DataError
from ntkpipe.kernels.images import as_images
from ntkpipe.kernels.sequences import filled, stated_lengths, with_ends

# Working memory of a pass over a data set, which is the float64 copy of one chunk of images.
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class RawImages:
    """Images and labels in the order of their source.

    Args:
        x_train: `(n, h, w, c)` training images, uint8 or a float dtype.
        y_train: `(n,)` integer labels, or `(n,)` or `(n, c)` regression targets.
        x_test: `(p, h, w, c)` test images.
        y_test: labels or targets of the test images; None if they are unknown.
        class_names: names of the labels 0, 1, ...; None if the source does not name them.
        index_train: `(n,)` position of each training image in the source; None means 0, 1, ...
        index_test: `(p,)` position of each test image in the source; None means 0, 1, ...
        notes: notes for the user about reading the data.
        target_names: names of the columns of regression targets; None calls them `target`.
        coding: `regression` if the loader found numeric targets; None otherwise.
        fixed: `(c,)` bool mask of channels that standardisation leaves unchanged, which are categories of a table.
        mask_train: for sequences of different lengths, `(n,)` lengths or `(n, length)` bool; None if all sequences have
            the length of the array.
        mask_test: lengths or mask of the test sequences, in the form of `mask_train`.
        encoding: the encoding of a table's columns as features, from `columns.Encoding.to_dict`; None for other data.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    index_train: np.ndarray | None = None
    index_test: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    target_names: tuple[str, ...] | None = None
    coding: str | None = None
    fixed: np.ndarray | None = None
    encoding: dict[str, Any] | None = None
    mask_train: np.ndarray | None = None
    mask_test: np.ndarray | None = None

    @property
    def rows_are(self) -> str:
        """The noun for the rows in messages, `points` or `images`."""
        return "points" if np.ndim(self.x_train) == 2 or np.shape(self.x_train)[1:3] == (1, 1) else "images"


def row_chunks(n: int, row_values: int) -> Iterator[slice]:
    """Yield slices that cover `n` rows, each with a float64 copy of at most 16 MB if it has several rows.

    Args:
        n: number of rows.
        row_values: values in each row.
    """
    step = max(1, _CHUNK_BYTES // (8 * max(1, row_values)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def checked(raw: RawImages, *, drop_invalid: bool, layout: str | None = None) -> RawImages:
    """Check a data set and return it in the standard layout.

    Arrays `(n, h, w)` become `(n, h, w, 1)`, and `(n, d)` become `(n, 1, 1, d)`, so that statistics per channel are per
    feature. Sequences that are shorter than their array hold NaN after their end.

    Args:
        raw: the data set that a loader returned.
        drop_invalid: drop images with NaN or infinite pixels instead of refusing them.
        layout: layout of arrays with four or five axes, as `as_images` takes it.

    Raises:
        DataError: if an array is empty, of a wrong dtype or shape, or not finite. Also if the numbers of images and
            labels differ, or training and test images differ in shape, dtype or scale. The text gives the remedy.
    """
    x_train, x_test = _standard("train", raw, layout), _standard("test", raw, layout)
    if x_train.shape[1:] != x_test.shape[1:]:
        depth = "depth x " if 5 in (x_train.ndim, x_test.ndim) else ""
        raise DataError(
            f"training {raw.rows_are} have shape {_times(x_train.shape[1:])} and test {raw.rows_are} {_times(x_test.shape[1:])} "
            f"({depth}height x width x channels): bring them to the same shape"
        )
    if x_train.dtype != x_test.dtype:
        raise DataError(
            f"x_train is {x_train.dtype} and x_test is {x_test.dtype}: store both in the same dtype, "
            "because uint8 pixels are divided by 255 and floats are not"
        )
    y = {}
    for name, labels, images in (("y_train", raw.y_train, x_train), ("y_test", raw.y_test, x_test)):
        if labels is None:
            continue
        y[name] = np.asarray(labels)
        if y[name].ndim == 0 or y[name].shape[0] != images.shape[0]:
            count = y[name].shape[0] if y[name].ndim else 1
            raise DataError(
                f"{name} has {count} entries for {images.shape[0]} {raw.rows_are}: they must pair up one to one"
            )
    raw = replace(raw, x_train=x_train, x_test=x_test, **y)
    raw = _finite(_finite(raw, "train", drop_invalid), "test", drop_invalid)
    require_one_scale(filled(raw.x_train), filled(raw.x_test))
    return raw


# Two sets are taken for 8-bit values and values of 0..1 if their largest pixels and also their mean magnitudes differ
# by a factor of 255, within these tolerances (factors).
_BITS, _OF_LARGEST, _OF_MEAN = 255.0, 2.0, 4.0


def require_one_scale(x_train: np.ndarray, x_test: np.ndarray) -> None:
    """Refuse pixels of 0..1 in one set and of 0..255 in the other.

    Args:
        x_train: `(n, ...)` finite training images.
        x_test: `(p, ...)` finite test images.

    Raises:
        DataError: if the scales differ by about 255. The text names both scales.
    """
    if x_train.dtype == x_test.dtype == np.uint8:
        return
    (largest, mean), (other, other_mean) = _sizes(x_train), _sizes(x_test)
    if min(mean, other_mean) == 0:
        return
    ratio, mean_ratio = max(largest / other, other / largest), max(mean / other_mean, other_mean / mean)
    if max(ratio / _BITS, _BITS / ratio) < _OF_LARGEST and max(mean_ratio / _BITS, _BITS / mean_ratio) < _OF_MEAN:
        raise DataError(
            f"pixels of x_train reach {largest:.4g} and those of x_test {other:.4g}, which differ by a factor of "
            "about 255: bring both to one scale"
        )


def _sizes(x: np.ndarray) -> tuple[float, float]:
    """Return the largest and the mean absolute value."""
    largest = total = 0.0
    for rows in row_chunks(x.shape[0], x[0].size):
        part = np.abs(x[rows].astype(np.float64))
        largest = max(largest, float(part.max()))
        with np.errstate(over="ignore"):
            total += float(part.sum())
    return largest, total / x.size


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _standard(part: str, raw: RawImages, layout: str | None) -> np.ndarray:
    name, x = f"x_{part}", np.asarray(getattr(raw, f"x_{part}"))
    if x.ndim == 1 and np.ndim(getattr(raw, f"y_{part}")) > 1:
        raise DataError(
            f"{name} has one axis and y_{part} has several, so they may be swapped: give the images as {name}"
        )
    if x.dtype.kind not in "uf" or (x.dtype.kind == "u" and x.dtype.itemsize > 1) or x.dtype.itemsize > 8:
        raise DataError(
            f"{name} is {x.dtype}: pixels must be uint8 (0..255, divided by 255) or float16, float32, float64 (as they "
            "are). Convert the array with astype"
        )
    if x.size == 0:
        raise DataError(f"{name} is empty (shape {x.shape}): at least one point with at least one value is needed")
    x = as_images(name, x, layout)
    if x.ndim == 2:
        x = x[:, None, None, :]
    # All arrays get the native byte order, so that equal values have equal hashes.
    return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))


def _finite(raw: RawImages, part: str, drop: bool) -> RawImages:
    x: np.ndarray = getattr(raw, f"x_{part}")
    n = x.shape[0]
    mask = getattr(raw, f"mask_{part}")
    inside = None
    if mask is not None:
        x = with_ends(x, mask, f"mask_{part}")
        inside = np.arange(x.shape[1]) < stated_lengths(mask, n, x.shape[1], f"mask_{part}")[:, None]
        raw = replace(raw, **{f"x_{part}": x, f"mask_{part}": None})
    index = getattr(raw, f"index_{part}")
    index = np.arange(n, dtype=np.int64) if index is None else np.asarray(index, dtype=np.int64)
    if x.dtype.kind == "u":
        return replace(raw, **{f"index_{part}": index})
    good = np.ones(n, dtype=bool)
    for rows in row_chunks(n, x[0].size):
        present = np.isfinite(x[rows])
        if inside is not None:
            present |= ~inside[rows][:, :, None, None]
        good[rows] = present.all(axis=tuple(range(1, x.ndim)))
    bad = np.flatnonzero(~good)
    if bad.size == 0:
        return replace(raw, **{f"index_{part}": index})
    named = ", ".join(str(index[i]) for i in bad[:10]) + (", ..." if bad.size > 10 else "")
    if not drop:
        raise DataError(
            f"{bad.size} of {n} {raw.rows_are} in x_{part} hold NaN or infinite values (rows {named}): "
            f"clean them, or set data.drop_invalid=true to leave these {raw.rows_are} out. Sequences of different lengths need "
            f"mask_{part}"
        )
    if bad.size == n:
        raise DataError(
            f"every row of x_{part} holds NaN or infinite values, so data.drop_invalid=true leaves no rows: clean the "
            "data"
        )
    note = f"dropped {bad.size} of {n} {raw.rows_are} in x_{part} with NaN or infinite values (rows {named})"
    y: np.ndarray | None = getattr(raw, f"y_{part}")
    kept = {f"x_{part}": x[good], f"y_{part}": None if y is None else y[good], f"index_{part}": index[good]}
    return replace(raw, **kept, notes=(*raw.notes, note))
