"""Predictions of one run: means, error bounds and variances for every kernel, time and ridge."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.extras import require
from ntkpipe.storage.plain import json_ready
from ntkpipe.units import counted

RIDGE_SCALES = ("relative", "absolute")
BOUND_KINDS = ("rigorous", "estimate", "minimum_norm")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions on p test points with c outputs, for K kernels, T times and R ridges.

    Arrays are converted to the dtypes below, checked and made read-only.

    Args:
        kernels: K names, such as `ntk` and `nngp`.
        times: (T,) float64 training times in gradient steps, strictly ascending; `inf` means training to convergence.
        ridges: (R,) float64 ridges in the units of `ridge_scale`.
        ridge_scale: `relative` (to the mean of the train-train diagonal) or `absolute`.
        test_index: (p,) int64 index of each test point in the original test set, strictly ascending.
        class_names: c names of the classes, or of the outputs of regression.
        label: (p,) int64 labels in `[0, c)`; None for regression or if they are unknown.
        target: (p, c) float64 targets of the test points; NaN where unknown.
        mean: (K, T, R, p, c) float64 predicted means.
        error_bound: (K, T, R, p, c) float64 `>= 0`, bound on the numerical error of `mean`; `inf` if no bound is known.
        error_estimate: (K, T, R, p, c) float64, an estimate that 99% of the errors of `mean` do not exceed. It is at
            most `error_bound`, and infinite if nothing is known (docs/mathematics.md). None if errors were not
            estimated.
        bound_kind: (K, T, R), one of `rigorous`, `estimate` and `minimum_norm`. `minimum_norm` means that directions
            which the stored kernel cannot distinguish from null directions are left out. The bound is then infinite,
            and the means are those of least norm.
        bound_terms: the part of the bound that each source contributes, {name: (K, T, R, c) float64}.
        variance: (K, T, R, p) float64 variance of an output. Outputs are independent and share it. Several standardised
            targets have a variance each, (K, T, R, p, c). NaN where it was not computed.
        variance_bound: bound `>= 0` on the numerical error of `variance`, of the same shape; `inf` if none is known.
        noise: (K, T, R, c) float64 `>= 0`, variance of the targets about the outputs of networks; None adds nothing.
        covariance: (K, T, R, p, p) float64 covariance between test points, or (K, T, R, p, p, c) for several
            standardised targets.
        attributes: plain JSON values such as versions, fingerprints and learning rate. Numbers that are not finite
            become words (`storage.plain`).

    Raises:
        ValueError: if a field has a wrong shape or wrong values. The text names the field.
    """

    kernels: tuple[str, ...]
    times: np.ndarray
    ridges: np.ndarray
    ridge_scale: str
    test_index: np.ndarray
    class_names: tuple[str, ...]
    label: np.ndarray | None
    target: np.ndarray
    mean: np.ndarray
    error_bound: np.ndarray
    bound_kind: np.ndarray
    bound_terms: dict[str, np.ndarray] = field(default_factory=dict)
    variance: np.ndarray | None = None
    variance_bound: np.ndarray | None = None
    covariance: np.ndarray | None = None
    noise: np.ndarray | None = None
    error_estimate: np.ndarray | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "kernels", tuple(str(name) for name in self.kernels))
        set_(self, "class_names", tuple(str(name) for name in self.class_names))
        set_(self, "bound_terms", {name: _frozen(v, np.float64) for name, v in self.bound_terms.items()})
        for name in (
            "times",
            "ridges",
            "target",
            "mean",
            "error_bound",
            "variance",
            "variance_bound",
            "covariance",
            "noise",
            "error_estimate",
        ):
            set_(self, name, _frozen(getattr(self, name), np.float64))
        for name in ("test_index", "label"):
            set_(self, name, _frozen(getattr(self, name), np.int64))
        set_(self, "bound_kind", _frozen(self.bound_kind, np.str_))
        # The attributes take a round trip through JSON, so that they equal those that a reader of the file gets.
        set_(self, "attributes", json.loads(json.dumps(json_ready(self.attributes), allow_nan=False)))
        self._check()

    def _check(self) -> None:
        if self.ridge_scale not in RIDGE_SCALES:
            raise ValueError(f"ridge_scale={self.ridge_scale!r} is not one of {', '.join(RIDGE_SCALES)}")
        if not self.kernels or len(set(self.kernels)) != len(self.kernels):
            raise ValueError(f"kernels={self.kernels} must hold at least one name, each once")
        for name in ("times", "ridges", "test_index", "target"):
            wanted = 2 if name == "target" else 1
            array = getattr(self, name)
            if array.ndim != wanted or array.size == 0:
                raise ValueError(f"{name} has shape {array.shape}, but needs {wanted} dimensions, none of size 0")
        if np.isnan(self.times).any() or (np.diff(self.times) <= 0).any() or self.times[0] < 0:
            raise ValueError(f"times={self.times.tolist()} must be at least 0 and strictly ascending")
        if (np.diff(self.test_index) <= 0).any():
            raise ValueError("test_index must be strictly ascending: sort the test points by their original index")
        grid, points, outputs = self.shape[:3], self.shape[3:4], self.shape[4:]
        shapes: list[tuple[str, np.ndarray | None, tuple[int, ...]]] = [
            ("label", self.label, points),
            ("target", self.target, points + outputs),
            ("mean", self.mean, grid + points + outputs),
            ("error_bound", self.error_bound, grid + points + outputs),
            ("error_estimate", self.error_estimate, grid + points + outputs),
            ("bound_kind", self.bound_kind, grid),
            ("variance", self.variance, grid + points + (outputs if _axes(self.variance) == 5 else ())),
            (
                "variance_bound",
                self.variance_bound,
                grid + points + (outputs if _axes(self.variance_bound) == 5 else ()),
            ),
            ("covariance", self.covariance, grid + points + points + (outputs if _axes(self.covariance) == 6 else ())),
            ("noise", self.noise, grid + outputs),
            *((f"bound_terms[{name!r}]", term, grid + outputs) for name, term in self.bound_terms.items()),
        ]
        for name, array, shape in shapes:
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, but needs {shape}")
        if not np.isin(self.bound_kind, BOUND_KINDS).all():
            raise ValueError(f"bound_kind must hold {' or '.join(BOUND_KINDS)}, got {np.unique(self.bound_kind)}")
        if not (self.error_bound >= 0).all():
            raise ValueError("error_bound must be at least 0 everywhere (inf where no bound is known)")
        if self.error_estimate is not None and not (self.error_estimate >= 0).all():
            raise ValueError("error_estimate must be at least 0 everywhere (inf where no estimate is known)")
        if self.variance_bound is not None and not (self.variance_bound >= 0).all():
            raise ValueError("variance_bound must be at least 0 everywhere (inf where no bound is known)")
        if self.variance is not None and (self.variance < 0).any():
            raise ValueError("variance must be at least 0 everywhere (NaN where not computed)")
        if self.label is not None and (self.label.min() < 0 or self.label.max() >= len(self.class_names)):
            raise ValueError(f"label must lie in [0, {len(self.class_names)})")
        for name in self.bound_terms:
            if not name.isidentifier():
                raise ValueError(f"bound_terms name {name!r} must be an identifier: it becomes an array's name")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The sizes (K, T, R, p, c)."""
        return (len(self.kernels), len(self.times), len(self.ridges), len(self.test_index), len(self.class_names))

    @property
    def is_classification(self) -> bool:
        """Whether test points have labels."""
        return self.label is not None

    @property
    def predicts_classes(self) -> bool:
        """Whether outputs belong to classes, even if the labels of the test points are unknown."""
        return self.label is not None or self.attributes.get("labels") in ("centered", "half")

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """Return an iterator over the positions (kernel, time, ridge) of all predictions, in stored order."""
        return np.ndindex(self.shape[:3])  # type: ignore[return-value]

    def arrays(self) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
        """Return every stored array and its dimension names, by name. Coordinates have the name of their dimension."""
        grid = ("kernel", "time", "ridge")
        candidates: dict[str, tuple[np.ndarray | None, tuple[str, ...]]] = {
            "kernel": (np.array(self.kernels), ("kernel",)),
            "time": (self.times, ("time",)),
            "ridge": (self.ridges, ("ridge",)),
            "test": (self.test_index, ("test",)),
            "class": (np.array(self.class_names), ("class",)),
            "label": (self.label, ("test",)),
            "target": (self.target, ("test", "class")),
            "mean": (self.mean, (*grid, "test", "class")),
            "error_bound": (self.error_bound, (*grid, "test", "class")),
            "error_estimate": (self.error_estimate, (*grid, "test", "class")),
            "bound_kind": (self.bound_kind, grid),
            "variance": (self.variance, (*grid, "test", "class")[: _axes(self.variance)]),
            "variance_bound": (self.variance_bound, (*grid, "test", "class")[: _axes(self.variance_bound)]),
            "covariance": (self.covariance, (*grid, "test", "test_other", "class")[: _axes(self.covariance)]),
            "noise": (self.noise, (*grid, "class")),
        }
        for name, term in self.bound_terms.items():
            candidates[f"bound_{name}"] = (term, (*grid, "class"))
        return {name: (array, dims) for name, (array, dims) in candidates.items() if array is not None}

    def to_xarray(self) -> Any:
        """Return an `xarray.Dataset` with the dimensions and names of `predictions.zarr`.

        Attributes that are mappings become JSON text.
        """
        require("xarray", "to_xarray")
        import xarray

        coordinates = ("kernel", "time", "ridge", "test", "class")
        arrays = {name: (dims, array) for name, (array, dims) in self.arrays().items()}
        return xarray.Dataset(
            {name: value for name, value in arrays.items() if name not in coordinates},
            {name: value for name, value in arrays.items() if name in coordinates},
            {"ridge_scale": self.ridge_scale, **{name: _attribute(value) for name, value in self.attributes.items()}},
        )

    def to_torch(self) -> dict[str, Any]:
        """Return the numeric arrays as `torch.Tensor`s by name.

        The tensors share memory with the predictions, so do not write to them.

        Raises:
            ConfigError: if PyTorch is not installed.
        """
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise ConfigError("to_torch needs PyTorch: pip install torch") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return {name: torch.from_numpy(a) for name, (a, _) in self.arrays().items() if a.dtype.kind in "if"}

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with the columns of `ntkpipe export`: a row per kernel, time, ridge and point."""
        require("pyarrow", "to_pandas")
        require("pandas", "to_pandas")
        import pyarrow as pa

        from ntkpipe.predictions.tables import iterate_tables

        return pa.concat_tables(list(iterate_tables(self))).to_pandas()

    def metrics(self) -> Any:
        """Return a `pandas.DataFrame` with the metrics of `metrics.json`, one row per kernel, time and ridge.

        Raises:
            DataError: if the labels or targets of the test points are unknown.
        """
        require("pandas", "metrics", "compute_metrics of ntkpipe.predictions.metrics gives the same as dictionaries")
        import pandas as pd

        from ntkpipe.predictions.metrics import compute_metrics

        self.require_targets()
        return pd.DataFrame(compute_metrics(self)["entries"])

    def plot(self) -> Any:
        """Return a `matplotlib.figure.Figure` of test errors against training time.

        If there is only one time, the errors are drawn against the ridge.

        Raises:
            DataError: if the labels or targets of the test points are unknown.
        """
        require("matplotlib", "plot")
        from ntkpipe.predictions.plot import plot_errors

        return plot_errors(self)

    @property
    def has_targets(self) -> bool:
        """Whether labels or targets of the test points are known."""
        return not np.isnan(self.target).any()

    def target_variance(self, entry: tuple[int, int, int]) -> np.ndarray | None:
        """Return variances of the targets at one kernel, time and ridge: over networks, plus the noise.

        Returns:
            (p,) if outputs share them, otherwise (p, c). None if there are no variances.
        """
        if self.variance is None:
            return None
        found = self.variance[entry]
        if self.noise is None:
            return found
        return (found if found.ndim == 2 else found[:, None]) + self.noise[entry]

    @classmethod
    def concatenated(cls, parts: Sequence[Predictions]) -> Predictions:
        """Concatenate predictions of several groups of test points with equal kernels, times and ridges.

        The result has no covariances if there are several groups.
        """
        first = parts[0]
        if len(parts) == 1:
            return first

        def along(name: str, axis: int) -> np.ndarray | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate(found, axis=axis)

        by_point = {
            "test_index": 0,
            "label": 0,
            "target": 0,
            "mean": 3,
            "error_bound": 3,
            "error_estimate": 3,
            "variance": 3,
            "variance_bound": 3,
        }
        kinds = np.stack([np.vectorize(BOUND_KINDS.index)(part.bound_kind) for part in parts]).max(axis=0)
        terms = {name: np.max([part.bound_terms[name] for part in parts], axis=0) for name in first.bound_terms}
        joined = {name: along(name, axis) for name, axis in by_point.items()}
        return replace(first, **joined, bound_kind=np.array(BOUND_KINDS)[kinds], bound_terms=terms, covariance=None)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        _, times, ridges, points, outputs = self.shape
        sizes = [counted(times, "time"), counted(ridges, "ridge"), counted(points, "test point")]
        sizes.append(counted(outputs, "class", "classes") if self.predicts_classes else counted(outputs, "output"))
        arrays = [name for name, (array, _) in self.arrays().items() if array.ndim > 3 and name != "mean"]
        return f"Predictions({', '.join(self.kernels)}: {', '.join(sizes)}; mean, {', '.join(arrays)})"

    def require_targets(self) -> None:
        """Raise `DataError` if labels and targets of the test points are unknown."""
        if not self.has_targets:
            raise DataError("the test points have no labels or targets: give y_test when the kernel is made")

    def fingerprint(self) -> str:
        """Return the SHA-256 of all arrays and attributes in hexadecimal. Equal predictions have equal fingerprints."""
        hashes = {name: array_fingerprint(array) for name, (array, _) in self.arrays().items()}
        return combined_fingerprint(hashes, self.ridge_scale, self.attributes)


def _attribute(value: Any) -> str | int | float:
    """Return the value in a form that netCDF accepts as an attribute."""
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else json.dumps(value)


def array_fingerprint(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape and values in hexadecimal.

    Strings are hashed as JSON, numbers as little-endian bytes.
    """
    digest = hashlib.sha256()
    if array.dtype.kind in "if":
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    else:
        digest.update(f"string{array.shape}".encode())
        digest.update(json.dumps([str(value) for value in array.ravel()]).encode())
    return digest.hexdigest()


def combined_fingerprint(hashes: Mapping[str, Any], ridge_scale: str, attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the arrays' fingerprints and all other content of the predictions, in hexadecimal."""
    content = {"arrays": hashes, "ridge_scale": ridge_scale, "attributes": attributes}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _frozen(value: Any, dtype: Any) -> np.ndarray | None:
    if value is None:
        return None
    # Freezing a view does not freeze the caller's array, and needs no copy.
    array = np.asarray(value, dtype=dtype).view()
    array.flags.writeable = False
    return array


def _axes(array: np.ndarray | None) -> int:
    """Return the number of axes of an optional array; 0 for None."""
    return 0 if array is None else array.ndim
