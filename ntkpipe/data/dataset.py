"""Loads and prepares the data set of a `DataConfig`."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ntkpipe.config import DataConfig
from ntkpipe.data.fingerprint import fingerprint, preprocessing_settings
from ntkpipe.data.labels import Targets, class_notes, make_targets, require_two_classes
from ntkpipe.data.preprocess import Preprocessing, fit, output_shape
from ntkpipe.data.raw import RawImages, checked
from ntkpipe.data.subsets import stored_order
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.sequences import filled

_log = logging.getLogger(__name__)

# One module per kind, each with `load(config) -> RawImages`. A module is imported on use, so that only tables need
# pyarrow.
_LOADERS = {
    "digits": "ntkpipe.data.digits",
    "npz": "ntkpipe.data.npz",
    "table": "ntkpipe.data.table",
    "cifar10": "ntkpipe.data.cifar",
    "cifar100": "ntkpipe.data.cifar",
    "image_folder": "ntkpipe.data.image_folder",
    "mnist": "ntkpipe.data.mnist",
    "synthetic": "ntkpipe.data.synthetic",
}


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Prepared images and targets in stored order; the arrays span the full set.

    Args:
        x_train: `(n, h, w, c)` float32 or float64 training images; the first `n_train` are the subset in use.
        x_test: `(p, h, w, c)` test images of the same dtype; the first `n_test` are in use.
        y_train: `(n, c)` float64 training targets.
        y_test: `(p, c)` float64 test targets in their original units; NaN where unknown.
        labels_train: `(n,)` int64 labels; None for regression.
        labels_test: `(p,)` int64 labels; None for regression or if unknown.
        class_names: one name per column of the targets.
        train_index: `(n,)` int64, the source row of every stored training row.
        test_index: `(p,)` int64, the source row of every stored test row.
        n_train: number of leading training rows in use.
        n_test: number of leading test rows in use.
        fingerprint: SHA-256 of everything that a Gram matrix depends on; `fingerprint.py` computes it.
        preprocessing: the steps and their statistics, plain JSON.
        mean: `(c,)` mean that was subtracted from the training targets; None if they are unchanged.
        scale: `(c,)` divisor of the training targets; None if they are unchanged.
        notes: notes for the user about images and labels.
    """

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray
    labels_train: np.ndarray | None
    labels_test: np.ndarray | None
    class_names: tuple[str, ...]
    train_index: np.ndarray
    test_index: np.ndarray
    n_train: int
    n_test: int
    fingerprint: str
    preprocessing: dict[str, Any]
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def load_raw(config: DataConfig) -> RawImages:
    """Load and check the images and labels of `config`, before preprocessing, in the order of their source.

    Raises:
        DataError: if the files are absent, malformed or hold unusable values. The text says what to do.
    """
    raw: RawImages = importlib.import_module(_LOADERS[config.kind]).load(config)
    # Only npz files may hold arrays of another layout. The other loaders return NHWC.
    return checked(raw, drop_invalid=config.drop_invalid, layout=config.layout if config.kind == "npz" else "NHWC")


def load_dataset(config: DataConfig, *, dtype: str = "float32") -> PreparedDataset:
    """Load, check, order and preprocess a data set.

    Args:
        config: the images and how to prepare them.
        dtype: dtype of the prepared images, `float32` or `float64`; all arithmetic is float64.

    Raises:
        ConfigError: if a setting contradicts the data.
        DataError: if the data cannot be used.
    """
    _check_settings(config, dtype)
    return prepare_dataset(load_raw(config), config, dtype=dtype)


def _check_settings(config: DataConfig, dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"points can be prepared as float32 or float64, not {dtype}")
    if config.balanced and config.labels == "regression":
        raise ConfigError("data.balanced=true needs class labels: it cannot be used with data.labels=regression")


class Order(NamedTuple):
    """Targets in the order of the source, the stored order of training and test set, and the numbers of used points."""

    targets: Targets
    train: np.ndarray
    test: np.ndarray
    n_train: int
    n_test: int


def order_dataset(raw: RawImages, config: DataConfig) -> Order:
    """Return the targets and the stored order of a checked data set.

    Raises:
        ConfigError: if a setting contradicts the data.
        DataError: if a subset is larger than the data, or labels or targets cannot be used.
    """
    output_shape(raw.x_train.shape[1:], config.downsample)
    n_train = _used("train_size", config.train_size, raw.x_train.shape[0], f"training {raw.rows_are}")
    n_test = _used("test_size", config.test_size, raw.x_test.shape[0], f"test {raw.rows_are}")
    targets = make_targets(raw, config.labels, config.targets)
    if config.balanced and targets.labels_train is None:
        raise ConfigError("data.balanced=true needs class labels: it cannot be used with real targets")

    train_order = stored_order(
        raw.x_train.shape[0],
        seed=config.subset_seed,
        part="train",
        labels=targets.labels_train if config.balanced else None,
    )
    test_order = stored_order(
        raw.x_test.shape[0],
        seed=config.subset_seed,
        part="test",
        labels=targets.labels_test if config.balanced else None,
    )
    if targets.labels_train is not None:
        labels = targets.labels_train[train_order]
        require_two_classes(labels[:n_train], targets.class_names, f"the subset data.train_size={n_train}")
    return Order(targets, train_order, test_order, n_train, n_test)


