"""Points that came after the training: checked and prepared as the training points were, from what is stored of these."""

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

_ARRAYS = ("x_new", "x_test", "x")


def read_new(path: str, setting: str = "data.new") -> Any:
    """Points of a file: a table (`.csv`, `.parquet`), or an array, `.npy` or `.npz` (its `x_new`, `x_test` or `x`, or the only one).

    Raises:
        DataError: if it is none of these.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet", ".pq"):
        return read_table(path, setting)
    if file.suffix.lower() not in (".npy", ".npz") or not file.is_file():
        raise DataError(f"{setting}={path}: give a table (.csv, .parquet) or an array (.npy, .npz)")
    try:
        with file.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = [name for name in _ARRAYS if name in loaded.files] or loaded.files
            if len(names) > 1 and names[0] not in _ARRAYS:
                raise DataError(f"{setting}={path} holds {', '.join(loaded.files)}: call the points x_new")
            return loaded[names[0]]
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{setting}={path} cannot be read ({error}): save it with numpy.save or numpy.savez") from error


def prepared_new(
    x: Any,
    preprocessing: dict[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    layout: str | None = None,
    whole: Preprocessing | None = None,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """New points as a kernel takes them.

    Args:
        x: a frame, or an array like that of the training points.
        preprocessing: of the training points, as it is stored with them.
        shape: `(h, w, c)` of the prepared training points.
        dtype: of these.
        layout: of images, see `as_images`.
        whole: the steps, where what is stored of them is not enough: whitening.

    Returns:
        `(p, h, w, c)`, `(p,)` row numbers, and what the user should know.

    Raises:
        DataError: if they are not like the training points, or whitened and `whole` is missing.
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
            f"new points have the shape {_shown(raw.shape[1:])}, and those of training {_shown(wanted)}{named}"
        )
    bad = np.flatnonzero(~np.isfinite(filled(raw.astype(np.float64))).all(axis=tuple(range(1, raw.ndim))))
    if bad.size:
        raise DataError(
            f"row {rows[bad[0]]} of the new points holds NaN or infinite values ({bad.size} such rows): clean them"
        )
    made = steps.transform(raw, np.arange(len(raw)), dtype.name)
    if not np.isfinite(filled(made)).all():
        raise DataError(f"new points overflow {dtype.name} once they are prepared: rescale them")
    return made, rows, notes


def _array(x: Any, layout: str | None) -> np.ndarray:
    if is_frame(x):
        table = as_table(x, "the new points")
        x = np.stack([column.cast("float64", safe=False).to_numpy() for column in table.columns], axis=1)
    x = np.asarray(x)
    if x.dtype.kind in "bi" or (x.dtype.kind == "u" and x.dtype.itemsize > 1):
        x = x.astype(np.float64)
    if x.dtype.kind not in "uf" or x.size == 0:
        raise DataError(f"new points are {x.dtype} of shape {x.shape}: give numbers, a row for each point")
    x = as_images("the new points", x, layout)
    return x[:, None, None, :] if x.ndim == 2 else x


def _check_kind(x: np.ndarray, preprocessing: dict[str, Any]) -> None:
    known = preprocessing.get("pixels")
    if known is not None and (known == "uint8") != (x.dtype == np.uint8):
        raise DataError(
            f"new points are {x.dtype} and those of training {known}: uint8 is divided by 255 and other numbers are not. Give the same "
            "kind"
        )


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
