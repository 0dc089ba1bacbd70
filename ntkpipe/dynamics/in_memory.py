"""Predictions of small problems in one call, for notebooks. It uses an eigendecomposition in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.data.class_labels import numbered
from ntkpipe.data.labels import contiguous_names, encode_labels, integer_labels, regression_targets
from ntkpipe.data.raw import require_one_scale
from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.filters import absolute_ridge, make_filter
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.images import as_images
from ntkpipe.kernels.sequences import filled
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.tasks.environment import keep_compiled


@dataclass(frozen=True)
class InMemoryPrediction:
    """The result of `predict_in_memory`.

    Args:
        times: T training times in steps.
        mean: (T, p, c) float64, outputs averaged over networks.
        covariance: variances (T, p) or covariances (T, p, p) over networks, equal for every output; None if not requested.
        max_learning_rate: learning rate above which discrete training diverges.
        ridge: the absolute ridge that is added to the diagonal.
        class_names: names of the outputs; None if `y_train` contained targets.
    """

    times: tuple[float, ...]
    mean: np.ndarray
    covariance: np.ndarray | None
    max_learning_rate: float
    ridge: float
    class_names: tuple[str, ...] | None = None


def predict_in_memory(
    architecture: Architecture | Sequence[Mapping[str, Any]],
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    *,
    times: float | Sequence[float] | np.ndarray = (math.inf,),
    ridge: float = 0.0,
    ridge_scale: str = "relative",
    kernel: str = "ntk",
    learning_rate: float = 1.0,
    dynamics: str = "gradient_flow",
    momentum: float = 0.9,
    covariance: str = "none",
    dtype: str = "float64",
    layout: str | None = None,
    classes: int | None = None,
) -> InMemoryPrediction:
    """Exact predictions of an infinitely wide network trained on squared loss (Lee et al. 2019, arXiv:1902.06720).

    It takes n^3 arithmetic and a few n x n float64 arrays. For larger problems use the pipeline. Images are not
    normalised: normalise them first.

    Args:
        architecture: an `Architecture`, or its list of layers.
        x_train: (n, height, width, channels), (n, height, width) or (n, features).
        y_train: labels (n,) or (n, 1), or targets (n, c). Labels are whole numbers from 0 on, names or truth values, numbered in
            their order, and are encoded as one-hot minus 1/classes. Targets are real numbers, or integers in several columns.
        x_test: (p, ...) with the same image shape.
        times: one or several training times in steps; may be `inf`.
        ridge: number that is added to the diagonal.
        ridge_scale: `relative` to the mean of the diagonal, or `absolute`.
        kernel: `ntk` (all layers trained), `nngp` (only the readout trained) or `ntkgp` (posterior with the NTK as
            covariance).
        learning_rate: learning rate of gradient descent on `||f - y||^2 / (2 n c)`.
        dynamics: `gradient_flow`, `gradient_descent` or `momentum`.
        momentum: coefficient of heavy-ball momentum, only for `momentum` dynamics.
        covariance: `none`, `diagonal` or `full`.
        dtype: precision of the kernels, `float64` or `float32`; everything else is float64.
        layout: layout of images, `NHWC` or `NCHW`; None is `NHWC`, and raises an error if the shape looks like another layout.
        classes: number of classes; None counts the labels, and every class must then be present.

    Raises:
        ConfigError: if a setting is invalid.
        DataError: if arrays do not fit together or look like another layout, hold non-finite values, or labels skip a
            class or have a single class.
        NumericalError: if a variance is more negative than rounding explains.

    Warns:
        UserWarning: if the kernel is singular and null directions are left out, or the learning rate is above the stable
            maximum.
    """
    for name, value, allowed in (
        ("kernel", kernel, ("ntk", "nngp", "ntkgp")),
        ("covariance", covariance, ("none", "diagonal", "full")),
        ("dtype", dtype, ("float32", "float64")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    arch = architecture if isinstance(architecture, Architecture) else Architecture.from_spec(architecture)
    train, test = _images("x_train", x_train, dtype, layout), _images("x_test", x_test, dtype, layout)
    require_one_scale(train, test)
    targets, names = _targets(y_train, len(train), classes)
    keep_compiled()
    times = tuple(float(t) for t in np.atleast_1d(np.asarray(times, dtype=np.float64)))
    if not times:
        raise ConfigError("times is empty: give at least one, such as times=inf")
    n, c = targets.shape
    spectral_filter = make_filter(dynamics, n, c, learning_rate=learning_rate, momentum=momentum)
    for time in times:
        spectral_filter.check_time(time)

    train_train, test_train = arch(train, layout="NHWC"), arch(test, train, layout="NHWC")
    name = "nngp" if kernel == "nngp" else "ntk"
    gram, cross = _float64(getattr(train_train, name)), _float64(getattr(test_train, name))
    added = absolute_ridge(ridge, np.diagonal(gram), ridge_scale)
    system = Eigensystem.of(gram, dtype)
    largest = float(system.values[-1]) + added
    warn_of_doubt(
        spectral_filter.instability(largest), gp.count_unlearnt(system, spectral_filter, times, added), kernel
    )

    mean = gp.means(system, cross, targets, spectral_filter, times, [added])[:, 0]
    spread, eps = None, float(np.finfo(dtype).eps)
    if covariance != "none":
        own = arch(test, layout="NHWC") if covariance == "full" else arch.diagonal(test, layout="NHWC")
        if kernel == "ntk":
            spread = [
                gp.ntk_covariance(
                    system,
                    cross,
                    _float64(train_train.nngp),
                    _float64(test_train.nngp),
                    _float64(own.nngp),
                    spectral_filter,
                    t,
                    added,
                    eps,
                )
                for t in times
            ]
        else:
            spread = [
                gp.nngp_covariance(system, cross, _float64(getattr(own, name)), spectral_filter, t, added, eps)
                for t in times
            ]
    return InMemoryPrediction(
        times,
        mean,
        None if spread is None else np.stack(spread),
        spectral_filter.max_learning_rate(largest),
        added,
        names,
    )


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def _images(name: str, images: np.ndarray, dtype: str, layout: str | None) -> np.ndarray:
    images = np.asarray(images, dtype=dtype)
    if images.size == 0:
        raise DataError(f"{name} is empty (shape {images.shape}): at least one point with at least one value is needed")
    images = np.ascontiguousarray(as_images(name, images, layout))
    if not np.isfinite(filled(images)).all():
        raise DataError(f"{name} holds NaN or infinite values: clean them first")
    return images


def _targets(y: np.ndarray, n: int, classes: int | None) -> tuple[np.ndarray, tuple[str, ...] | None]:
    y = np.asarray(y)
    if y.ndim not in (1, 2) or len(y) != n:
        raise DataError(f"y_train has shape {y.shape}: expected ({n},) integer labels or ({n}, c) targets")
    if y.ndim == 2 and (y.shape[1] != 1 or y.dtype.kind == "f"):
        return regression_targets("y_train", y), None
    y, _, names = numbered(y, None, None)
    labels = integer_labels("y_train", y, "pass an array (n, c)")
    if names is None:
        names = tuple(map(str, range(classes))) if classes else contiguous_names(labels, "give the number of classes=")
    if labels.max() >= len(names):
        raise DataError(
            f"y_train holds the label {labels.max()}: of {len(names)} classes labels are 0..{len(names) - 1}"
        )
    if labels.min() == labels.max():
        raise DataError("y_train holds a single class: there is nothing to learn")
    return encode_labels(labels, len(names), "centered"), names


def warn_of_doubt(instability: str | None, unlearnt: int, kernel: str) -> None:
    """Issue warnings about doubtful predictions, at the place of the caller's caller.

    Args:
        instability: the warning about a learning rate that is too large, or None.
        unlearnt: number of null directions of the kernel that are left out.
        kernel: name of the kernel.
    """
    if instability:
        warnings.warn(instability, stacklevel=3)
    if unlearnt:
        warnings.warn(
            f"the {kernel} kernel is singular to rounding ({unlearnt} null directions, for example from equal points). They "
            "stay unlearnt at the last time: remove duplicates or set a ridge",
            stacklevel=3,
        )
