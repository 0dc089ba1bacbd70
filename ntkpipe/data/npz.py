"""Arrays that a user saved with `numpy.savez`."""

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
    """Arrays `x_train, y_train, x_test, y_test` of `config.path`, and `class_names` where present.

    Without `y_test` nobody knows the labels of the test points. Without `x_test` a share `config.test_fraction` of the points is
    taken for testing. Sequences of different lengths have `mask_train` and `mask_test` beside them.

    Raises:
        DataError: if the file is absent or not such an npz; missing arrays are named.
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
                f"data.test_fraction={config.test_fraction:g}: {config.path} has test points of its own (x_test). Leave the setting "
                "out, or save x_train and y_train alone"
            )
        return raw
    if config.test_fraction is None or "y_test" in arrays:
        raise DataError(
            f"{config.path} lacks x_test: save it with numpy.savez, or leave y_test out too and set data.test_fraction=0.2, which "
            "keeps a fifth of the points for testing"
        )
    return split(raw, config)


def split(raw: RawImages, config: DataConfig) -> RawImages:
    """Training points divided into training and test points, `config.test_fraction` of them the latter, the classes in proportion.

    Raises:
        DataError: if points and labels do not pair up, or one side would be empty.
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
    """The arrays `keys` of `config.path`, those of `optional` and `rare` and its `class_names` where present. Nothing is unpickled.

    Raises:
        DataError: if the file is absent or not such an npz; missing arrays are named.
    """
    path, wanted = Path(str(config.path)).expanduser(), ", ".join((*keys, *optional))
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
            f"class_names of {path} has shape {array.shape} and {len(set(names))} different names: save one name per class, "
            "of label 0 first"
        )
    return names
