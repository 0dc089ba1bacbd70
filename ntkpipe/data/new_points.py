"""Reads new points, and checks and prepares them like the training points, with the stored statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.data.columns import Encoding
from ntkpipe.data.preprocess import Preprocessing
from ntkpipe.data.table import encoded
from ntkpipe.data.tables import as_table, is_frame, read_table
from ntkpipe.errors import DataError
from ntkpipe.kernels.images import as_images
from ntkpipe.kernels.sequences import filled

_SETTING = "data.new"
_ARRAYS = ("x_new", "x_test", "x")


def read_new(path: str) -> Any:
    """Read points from a table (`.csv`, `.parquet`) or an array (`.npy`, `.npz`).

    An `.npz` holds an array `x_new`, `x_test` or `x`, or a single array of any name.

    Raises:
        DataError: if the file is absent, of another kind, or cannot be read.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet", ".pq"):
        return read_table(path, _SETTING)
    if file.suffix.lower() not in (".npy", ".npz") or not file.is_file():
        raise DataError(f"{_SETTING}={path}: give a table (.csv, .parquet) or an array (.npy, .npz)")
    try:
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = [name for name in _ARRAYS if name in loaded.files] or loaded.files
            if len(names) > 1 and names[0] not in _ARRAYS:
                raise DataError(f"{_SETTING}={path} holds {', '.join(loaded.files)}: name the array of points x_new")
            return loaded[names[0]]
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise DataError(
            f"{_SETTING}={path} cannot be read ({error}): save it with numpy.save or numpy.savez"
        ) from error


def prepared_new(
    x: Any,
    preprocessing: dict[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    layout: str | None = None,
    whole: Preprocessing | None = None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Prepare new points for a kernel.

    Args:
        x: a frame, or an array like that of the training points.
        preprocessing: the stored preprocessing of the training points.
        shape: shape `(h, w, c)` of a prepared training point.
        dtype: dtype of the prepared training points.
        layout: layout of the images, as `as_images` takes it.
        whole: the complete steps. They are needed for whitening, which is not stored.

    Returns:
        `(p, h, w, c)` prepared points in `dtype`, `(p,)` row numbers, and notes for the user.

    Raises:
        DataError: if the points do not match the training points, or need whitening and `whole` is missing.
    """
    notes: list[str] = []
    encoding = preprocessing.get("encoding")
    if encoding is not None and is_frame(x):
        raw, rows, notes = encoded(x, encoding, "the new points")
    else:
        raw = _array(x, layout)
        rows = np.arange(len(raw))
        _check_kind(raw, preprocessing)
    steps = whole or Preprocessing.stored(preprocessing)
    downsample = steps.downsample
    wanted = shape if len(shape) == 4 else (shape[0] * downsample, shape[1] * downsample, shape[2])
    if raw.shape[1:] != wanted:
        named = (
            ""
            if encoding is None
            else f" ({', '.join(Encoding.from_dict(encoding).features)}: give a frame or a table)"
        )
        raise DataError(
            f"new points have shape {_shown(raw.shape[1:])}, but the training points have {_shown(wanted)}{named}"
        )
    bad = np.flatnonzero(~np.isfinite(filled(raw.astype(np.float64))).all(axis=tuple(range(1, raw.ndim))))
    if bad.size:
        raise DataError(
            f"row {rows[bad[0]]} of the new points holds NaN or infinite values ({bad.size} such rows): clean them"
        )
    made = steps.transform(raw, np.arange(len(raw)), dtype.name)
    if not np.isfinite(filled(made)).all():
        raise DataError(f"new points overflow {dtype.name} after preparation: rescale them")
    return made, rows, notes


def _array(x: Any, layout: str | None) -> np.ndarray:
    if is_frame(x):
        table = as_table(x, "the new points")
        x = np.stack([column.cast("float64", safe=False).to_numpy() for column in table.columns], axis=1)
    x = np.asarray(x)
    if x.dtype.kind in "bi" or (x.dtype.kind == "u" and x.dtype.itemsize > 1):
        x = x.astype(np.float64)
    if x.dtype.kind not in "uf" or x.size == 0:
        raise DataError(f"new points are {x.dtype} of shape {x.shape}: give numbers with one row per point")
    x = as_images("the new points", x, layout)
    return x[:, None, None, :] if x.ndim == 2 else x


def _check_kind(x: np.ndarray, preprocessing: dict[str, Any]) -> None:
    known = preprocessing.get("pixels")
    if known is not None and (known == "uint8") != (x.dtype == np.uint8):
        raise DataError(
            f"new points are {x.dtype}, but the training points are {known}, and only uint8 is divided by 255: give "
            "the same dtype"
        )


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
