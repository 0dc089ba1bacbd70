"""Which points and labels."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Which points, how they are prepared and which of them are used.

    Args:
        kind: `digits`, `npz`, `table`, `cifar10`, `cifar100`, `image_folder`, `mnist`, `synthetic`, or `labels` (without images, for
            `kernel=gram`; an npz of `y_train` and `y_test`, in the order of the kernel's rows).
        path: file or folder; not used by `digits` and `synthetic`.
        target: of `table`, the column that is to be predicted, or several of numbers.
        features: of `table`, the columns that it is predicted from; none named are all others.
        missing: of `table`, what becomes of missing entries: None refuses them, `drop` leaves their rows out, `mean` takes the mean of
            the training rows.
        split: of `table`, a column that holds `train` or `test` in each row.
        test_path: of `table`, a second file with the test rows; its targets may be missing.
        test_fraction: share of the rows that is kept for testing where the data has no test rows of its own, drawn with
            `subset_seed`, of each class in proportion; None is 0.2 for `table`, and refuses `npz` and `image_folder` without
            test points.
        download: fetch `cifar10`, `cifar100` or `mnist` into `path` when absent there.
        source: where `download` fetches from; None is the data set's official address.
        image_size: `[height, width]` that images of `image_folder` are resized to, one number for both; None requires equal sizes.
        layout: of the arrays of `npz`: `NHWC` (images, height, width, channels), `NCHW` (channels first), or of sequences `NLC`
            (sequences, length, channels) or `NCL`, or of volumes `NDHWC` (volumes, depth, height, width, channels) or `NCDHW`; None is
            `NHWC`, of five axes `NDHWC`, and refuses shapes that look like another. Other arrays of three axes are gray images
            (images, height, width).
        train_size: the first so many points of the seeded order; None is all.
        test_size: likewise for test points.
        folds: so many parts of the training points, each predicted from the others, by the one Gram matrix; None makes no
            cross-validation.
        subset_seed: of the order in which points are stored; subsets are prefixes of it, hence nested.
        balanced: order the classes in turn, so that every subset is balanced.
        standardize: `channel` (zero mean, unit variance per channel) or `none` (pixels as they are; uint8 scaled to 0..1).
        unit_norm: scale every point to unit Euclidean norm (after standardisation).
        zca: strength of the regularised ZCA whitening relative to the mean eigenvalue of the covariance; None is off.
        downsample: edge of the block mean; 1 is off.
        statistics: `full` training set or the chosen `subset`.
        labels: `centered` (one-hot minus 1/classes), `half` (one-hot minus 1/2) or `regression` (real targets); None is `centered`,
            but for `table`, where it is what the target looks like: numbers of many values are regression.
        targets: of regression, `standardize` (zero mean, unit variance; predictions are in the units of the data again) or `none`;
            None standardises those of `table`.
        drop_invalid: drop points with NaN or infinite values instead of refusing them.
        n_train, n_test, shape, classes, noise: of `synthetic` images.
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
                "data.balanced orders points, and the rows of a given kernel have their order: leave it out"
            )

    def _check_table(self) -> None:
        if not self.target:
            raise ConfigError("data=table needs data.target=COLUMN, the column that is to be predicted")
        chosen = [name for name in ("split", "test_path", "test_fraction") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ConfigError(
                f"{' and '.join(f'data.{name}' for name in chosen)} choose the test rows in different ways: give one of them"
            )
