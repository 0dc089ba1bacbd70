"""A data set as a notebook has it: arrays, and how they are to be prepared, by the names that configurations use."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np

from ntkpipe.config import DataConfig, from_dict
from ntkpipe.data import npz, table
from ntkpipe.data.class_labels import categories_of, is_one_hot
from ntkpipe.data.columns import Encoding
from ntkpipe.data.dataset import Order, PreparedDataset, load_raw, order_dataset, prepare_dataset
from ntkpipe.data.labels import class_notes
from ntkpipe.data.raw import RawImages, checked
from ntkpipe.data.tables import is_frame
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.units import counted

# Settings that say where files are; of arrays there are none.
_OF_FILES = (
    "kind",
    "path",
    "target",
    "split",
    "test_path",
    "folds",
    "download",
    "source",
    "image_size",
    "n_train",
    "n_test",
    "shape",
    "classes",
    "noise",
)
_PREPARATION = tuple(f.name for f in dataclasses.fields(DataConfig) if f.name not in _OF_FILES)


class Dataset:
    """Training and test points, checked here and prepared when a kernel asks for them.

    Rows are kept in the *stored order*, which `subset_seed` shuffles so that subsets are nested: `targets`, the rows of a `Gram`
    and those of its kernels follow it. Predictions are in the order of the arrays again.

    Args:
        x_train: images `(n, h, w, c)`, gray ones `(n, h, w)`, or features `(n, d)`; uint8 (divided by 255) or floats (as they are).
            Or a frame of pandas, polars or pyarrow, whose columns may be categories: it is read as `data=table` reads a file.
        y_train: labels `(n,)`: whole numbers from 0 on, names, truth values, categories, one-hot rows `(n, c)`; or real targets `(n,)`
            or `(n, c)`. Floats are real targets unless they are one-hot rows, or `labels` says otherwise; few different whole numbers
            as floats are refused until it does.
        x_test: as `x_train`, p of them; None takes a share `test_fraction` (0.2) of the training points.
        y_test: as `y_train`; None if nobody knows them: then there are predictions and no metrics.
        mask: of sequences of different lengths, how long each is, `(n,)` whole numbers; or `(n, length)` of bool, true up to the end
            of each. What follows the end is not looked at. None if all are as long as the array.
        mask_test: likewise of `x_test`.
        class_names: of the labels 0, 1, ...; None calls them so.
        preparation: by the names of `data.*` settings: `standardize` (`channel` or `none`), `unit_norm`, `zca`, `downsample`,
            `layout`, `train_size`, `test_size`, `test_fraction`, `subset_seed`, `balanced`, `statistics`, `drop_invalid`, `labels`
            (`centered`, `half`, or `regression`, which is taken for real targets), `targets` (`standardize` or `none`), and of frames
            `features` and `missing`.

    Raises:
        ConfigError: on an impossible setting.
        DataError: on arrays that cannot be used; the text says what to do.

    Examples:
        >>> data = Dataset(x_train, y_train, x_test, y_test, standardize="channel", zca=0.1)  # doctest: +SKIP
    """

    def __init__(
        self,
        x_train: Any,
        y_train: Any,
        x_test: Any = None,
        y_test: Any = None,
        *,
        mask: Any = None,
        mask_test: Any = None,
        class_names: tuple[str, ...] | list[str] | None = None,
        **preparation: Any,
    ) -> None:
        unknown = sorted(set(preparation) - set(_PREPARATION))
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)} is no way to prepare arrays: take any of {', '.join(_PREPARATION)}"
            )
        if is_frame(x_train):
            if mask is not None or mask_test is not None:
                raise ConfigError("mask is of sequences, arrays (n, length, channels): a frame has none")
            config = _config(kind="table", path="frame", target="target", **preparation)
            raw, config = table.from_frames(x_train, y_train, x_test, y_test, config)
            self._start(checked(raw, drop_invalid=False), config)
            return
        names = categories_of(y_train) if class_names is None else tuple(str(name) for name in class_names)
        y_train, y_test = np.asarray(y_train), None if y_test is None else np.asarray(y_test)
        if y_train.dtype.kind == "f" and not is_one_hot(y_train):
            if "labels" not in preparation and _may_be_classes(y_train):
                raise DataError(
                    f"y_train is {y_train.dtype} of {len(np.unique(y_train))} whole numbers, which may be classes or real targets: say "
                    "which, labels='centered' or labels='regression', or give classes as integers"
                )
            preparation.setdefault("labels", "regression")
        config = _config(kind="npz", path="arrays", **preparation)
        if x_test is None:
            if y_test is not None:
                raise DataError("y_test without x_test: give the test points, or leave y_test out")
            if mask_test is not None:
                raise DataError(
                    "mask_test without x_test: mask is that of all points, some of which are drawn for testing"
                )
            raw = RawImages(np.asarray(x_train), y_train, np.empty(0), None, class_names=names, mask_train=mask)
            raw = npz.split(raw, config)
        else:
            masks = {"mask_train": mask, "mask_test": mask_test}
            raw = RawImages(np.asarray(x_train), y_train, np.asarray(x_test), y_test, class_names=names, **masks)
        self._start(checked(raw, drop_invalid=config.drop_invalid, layout=config.layout), config)

    @classmethod
    def of(cls, config: DataConfig) -> Dataset:
        """The data set of a configuration, read now."""
        made = cls.__new__(cls)
        made._start(load_raw(config), config)
        return made

    def _start(self, raw: RawImages, config: DataConfig) -> None:
        self._raw, self.config = raw, config
        self._order: Order = order_dataset(raw, config)
        self._prepared: dict[str, PreparedDataset] = {}

    @property
    def n(self) -> int:
        """Training points in use."""
        return self._order.n_train

    @property
    def p(self) -> int:
        """Test points in use."""
        return self._order.n_test

    @property
    def targets(self) -> np.ndarray:
        """(n, c) float64, of the training points in use, in stored order: what a solver takes."""
        return self._order.targets.y_train[self._order.train[: self.n]]

    @property
    def is_classes(self) -> bool:
        """Whether targets are classes."""
        return self._order.targets.labels_train is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per column of the targets."""
        return self._order.targets.class_names

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the points and labels."""
        targets = self._order.targets
        return (*self._raw.notes, *class_notes(targets.labels_train, targets.labels_test, targets.class_names))

    def prepared(self, dtype: str = "float32") -> PreparedDataset:
        """Prepared images and targets in stored order; kept for the next call.

        Args:
            dtype: of the images, `float32` or `float64`; all arithmetic is float64.
        """
        if dtype not in self._prepared:
            self._prepared[dtype] = prepare_dataset(self._raw, self.config, dtype=dtype)
        return self._prepared[dtype]

    @property
    def features(self) -> tuple[str, ...] | None:
        """Of a table, the names of the features, in order; None of arrays."""
        encoding = self._raw.encoding
        return None if encoding is None else Encoding.from_dict(encoding).features

    def __repr__(self) -> str:
        size = self._raw.x_train.shape[1:]
        flat = len(size) == 3 and tuple(size[:2]) == (1, 1)
        shape = counted(size[2], "feature") if flat else " x ".join(map(str, size))
        outputs = counted(len(self.class_names), "output")
        return f"Dataset({self.n:,} training and {self.p:,} test points of {shape}, {outputs})"


def load_dataset(kind: str, path: str | None = None, **settings: Any) -> Dataset:
    """A data set by name, as `data=KIND` of the command line reads it.

    Args:
        kind: `digits`, `table`, `npz`, `cifar10`, `cifar100`, `mnist`, `image_folder` or `synthetic`.
        path: of its files; `digits` and `synthetic` need none.
        settings: any other of `data.*`: `target="price"`, `download=True`, `train_size=...`, `zca=...` and so on.

    Raises:
        ConfigError: on an unknown kind or setting.
        DataError: if the files are absent or cannot be used; the text says what to do.

    Examples:
        >>> load_dataset("digits", train_size=500)
        Dataset(500 training and 360 test points of 8 x 8 x 1, 10 outputs)
    """
    known = {f.name for f in dataclasses.fields(DataConfig)} - {"kind", "path"}
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"{', '.join(unknown)} is no setting of data: take any of {', '.join(sorted(known))}")
    return Dataset.of(_config(kind=kind, path=path, **settings))


def _config(**settings: Any) -> DataConfig:
    """The settings in their types: one name or number where several are expected, as on the command line."""
    return from_dict(DataConfig, settings, "data.")


# Whole numbers of more values are real targets: ages, counts. The same number as for a column of a table.
_MOST_CLASSES = 20


def _may_be_classes(y: np.ndarray) -> bool:
    """Whether floats of one column are few whole numbers."""
    if y.size != len(y) or not np.isfinite(y).all() or (y != np.round(y)).any():
        return False
    return len(np.unique(y)) <= min(_MOST_CLASSES, len(y) // 2)
