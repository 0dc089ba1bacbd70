"""Which images and labels."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are prepared and which of them are used.

    Args:
        kind: `digits`, `npz`, `cifar10`, `cifar100`, `image_folder`, `mnist`, `synthetic`, or `labels` (without images, for
            `kernel=gram`; an npz of `y_train` and `y_test`, in the order of the kernel's rows).
        path: file or folder; not used by `digits` and `synthetic`.
        download: fetch `cifar10`, `cifar100` or `mnist` into `path` when absent there.
        source: where `download` fetches from; None is the data set's official address.
        image_size: `[height, width]` that images of `image_folder` are resized to; None requires equal sizes.
        layout: of the arrays of `npz`: `NHWC` (images, height, width, channels) or `NCHW` (channels first); None is `NHWC`, and
            refuses shapes that look like another. Arrays of three axes are gray images (images, height, width).
        train_size: the first so many images of the seeded order; None is all.
        test_size: likewise for test images.
        subset_seed: of the order in which images are stored; subsets are prefixes of it, hence nested.
        balanced: order the classes in turn, so that every subset is balanced.
        standardize: `channel` (zero mean, unit variance per channel) or `none` (pixels as they are; uint8 scaled to 0..1).
        unit_norm: scale every image to unit Euclidean norm (after standardisation).
        zca: strength of the regularised ZCA whitening relative to the mean eigenvalue of the covariance; None is off.
        downsample: edge of the block mean; 1 is off.
        statistics: `full` training set or the chosen `subset`.
        labels: `centered` (one-hot minus 1/classes), `half` (one-hot minus 1/2) or `regression` (targets as given).
        drop_invalid: drop images with NaN or infinite pixels instead of refusing them.
        n_train, n_test, shape, classes, noise: of `synthetic` images.
    """

    kind: str = "digits"
    path: str | None = None
    download: bool = False
    source: str | None = None
    image_size: tuple[int, ...] | None = None
    layout: str | None = None
    train_size: int | None = None
    test_size: int | None = None
    subset_seed: int = 0
    balanced: bool = False
    standardize: str = "channel"
    unit_norm: bool = False
    zca: float | None = None
    downsample: int = 1
    statistics: str = "full"
    labels: str = "centered"
    drop_invalid: bool = False
    n_train: int = 500
    n_test: int = 100
    shape: tuple[int, ...] = (8, 8, 1)
    classes: int = 10
    noise: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("digits", "npz", "cifar10", "cifar100", "image_folder", "mnist", "synthetic", "labels")
        choice("data.kind", self.kind, kinds)
        choice("data.layout", self.layout, (None, "NHWC", "NCHW"))
        choice("data.standardize", self.standardize, ("channel", "none"))
        choice("data.statistics", self.statistics, ("full", "subset"))
        choice("data.labels", self.labels, ("centered", "half", "regression"))
        for name in ("train_size", "test_size", "downsample", "n_train", "n_test"):
            at_least(f"data.{name}", getattr(self, name), 1)
        at_least("data.classes", self.classes, 2)
        at_least("data.zca", self.zca, 0.0)
        at_least("data.noise", self.noise, 0.0)
        if self.path is None and self.kind not in ("digits", "synthetic"):
            raise ConfigError(f"data={self.kind} needs data.path=FILE_OR_FOLDER")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"data.shape={list(self.shape)} must be [height, width, channels], all positive")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ConfigError(f"data.image_size={list(self.image_size)} must be [height, width], both positive")
        if self.kind == "labels" and self.balanced:
            raise ConfigError(
                "data.balanced orders images, and the rows of a given kernel have their order: leave it out"
            )
