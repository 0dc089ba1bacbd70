"""The content hash of a data set: of everything that a Gram matrix depends on, and of nothing else."""

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
    """SHA-256 of raw images, stored order and preprocessing.

    Labels, their coding and the number of images used are left out: runs that differ in those share Gram tiles.

    Args:
        x_train: `(n, h, w, c)` raw training images in the order of their source, native byte order.
        x_test: likewise.
        train_index: `(n,)` int64, the source row of every stored training row.
        test_index: likewise.
        settings: from `preprocessing_settings`.

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
    """The settings that change prepared pixels, in a form in which equal effects are equal.

    Args:
        config: of the data set.
        statistics_rows: sorted source rows behind the statistics; None is the full training set.
        encoding: of a table; see `RawImages`.
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
