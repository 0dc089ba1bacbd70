"""Labels without images, for kernels that were given: `data=labels data.path=labels.npz`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.labels import make_targets
from ntkpipe.data.raw import RawImages
from ntkpipe.data.stored_labels import Labels
from ntkpipe.errors import DataError

_KEYS = ("y_train", "y_test")


def load_given_labels(config: DataConfig, n_train: int, n_test: int) -> Labels:
    """Arrays `y_train, y_test` of `config.path`, and `class_names` where present, in the order of the kernel's rows.

    Args:
        config: whose `labels` says what they are: integers of classes, or with `regression` `(n,)` or `(n, c)` targets.
        n_train: rows of the train-train kernel.
        n_test: rows of the test-train kernel.

    Raises:
        DataError: if the file is absent or no such npz, or there is not a label for every row.
    """
    path = Path(str(config.path)).expanduser()
    if not path.is_file():
        raise DataError(f"data.path={path} is not a file: give an npz file with the arrays {', '.join(_KEYS)}")
    try:
        # Opened here, because np.load leaves its own file open when it fails.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            files = loaded.files if isinstance(loaded, np.lib.npyio.NpzFile) else []
            missing = [key for key in _KEYS if key not in files]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}: save {', '.join(_KEYS)} with numpy.savez")
            y = {key: np.asarray(loaded[key]) for key in _KEYS}
            names = tuple(map(str, loaded["class_names"].tolist())) if "class_names" in files else None
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an npz of plain arrays ({error}): save it again with numpy.savez, without object "
            "arrays"
        ) from error
    for key, rows, matrix in (("y_train", n_train, "kernel.train"), ("y_test", n_test, "kernel.test")):
        count = y[key].shape[0] if y[key].ndim else 1
        if count != rows:
            raise DataError(f"{key} of {path} has {count:,} entries and {matrix} {rows:,} rows: they must pair up")
    pixels = np.empty((0, 0, 0, 0))
    raw = RawImages(pixels, y["y_train"], pixels, y["y_test"], names)
    targets = make_targets(raw, config.labels)
    return Labels(*targets, train_index=np.arange(n_train), test_index=np.arange(n_test))
