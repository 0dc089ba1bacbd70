"""Infinitely wide networks as scikit-learn estimators, in memory, for problems of up to a few thousand points.

    from ntkpipe.sklearn import NTKClassifier

    NTKClassifier("fcn", ridge=1e-3).fit(X_train, y_train).score(X_test, y_test)

The estimators work in pipelines and searches. Estimators in one process share their kernels and eigendecompositions
(`ntkpipe.dynamics.shared`). With `store`, those in several processes share them too (`ntkpipe.dynamics.kept`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np

from ntkpipe.data.labels import encode_labels
from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.filters import absolute_ridge, make_filter
from ntkpipe.dynamics.in_memory import warn_of_doubt
from ntkpipe.dynamics.kept import KeptKernels
from ntkpipe.dynamics.shared import SharedKernels, shared_kernels
from ntkpipe.errors import ConfigError
from ntkpipe.extras import require
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import FAMILIES
from ntkpipe.predictions.metrics import class_probabilities
from ntkpipe.storage.store import open_store

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    require("sklearn", "ntkpipe.sklearn")
    raise

ArchitectureLike = str | Architecture | Sequence[Mapping[str, Any]]


class _InfiniteNetwork(BaseEstimator):
    """The common part of both estimators, which works on coded targets."""

    def __init__(
        self,
        architecture: ArchitectureLike = "fcn",
        *,
        architecture_args: Mapping[str, Any] | None = None,
        image_shape: Sequence[int] | None = None,
        kernel: str = "ntk",
        time: float = math.inf,
        ridge: float = 0.0,
        ridge_scale: str = "relative",
        learning_rate: float = 1.0,
        dtype: str = "float64",
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        self.architecture = architecture
        self.architecture_args = architecture_args
        self.image_shape = image_shape
        self.kernel = kernel
        self.time = time
        self.ridge = ridge
        self.ridge_scale = ridge_scale
        self.learning_rate = learning_rate
        self.dtype = dtype
        self.store = store

    def _shared(self) -> SharedKernels | KeptKernels:
        """Return the source of kernels and eigensystems: this process, and the store if there is one."""
        return shared_kernels if self.store is None else KeptKernels(open_store(os.fspath(self.store)), shared_kernels)

    def _points(self, x: np.ndarray) -> np.ndarray:
        """Return checked points in the shape of the network's inputs."""
        x = np.ascontiguousarray(x, dtype=self.dtype)
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            if len(shape) != 3 or math.prod(shape) != math.prod(x.shape[1:]):
                raise ConfigError(
                    f"image_shape={self.image_shape!r} must be (height, width, channels) of {math.prod(x.shape[1:])} values"
                )
            return x.reshape(len(x), *shape)
        return x[..., None] if x.ndim == 3 else x

    def _network(self, shape: tuple[int, ...]) -> Architecture:
        chosen, options = self.architecture, dict(self.architecture_args or {})
        if isinstance(chosen, str):
            if chosen not in FAMILIES:
                raise ConfigError(f"architecture={chosen!r} is not one of {', '.join(FAMILIES)}")
            family = FAMILIES[chosen]
            unknown = sorted(set(options) - set(family.takes))
            if unknown:
                raise ConfigError(
                    f"architecture_args: {chosen} has no {', '.join(unknown)}; known: {', '.join(family.takes)}"
                )
            return Architecture.from_spec(family(shape, **options))
        if options:
            raise ConfigError(
                "architecture_args is only for the name of a family, but architecture is a network: leave it out"
            )
        return chosen if isinstance(chosen, Architecture) else Architecture.from_spec(chosen)

    def _fit(self, x: np.ndarray, targets: np.ndarray) -> None:
        if self.kernel not in ("ntk", "nngp"):
            raise ConfigError(f"kernel={self.kernel!r} is not one of ntk, nngp")
        if self.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype={self.dtype!r} is not one of float32, float64")
        self.X_fit_ = self._points(x)
        self.network_ = self._network(self.X_fit_.shape[1:])
        self.filter_ = make_filter("gradient_flow", *targets.shape, learning_rate=self.learning_rate, momentum=0.0)
        self.filter_.check_time(self.time)
        gram = getattr(self._shared().kernels(self.network_, self.X_fit_), self.kernel)
        self.ridge_ = absolute_ridge(self.ridge, np.diagonal(gram), self.ridge_scale)
        system = self._system()
        values, cutoff = system.shifted(self.ridge_)
        warn_of_doubt(
            self.filter_.instability(float(values[-1])),
            gp.count_unlearnt(system, self.filter_, (self.time,), self.ridge_),
            self.kernel,
        )
        weights = self.filter_.weights(values, self.time, cutoff=cutoff)
        self.dual_coef_ = system.vectors @ (weights[:, None] * (system.vectors.T @ targets))

    def _system(self) -> gp.Eigensystem:
        return self._shared().eigensystem(self.network_, self.X_fit_, self.kernel)

    def _means(self, x: np.ndarray) -> np.ndarray:
        cross = self._shared().kernels(self.network_, x, self.X_fit_)
        return getattr(cross, self.kernel) @ self.dual_coef_

    def _variances(self, x: np.ndarray) -> np.ndarray:
        """Return the variances over networks with different initial weights, `(p,)`, equal for all outputs."""
        cross = self._shared().kernels(self.network_, x, self.X_fit_)
        own = np.asarray(self.network_.diagonal(x, layout="NHWC").nngp, np.float64)
        system, eps = self._system(), float(np.finfo(self.dtype).eps)
        if self.kernel == "nngp":
            return gp.nngp_covariance(system, np.asarray(cross.nngp), own, self.filter_, self.time, self.ridge_, eps)
        train = np.asarray(self._shared().kernels(self.network_, self.X_fit_).nngp)
        ntk, nngp = np.asarray(cross.ntk), np.asarray(cross.nngp)
        return gp.ntk_covariance(system, ntk, train, nngp, own, self.filter_, self.time, self.ridge_, eps)

    def _new(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        checked: Any = validate_data(self, x, reset=False, dtype="numeric", allow_nd=True)
        return self._points(checked)


class NTKClassifier(ClassifierMixin, _InfiniteNetwork):
    """The ensemble of infinitely wide networks, trained on squared loss to one-hot labels minus 1 / classes.

    Args:
        architecture: name of a family (`fcn`, `cnn_gap`, `myrtle10`, ...; docs/architectures.md), a list of layers, or an
            `Architecture`.
        architecture_args: parameters of a family, such as `{"depth": 5, "activation": "erf"}`.
        image_shape: `(height, width, channels)` of images that are given as rows of features; None takes the shape of
            `X`.
        kernel: `ntk` (all layers are trained) or `nngp` (only the readout is trained; at `time=inf`, this is the
            Bayesian posterior).
        time: time of training by gradient flow, in steps; `inf` means trained to convergence.
        ridge: ridge that is added to the kernel's diagonal.
        ridge_scale: `relative` to the mean of the diagonal, or `absolute`.
        learning_rate: learning rate of gradient descent on `||f - y||^2 / (2 n c)`.
        dtype: dtype of the kernels, `float32` or `float64`; everything else is float64.
        store: folder or bucket that keeps kernels and eigendecompositions for other and later processes; None keeps
            them in this process only.

    Attributes:
        classes_: sorted labels.
        n_features_in_: number of features of a row.
        network_: the `Architecture`.
        X_fit_: training points.
        dual_coef_: weights of the training points' kernels, `(n, c)`.
        ridge_: absolute ridge.

    Warns:
        UserWarning: in `fit`, if the kernel is singular, because its null directions are not learnt.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on `X`, `(n, features)` or images `(n, height, width, channels)`, and labels `y`, `(n,)`."""
        x, y = cast(tuple[Any, Any], validate_data(self, X, y, dtype="numeric", allow_nd=True))
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(f"y holds one class, {self.classes_[0]!r}: a classifier needs samples of two classes")
        self._fit(x, encode_labels(labels, len(self.classes_), "centered"))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the mean outputs, `(p, c)`; for two classes the second minus the first, `(p,)`."""
        mean = self._means(self._new(X))
        return mean[:, 1] - mean[:, 0] if mean.shape[1] == 2 else mean

    def predict(self, X: Any) -> np.ndarray:
        """Return the classes with the largest mean outputs, `(p,)`."""
        x = self._new(X)
        return self.classes_[self._means(x).argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability that each class has the largest output in a network of the ensemble, `(p, c)`."""
        x = self._new(X)
        return class_probabilities(self._means(x), self._variances(x))


class NTKRegressor(RegressorMixin, _InfiniteNetwork):
    """The ensemble of infinitely wide networks trained on squared loss.

    Args:
        architecture: see `NTKClassifier`, which describes all parameters except `normalize_y`.
        architecture_args: parameters of a family.
        image_shape: shape of images that are given as rows of features.
        kernel: `ntk` or `nngp`.
        time: time of training, in steps.
        ridge: ridge that is added to the kernel's diagonal.
        ridge_scale: `relative` or `absolute`.
        learning_rate: learning rate of gradient descent.
        dtype: dtype of the kernels.
        store: folder or bucket that keeps kernels and eigendecompositions.
        normalize_y: whether to train on targets with mean 0 and variance 1. Predictions and standard deviations are
            always in the units of `y`.

    Attributes:
        n_features_in_: number of features of a row.
        network_: the `Architecture`.
        X_fit_: training points.
        dual_coef_: weights of the training points' kernels, `(n, c)`.
        ridge_: absolute ridge.
    """

    def __init__(
        self,
        architecture: ArchitectureLike = "fcn",
        *,
        architecture_args: Mapping[str, Any] | None = None,
        image_shape: Sequence[int] | None = None,
        kernel: str = "ntk",
        time: float = math.inf,
        ridge: float = 0.0,
        ridge_scale: str = "relative",
        learning_rate: float = 1.0,
        dtype: str = "float64",
        store: str | os.PathLike[str] | None = None,
        normalize_y: bool = True,
    ) -> None:
        super().__init__(
            architecture,
            architecture_args=architecture_args,
            image_shape=image_shape,
            kernel=kernel,
            time=time,
            ridge=ridge,
            ridge_scale=ridge_scale,
            learning_rate=learning_rate,
            dtype=dtype,
            store=store,
        )
        self.normalize_y = normalize_y

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on `X`, `(n, features)` or images `(n, height, width, channels)`, and `y`, `(n,)` or `(n, c)`."""
        x, y = cast(
            tuple[Any, Any],
            validate_data(self, X, y, dtype="numeric", allow_nd=True, multi_output=True, y_numeric=True),
        )
        y = np.asarray(y, np.float64)
        targets = y.reshape(len(y), -1)
        self.y_mean_, self.y_scale_ = np.zeros(targets.shape[1]), np.ones(targets.shape[1])
        if self.normalize_y:
            self.y_mean_, scale = targets.mean(axis=0), targets.std(axis=0)
            self.y_scale_ = np.where(scale > 0, scale, 1.0)
        self._flat = y.ndim == 1
        self._fit(x, (targets - self.y_mean_) / self.y_scale_)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the means of the ensemble.

        Args:
            X: points, `(p, ...)`.
            return_std: whether to return also the standard deviations over networks, without noise.

        Returns:
            The means, `(p,)` or `(p, c)`, or the means and the standard deviations with the same shape.
        """
        x = self._new(X)
        mean = self._means(x) * self.y_scale_ + self.y_mean_
        if self._flat:
            mean = mean[:, 0]
        if not return_std:
            return mean
        deviation = np.sqrt(self._variances(x))[:, None] * self.y_scale_
        return mean, deviation[:, 0] if self._flat else deviation
