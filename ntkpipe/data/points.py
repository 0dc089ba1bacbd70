"""The public `Dataset`: arrays and their preparation, by the names of the settings."""

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

# These settings apply to files only, so `Dataset` does not accept them for arrays.
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
# The kinds of data that read a setting; all kinds read the others. Frames are tables, and arrays are like npz files.
_KINDS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("target", "features", "missing", "split", "test_path"), ("table",)),
    **dict.fromkeys(("layout", "drop_invalid"), ("npz",)),
    **dict.fromkeys(("download", "source"), ("cifar10", "cifar100", "mnist")),
    **dict.fromkeys(("n_train", "n_test", "shape", "classes", "noise"), ("synthetic",)),
    "image_size": ("image_folder",),
    "test_fraction": ("npz", "table", "image_folder"),
}
_PREPARATION = tuple(f.name for f in dataclasses.fields(DataConfig) if f.name not in _OF_FILES)


class Dataset:
    """Training and test points. They are checked at once and prepared when a kernel needs them.

    Rows are kept in the *stored order*, a shuffle by `subset_seed` in which subsets are nested. `targets` and the rows
    of a `Gram` and its kernels follow this order. Predictions are in the order of the arrays.

    Args:
        x_train: images `(n, h, w, c)`, gray images `(n, h, w)`, or features `(n, d)`, as uint8 (divided by 255) or
            floats (unchanged). A frame of pandas, polars or pyarrow is read like a file of `data=table`; its columns
            may be categories.
        y_train: class labels `(n,)` (whole numbers from 0, names, truth values or categories), one-hot rows `(n, c)`,
            or real targets `(n,)` or `(n, c)`. Floats are real targets unless they are one-hot rows, or `labels` says
            otherwise. Floats with only a few distinct whole values are refused unless `labels` is given.
        x_test: p test points in the form of `x_train`; None takes a share `test_fraction` (0.2) of the training points.
        y_test: labels or targets of the test points in the form of `y_train`; None if they are unknown. Then there are
            predictions but no metrics.
        mask: for sequences of different lengths, `(n,)` lengths, or `(n, length)` bool that is true up to the end of
            each sequence. Values after the end are ignored. None if all sequences have the length of the array.
        mask_test: lengths or mask of the sequences of `x_test`, in the form of `mask`.
        class_names: names of the labels 0, 1, ...; None uses the numbers.
        preparation: settings by their names in `data.*`: `standardize` (`channel` or `none`), `unit_norm`, `zca`,
            `downsample`, `layout`, `train_size`, `test_size`, `test_fraction`, `subset_seed`, `balanced`, `statistics`,
            `drop_invalid`, `labels` (`centered`, `half`, or `regression`, the default for real targets) and `targets`
            (`standardize` or `none`). Frames also take `features` and `missing`.

    Raises:
        ConfigError: if a setting is unknown or contradicts the data.
        DataError: if the arrays cannot be used. The text gives the remedy.

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
                f"{', '.join(unknown)} is not an argument of Dataset: use any of {', '.join(_PREPARATION)}"
            )
        if x_test is not None and preparation.get("test_fraction") is not None:
            raise ConfigError("test_fraction has no meaning beside x_test: leave one of them out")
        names = categories_of(y_train) if class_names is None else tuple(str(name) for name in class_names)
        if is_frame(x_train):
            if mask is not None or mask_test is not None:
                raise ConfigError("mask is for sequences, arrays (n, length, channels): leave it out with a frame")
            config = _config(kind="table", path="frame", target="target", **preparation)
            given = None if class_names is None else names
            raw, config = table.from_frames(x_train, y_train, x_test, y_test, config, given)
            self._start(checked(raw, drop_invalid=False), config)
            self._check_names(class_names)
            return
        y_train, y_test = np.asarray(y_train), None if y_test is None else np.asarray(y_test)
        if y_train.dtype.kind == "f" and not is_one_hot(y_train):
            if "labels" not in preparation and _may_be_classes(y_train):
                raise DataError(
                    f"y_train is {y_train.dtype} of {len(np.unique(y_train))} whole numbers, which may be classes or "
                    "real targets: set labels='centered' or labels='regression', or give classes as integers"
                )
            preparation.setdefault("labels", "regression")
        config = _config(kind="npz", path="arrays", **preparation)
        if x_test is None:
            if y_test is not None:
                raise DataError("y_test without x_test: give the test points, or leave y_test out")
            if mask_test is not None:
                raise DataError(
                    "mask_test without x_test: leave mask_test out, because test points are drawn from the points of "
                    "mask"
                )
            raw = RawImages(np.asarray(x_train), y_train, np.empty(0), None, class_names=names, mask_train=mask)
            raw = npz.split(raw, config)
        else:
            masks = {"mask_train": mask, "mask_test": mask_test}
            raw = RawImages(np.asarray(x_train), y_train, np.asarray(x_test), y_test, class_names=names, **masks)
        self._start(checked(raw, drop_invalid=config.drop_invalid, layout=config.layout), config)
        self._check_names(class_names)

    def _check_names(self, class_names: tuple[str, ...] | list[str] | None) -> None:
        if class_names is not None and not self.is_classes:
            raise ConfigError("class_names names classes, but the targets are real numbers: leave it out")

    @classmethod
    def of(cls, config: DataConfig) -> Dataset:
        """Read the data set of a configuration."""
        made = cls.__new__(cls)
        made._start(load_raw(config), config)
        return made

    def _start(self, raw: RawImages, config: DataConfig) -> None:
        self._raw, self.config = raw, config
        self._order: Order = order_dataset(raw, config)
        self._prepared: dict[str, PreparedDataset] = {}

    @property
    def n(self) -> int:
        """Number of training points in use."""
        return self._order.n_train

    @property
    def p(self) -> int:
        """Number of test points in use."""
        return self._order.n_test

    @property
    def targets(self) -> np.ndarray:
        """Targets (n, c) float64 of the training points in use, in stored order. A solver takes them."""
        return self._order.targets.y_train[self._order.train[: self.n]]

    @property
    def is_classes(self) -> bool:
        """Whether the targets encode classes."""
        return self._order.targets.labels_train is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the columns of the targets: classes, or outputs of regression."""
        return self._order.targets.class_names

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about points and labels."""
        targets = self._order.targets
        return (*self._raw.notes, *class_notes(targets.labels_train, targets.labels_test, targets.class_names))

    def prepared(self, dtype: str = "float32") -> PreparedDataset:
        """Return prepared images and targets in stored order. The result is kept for the next call.

        Args:
            dtype: dtype of the images, `float32` or `float64`; all arithmetic is float64.
        """
        if dtype not in self._prepared:
            self._prepared[dtype] = prepare_dataset(self._raw, self.config, dtype=dtype)
        return self._prepared[dtype]

    @property
    def features(self) -> tuple[str, ...] | None:
        """Names of a table's features, in order; None for arrays."""
        encoding = self._raw.encoding
        return None if encoding is None else Encoding.from_dict(encoding).features

    def __repr__(self) -> str:
        size = self._raw.x_train.shape[1:]
        flat = len(size) == 3 and tuple(size[:2]) == (1, 1)
        shape = counted(size[2], "feature") if flat else " x ".join(map(str, size))
        outputs = counted(len(self.class_names), "output")
        return f"Dataset({self.n:,} training and {self.p:,} test points of {shape}, {outputs})"


