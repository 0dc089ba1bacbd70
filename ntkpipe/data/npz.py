"""Arrays that a user saved with `numpy.savez`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.raw import RawImages
from ntkpipe.errors import DataError


def load(config: DataConfig) -> RawImages:
    """Arrays `x_train, y_train, x_test, y_test` of `config.path`, and `class_names` where present.

    Raises:
        DataError: if the file is absent or not such an npz; missing arrays are named.
    """
    keys = ("x_train", "y_train", "x_test", "y_test")
    arrays, names = read_npz(config, keys)
    return RawImages(*(arrays[key] for key in keys), class_names=names)


def read_npz(config: DataConfig, keys: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """The arrays `keys` of `config.path`, and its `class_names` where present. Nothing is unpickled.

    Raises:
        DataError: if the file is absent or not such an npz; missing arrays are named.
    """
    path, wanted = Path(str(config.path)).expanduser(), ", ".join(keys)
    if not path.is_file():
        raise DataError(f"data.path={path} is not a file: give an npz file with the arrays {wanted}")
    try:
        # Opened here, because np.load leaves its own file open when it fails.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an npz: save {wanted} with numpy.savez")
            missing = [key for key in keys if key not in loaded.files]
            if missing:
                found = ", ".join(loaded.files) or "nothing"
                raise DataError(f"{path} lacks {', '.join(missing)} (it holds {found}): save {wanted} with numpy.savez")
            arrays = {key: loaded[key] for key in keys}
            names = _names(path, loaded["class_names"]) if "class_names" in loaded.files else None
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an npz of plain arrays ({error}): save it again with numpy.savez, "
            "without object arrays"
        ) from error
    return arrays, names


def _names(path: Path, array: np.ndarray) -> tuple[str, ...]:
    names = tuple(
        one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in array.ravel().tolist()
    )
    if array.ndim != 1 or len(set(names)) != len(names):
        raise DataError(
            f"class_names of {path} has shape {array.shape} and {len(set(names))} different names: save one name per class, "
            "of label 0 first"
        )
    return names
