"""Reads arrays that a user saved with `numpy.savez`."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.class_labels import numbered
from ntkpipe.data.raw import RawImages
from ntkpipe.data.splits import drawn_test_rows
from ntkpipe.errors import DataError


def load(config: DataConfig) -> RawImages:
    """Load the arrays `x_train`, `y_train`, `x_test` and `y_test` of `config.path`, and `class_names` if present.

    If `y_test` is missing, the labels of the test points are unknown. If `x_test` is missing, a share
    `config.test_fraction` of the points is kept for testing. Sequences of different lengths need `mask_train` and
    `mask_test`.

    Raises:
        DataError: if the file is absent or not such an npz. The text names missing arrays.
    """
    arrays, names = read_npz(config, ("x_train", "y_train"), ("x_test", "y_test"), ("mask_train", "mask_test"))
    raw = RawImages(
        arrays["x_train"],
        arrays["y_train"],
        arrays.get("x_test", arrays["x_train"][:0]),
        arrays.get("y_test"),
        class_names=names,
        mask_train=arrays.get("mask_train"),
        mask_test=arrays.get("mask_test"),
    )
    if "x_test" in arrays:
        if config.test_fraction is not None:
            raise DataError(
                f"data.test_fraction={config.test_fraction:g}: {config.path} already has test points (x_test). Leave "
                "data.test_fraction out, or save only x_train and y_train"
            )
        return raw
    if config.test_fraction is None or "y_test" in arrays:
        raise DataError(
            f"{config.path} lacks x_test: save it with numpy.savez, or also leave y_test out and set "
            "data.test_fraction=0.2, which keeps a fifth of the points for testing"
        )
    return split(raw, config)


def split(raw: RawImages, config: DataConfig) -> RawImages:
    """Move a share `config.test_fraction` of the training points to the test set, with the classes in proportion.

    Raises:
        DataError: if the numbers of points and labels differ, or training or test set would be empty.
    """
    x, y = np.asarray(raw.x_train), np.asarray(raw.y_train)
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise DataError(f"x_train has shape {x.shape} and y_train {y.shape}: they must pair up one to one")
    labels = None
    if config.labels != "regression":
        labels = numbered(y, None, raw.class_names)[0]
        labels = None if labels.ndim > 1 else labels
    fraction = 0.2 if config.test_fraction is None else config.test_fraction
    test = drawn_test_rows(len(x), fraction, seed=config.subset_seed, labels=labels)
    train = np.delete(np.arange(len(x)), test)
    masks = {}
    if raw.mask_train is not None:
        mask = np.asarray(raw.mask_train)
        if not mask.ndim or len(mask) != len(x):
            raise DataError(f"x_train has shape {x.shape} and its mask {mask.shape}: they must pair up one to one")
        masks = {"mask_train": mask[train], "mask_test": mask[test]}
    return replace(
        raw,
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        index_train=train,
        index_test=test,
        **masks,
    )


def read_npz(
    config: DataConfig, keys: tuple[str, ...], optional: tuple[str, ...] = (), rare: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Read arrays of the npz file `config.path`, without unpickling anything.

    Args:
        config: configuration of the data.
        keys: arrays that must be present.
        optional: arrays that are read if they are present.
        rare: arrays that are read if they are present, and that messages do not ask for.

    Returns:
        The arrays by name, and the names of the classes from `class_names`, if present.

    Raises:
        DataError: if the file is absent or not such an npz. The text names missing arrays.
    """
    path, wanted = Path(str(config.path)).expanduser(), ", ".join((*keys, *optional))
    if not path.is_file():
        raise DataError(f"data.path={path} is not a file: give an npz file with the arrays {wanted}")
    try:
        # The file is opened here, because np.load leaves its file open when it fails.
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an npz: save {wanted} with numpy.savez")
            missing = [key for key in keys if key not in loaded.files]
            if missing:
                found = ", ".join(loaded.files) or "nothing"
                raise DataError(f"{path} lacks {', '.join(missing)} (it holds {found}): save {wanted} with numpy.savez")
            arrays = {key: loaded[key] for key in (*keys, *optional, *rare) if key in loaded.files}
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
            f"class_names of {path} has shape {array.shape} and {len(set(names))} different names: save one name per "
            "class, starting with label 0"
        )
    return names