def load_dataset(kind: str, path: str | None = None, **settings: Any) -> Dataset:
    """Load a data set by name, as `data=KIND` does on the command line.

    Args:
        kind: `digits`, `table`, `npz`, `cifar10`, `cifar100`, `mnist`, `image_folder` or `synthetic`.
        path: path of its files; `digits` and `synthetic` need none.
        settings: any other settings of `data.*`, such as `target="price"`, `download=True` or `train_size=1000`.

    Raises:
        ConfigError: if the kind or a setting is unknown.
        DataError: if the files are absent or unusable. The text gives the remedy.

    Examples:
        >>> load_dataset("digits", train_size=500)
        Dataset(500 training and 360 test points of 8 x 8 x 1, 10 outputs)
    """
    known = {f.name for f in dataclasses.fields(DataConfig)} - {"kind", "path"}
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"{', '.join(unknown)} is not a setting of data: use any of {', '.join(sorted(known))}")
    return Dataset.of(_config(kind=kind, path=path, **settings))


def _config(**settings: Any) -> DataConfig:
    """Make a configuration from settings. A single name or number becomes a list of one, as on the command line.

    Raises:
        ConfigError: if a setting is unknown or impossible, or this kind of data does not read it.
    """
    kind, path = settings["kind"], settings.get("path")
    what = {"frame": "a frame", "arrays": "arrays"}.get(str(path), f"data of kind {kind!r}")
    for name in settings:
        if kind not in _KINDS_OF.get(name, (kind,)):
            raise ConfigError(f"{name} has no meaning for {what}: leave it out")
    return from_dict(DataConfig, settings, "data.")


# Whole numbers with more distinct values are real targets, such as ages or counts. Tables have the same limit.
_MOST_CLASSES = 20


def _may_be_classes(y: np.ndarray) -> bool:
    """Return whether `y` is one column of floats with only a few distinct whole values."""
    if y.size != len(y) or not np.isfinite(y).all() or (y != np.round(y)).any():
        return False
    return len(np.unique(y)) <= min(_MOST_CLASSES, len(y) // 2)
