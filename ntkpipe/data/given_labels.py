"""Reads labels without images, for given kernels: `data=labels data.path=labels.npz`."""

from __future__ import annotations

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.labels import make_targets
from ntkpipe.data.npz import read_npz
from ntkpipe.data.raw import RawImages
from ntkpipe.data.stored_labels import Labels
from ntkpipe.errors import DataError


def load_given_labels(config: DataConfig, n_train: int, n_test: int) -> Labels:
    """Read labels or targets in the order of the kernel's rows.

    The npz file `config.path` holds the array `y_train`, and optionally `y_test` and `class_names`.

    Args:
        config: configuration of the data. With `labels=regression` the arrays are targets `(n,)` or `(n, c)`, otherwise
            classes.
        n_train: rows of the train-train kernel.
        n_test: rows of the test-train kernel.

    Raises:
        DataError: if the file is absent or not such an npz, or the number of labels differs from the number of rows.
    """
    y, names = read_npz(config, ("y_train",), ("y_test",))
    for key, rows, matrix in (("y_train", n_train, "kernel.train"), ("y_test", n_test, "kernel.test")):
        if key not in y:
            continue
        count = y[key].shape[0] if y[key].ndim else 1
        if count != rows:
            raise DataError(
                f"{key} of {config.path} has {count:,} entries, but {matrix} has {rows:,} rows: give one label per row"
            )
    raw = RawImages(
        x_train=np.empty((n_train, 0, 0, 0)),
        x_test=np.empty((n_test, 0, 0, 0)),
        y_train=y["y_train"],
        y_test=y.get("y_test"),
        class_names=names,
    )
    targets = make_targets(raw, config.labels, config.targets)
    return Labels(**targets._asdict(), train_index=np.arange(n_train), test_index=np.arange(n_test))