def _statistics_rows(raw: RawImages, config: DataConfig, used: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the sorted rows behind the statistics, and whether they are a subset of the training set."""
    of_subset = config.statistics == "subset" and len(used) < raw.x_train.shape[0]
    return np.sort(used) if of_subset else np.arange(raw.x_train.shape[0]), of_subset


def fit_preprocessing(raw: RawImages, config: DataConfig) -> Preprocessing:
    """Fit the preprocessing steps that `prepare_dataset` applies."""
    order = order_dataset(raw, config)
    rows, _ = _statistics_rows(raw, config, order.train[: order.n_train])
    return fit(raw.x_train, rows, config, raw.fixed)


def prepare_dataset(raw: RawImages, config: DataConfig, *, dtype: str = "float32") -> PreparedDataset:
    """Order and preprocess checked images.

    Memory holds the prepared arrays, the raw ones and float64 chunks of 16 MB. For all of CIFAR-10 in float32 the whole
    process peaks at 1.2 GB.

    Args:
        raw: checked images from `load_raw`.
        config: how to prepare them.
        dtype: dtype of the prepared images, `float32` or `float64`; all arithmetic is float64.

    Raises:
        ConfigError: if a setting contradicts the data.
        DataError: if the data cannot be used.
    """
    _check_settings(config, dtype)
    assert raw.index_train is not None  # set by `checked`
    assert raw.index_test is not None
    targets, train_order, test_order, n_train, n_test = order_dataset(raw, config)
    labels_train, labels_test = targets.labels_train, targets.labels_test
    labels_train = None if labels_train is None else labels_train[train_order]
    labels_test = None if labels_test is None else labels_test[test_order]
    statistics_rows, of_subset = _statistics_rows(raw, config, train_order[:n_train])
    train_index, test_index = raw.index_train[train_order], raw.index_test[test_order]
    settings = preprocessing_settings(config, raw.index_train[statistics_rows] if of_subset else None, raw.encoding)
    identity = fingerprint(raw.x_train, raw.x_test, train_index, test_index, settings)

    preprocessing = fit(raw.x_train, statistics_rows, config, raw.fixed)
    x_train = preprocessing.transform(raw.x_train, train_order, dtype)
    x_test = preprocessing.transform(raw.x_test, test_order, dtype)
    for name, x in (("training", x_train), ("test", x_test)):
        _require_finite(name, x)
    _log.info(
        "%s: %s of %s training and %s of %s test %s, %s, prepared as %s",
        config.kind,
        f"{n_train:,}",
        f"{x_train.shape[0]:,}",
        f"{n_test:,}",
        f"{x_test.shape[0]:,}",
        raw.rows_are,
        " x ".join(map(str, x_train.shape[1:])),
        dtype,
    )
    return PreparedDataset(
        x_train=x_train,
        x_test=x_test,
        y_train=targets.y_train[train_order],
        y_test=targets.y_test[test_order],
        labels_train=labels_train,
        labels_test=labels_test,
        class_names=targets.class_names,
        train_index=train_index,
        test_index=test_index,
        n_train=n_train,
        n_test=n_test,
        fingerprint=identity,
        preprocessing={
            "kind": config.kind,
            "standardize": config.standardize,
            "zca": config.zca,
            "pixels": raw.x_train.dtype.name,
            **preprocessing.summary(),
            **({} if raw.encoding is None else {"encoding": raw.encoding}),
        },
        mean=targets.mean,
        scale=targets.scale,
        notes=(*raw.notes, *class_notes(targets.labels_train, targets.labels_test, targets.class_names)),
    )


def _used(setting: str, asked: int | None, present: int, what: str) -> int:
    if asked is None:
        return present
    if asked > present:
        raise DataError(f"data.{setting}={asked}, but there are only {present} {what}: ask for at most {present}")
    return asked


def _require_finite(name: str, x: np.ndarray) -> None:
    # A value overflows if finite float64 pixels exceed float32, or if an image is far outside the training set's range.
    total = sum(float(np.count_nonzero(~np.isfinite(filled(x[i : i + 1024])))) for i in range(0, x.shape[0], 1024))
    if total:
        raise DataError(
            f"{int(total)} prepared {name} values overflow {x.dtype}: rescale them, or set kernel.dtype=float64"
        )
