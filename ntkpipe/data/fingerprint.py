"""The content hash of a data set. It covers exactly the data that a Gram matrix depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.preprocess import PREPROCESSING_VERSION


def fingerprint(
    x_train: np.ndarray,
    x_test: np.ndarray,
    train_index: np.ndarray,
    test_index: np.ndarray,
    settings: dict[str, Any],
) -> str:
    """Return the SHA-256 of raw images, stored order and preprocessing.

    The hash excludes labels, their coding and the number of images in use, so runs that differ in those share Gram
    tiles.

    Args:
        x_train: `(n, h, w, c)` raw training images in the order of their source, native byte order.
        x_test: `(p, h, w, c)` raw test images in the same form.
        train_index: `(n,)` int64, the source row of every stored training row.
        test_index: `(p,)` int64, the source row of every stored test row.
        settings: the result of `preprocessing_settings`.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    arrays = {"x_train": x_train, "x_test": x_test, "train_index": train_index, "test_index": test_index}
    header = {
        "settings": settings,
        "arrays": {name: [a.dtype.newbyteorder("<").str, list(a.shape)] for name, a in arrays.items()},
    }
    digest.update(json.dumps(header, sort_keys=True).encode() + b"\n")
    for array in arrays.values():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(little.data.cast("B"))
    return digest.hexdigest()


def preprocessing_settings(
    config: DataConfig, statistics_rows: np.ndarray | None, encoding: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the settings that change prepared pixels, normalised so that settings with equal effects compare equal.

    Args:
        config: configuration of the data set.
        statistics_rows: sorted source rows behind the statistics; None means the full training set.
        encoding: encoding of a table's columns, as in `RawImages`; None for other data.
    """
    uses_statistics = config.standardize != "none" or config.zca is not None
    rows = None
    if uses_statistics and statistics_rows is not None:
        rows = hashlib.sha256(np.asarray(statistics_rows, dtype="<i8").tobytes()).hexdigest()
    return {
        "version": PREPROCESSING_VERSION,
        "standardize": config.standardize,
        "unit_norm": config.unit_norm,
        "zca": None if config.zca is None else float(config.zca),
        "downsample": config.downsample,
        "statistics_rows": rows,
        **({} if encoding is None else {"encoding": encoding}),
    }
