"""Settings of the points and labels."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """The points of the data set: where they come from, how they are prepared, and which of them are used.

    Args:
        kind: kind of data: `digits`, `npz`, `table`, `cifar10`, `cifar100`, `image_folder`, `mnist`, `synthetic` or
            `labels`. `labels` has no images and is for `kernel=gram`: an npz of `y_train` and `y_test`, in the order
            of the kernel's rows.
        path: file or folder of the data. `digits` and `synthetic` need none.
        target: for `table`: the column to predict, or several columns of numbers.
        features: for `table`: the columns to use as features. By default all columns except the target.
        missing: for `table`: `drop` drops rows with missing entries, `mean` replaces them by the mean of the training
            rows. By default missing entries are refused.
        split: for `table`: a column that holds `train` or `test` in each row.
        test_path: for `table`: a second file with the test rows. Its target column may be missing.
        test_fraction: share of the rows to keep for testing if the data has no test rows. The rows are drawn with
            `subset_seed`, in proportion to the classes. By default 0.2 for `table`; `npz` and `image_folder` without
            test points need it.
        download: download `cifar10`, `cifar100` or `mnist` into `path` if it is missing there.
        source: address to download from. By default the data set's official address.
        image_size: for `image_folder`: `[height, width]` to which images are resized, or one number for both. By
            default all images must have the same size.
        layout: for `npz`: order of the axes. Images are `NHWC` (images, height, width, channels) or `NCHW`, sequences
            `NLC` (sequences, length, channels) or `NCL`, volumes `NDHWC` (volumes, depth, height, width, channels) or
            `NCDHW`. By default `NHWC`, or `NDHWC` for five axes; shapes that look like another layout are refused.
            Without `layout`, three axes are gray images (images, height, width).
        train_size: number of training points: the first ones of the seeded order. By default all.
        test_size: number of test points: the first ones of the seeded order. By default all.
        folds: number of parts for cross-validation. Each part of the training points is predicted from the others,
            with the one Gram matrix. By default there is no cross-validation.
        subset_seed: seed of the order in which points are stored. Subsets are the first points of this order, so they
            are nested.
        balanced: order the classes in turn, so that every subset is balanced.
        standardize: `channel` (zero mean and unit variance per channel) or `none` (raw values; uint8 is scaled to
            0..1).
        unit_norm: scale every point to unit Euclidean norm, after standardisation.
        zca: strength of the regularised ZCA whitening, relative to the mean eigenvalue of the covariance. By default
            there is no whitening.
        downsample: edge of the blocks of pixels that are averaged. 1 keeps the images unchanged.
        statistics: points for the statistics of the preparation: the `full` training set, or the chosen `subset`.
        labels: `centered` (one-hot minus 1/classes), `half` (one-hot minus 1/2) or `regression` (real targets). By
            default `centered`; for `table` the target column decides, and numbers with many values mean regression;
            with `targets` it is `regression`.
        targets: for regression: `standardize` (zero mean and unit variance; predictions are in the original units) or
            `none`. By default tables are standardised.
        drop_invalid: drop points with NaN or infinite values instead of refusing them.
        n_train: for `synthetic`: number of training images.
        n_test: for `synthetic`: number of test images.
        shape: for `synthetic`: `[height, width, channels]`.
        classes: for `synthetic`: number of classes.
        noise: for `synthetic`: standard deviation of the noise.
    """

    kind: str = "digits"
    path: str | None = None
    target: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    missing: str | None = None
    split: str | None = None
    test_path: str | None = None
    test_fraction: float | None = None
    download: bool = False
    source: str | None = None
    image_size: tuple[int, ...] | None = None
    layout: str | None = None
    train_size: int | None = None
    test_size: int | None = None
    folds: int | None = None
    subset_seed: int = 0
    balanced: bool = False
    standardize: str = "channel"
    unit_norm: bool = False
    zca: float | None = None
    downsample: int = 1
    statistics: str = "full"
    labels: str | None = None
    targets: str | None = None
    drop_invalid: bool = False
    n_train: int = 500
    n_test: int = 100
    shape: tuple[int, ...] = (8, 8, 1)
    classes: int = 10
    noise: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("digits", "npz", "table", "cifar10", "cifar100", "image_folder", "mnist", "synthetic", "labels")
        choice("data.kind", self.kind, kinds)
        choice("data.layout", self.layout, (None, "NHWC", "NCHW", "NLC", "NCL", "NDHWC", "NCDHW"))
        choice("data.standardize", self.standardize, ("channel", "none"))
        choice("data.statistics", self.statistics, ("full", "subset"))
        choice("data.labels", self.labels, (None, "centered", "half", "regression"))
        choice("data.targets", self.targets, (None, "standardize", "none"))
        choice("data.missing", self.missing, (None, "drop", "mean"))
        if self.labels is None and self.targets is not None:
            object.__setattr__(self, "labels", "regression")
        if self.labels is None and self.kind != "table":
            object.__setattr__(self, "labels", "centered")
        for name in ("train_size", "test_size", "downsample", "n_train", "n_test"):
            at_least(f"data.{name}", getattr(self, name), 1)
        at_least("data.classes", self.classes, 2)
        at_least("data.folds", self.folds, 2)
        at_least("data.zca", self.zca, 0.0)
        at_least("data.noise", self.noise, 0.0)
        if self.path is None and self.kind not in ("digits", "synthetic"):
            raise ConfigError(f"data={self.kind} needs data.path=FILE_OR_FOLDER")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"data.shape={list(self.shape)} must be [height, width, channels], all positive")
        if self.image_size is not None and len(self.image_size) == 1:
            object.__setattr__(self, "image_size", self.image_size * 2)
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ConfigError(
                f"data.image_size={list(self.image_size)} must be [height, width], or one number for both, positive"
            )
        at_least("data.test_fraction", self.test_fraction, 0.0, strict=True)
        if self.test_fraction is not None and self.test_fraction >= 1:
            raise ConfigError(f"data.test_fraction={self.test_fraction} must be below 1: it is a share of the rows")
        if self.kind == "table":
            self._check_table()
        if self.kind == "labels" and self.balanced:
            raise ConfigError(
                "data.balanced reorders points, but the rows of a given kernel have a fixed order: leave "
                "data.balanced out"
            )

    def _check_table(self) -> None:
        if not self.target:
            raise ConfigError("data=table needs data.target=COLUMN, the column to predict")
        chosen = [name for name in ("split", "test_path", "test_fraction") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(
                f"{' and '.join(f'data.{name}' for name in chosen)} choose the test rows in different ways: give one of them"
            )
