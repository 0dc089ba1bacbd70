"""Small random problems of every kind that a run takes: points with copies, targets, architectures, given matrices, solvers."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.config import (
    ClusterConfig,
    DataConfig,
    GridConfig,
    KernelConfig,
    PredictConfig,
    RunConfig,
    SolverConfig,
    StoreConfig,
)

SQRT2 = math.sqrt(2.0)
KINDS = {
    "relu": 0.24,
    "deep": 0.1,
    "smooth": 0.1,
    "expansion": 0.06,
    "linear": 0.08,
    "residual": 0.06,
    "convolution": 0.04,
    "stationary": 0.07,
    "given": 0.25,
}
"""The choices, with their frequencies."""

# Share of the problems that ask for variances as well.
_VARIANCES = 0.35
# Most training points, where the reference or the run takes long.
_MOST = {"deep": 45, "expansion": 16, "convolution": 16}

_LEAKY = {"activation": "leaky_relu", "activation_args": {"alpha": 0.2}}
_ORDERED, _CHAOTIC, _BARE = {"w_std": 0.5}, {"w_std": 3.0, "b_std": 0.0}, {"b_std": None}
# Few, as every network is compiled once, for each dtype and shape.
NETWORKS: dict[str, tuple[dict[str, Any], ...]] = {
    "relu": (
        {"depth": 1},
        {"depth": 3},
        {"depth": 3, **_ORDERED},
        {"depth": 3, **_CHAOTIC},
        {"depth": 1, **_BARE},
        {"depth": 3, **_LEAKY},
        {"depth": 2, "activation": "abs", "w_std": 1.0, "b_std": 1.0},
        {"depth": 2, "parameterization": "standard", "width": 64},
    ),
    "deep": (
        {"depth": 10},
        {"depth": 60},
        {"depth": 20, **_ORDERED},
        {"depth": 30, **_CHAOTIC},
        {"depth": 60, "activation": "abs", "w_std": 1.0, "b_std": 1.0},
        {"depth": 10, "activation": "erf", "w_std": 2.0},
        {"depth": 10, "activation": "gelu"},
        {"depth": 16, "w_std": 0.05, "b_std": 0.0},
    ),
    "smooth": (
        {"depth": 1, "activation": "erf"},
        {"depth": 3, "activation": "erf", **_CHAOTIC},
        {"depth": 1, "activation": "gelu", **_BARE},
        {"depth": 3, "activation": "gelu"},
    ),
    "expansion": (
        {"depth": 1, "activation": "tanh", "w_std": 3.0},
        {"depth": 2, "activation": "tanh", "w_std": 1.0},
        {"depth": 1, "activation": "swish", "w_std": 3.0},
        {"depth": 2, "activation": "swish"},
        {"depth": 1, "activation": "elu", "w_std": 2.0},
    ),
    "linear": ({"kind": "linear"}, {"kind": "linear", "w_std": 2.0, "b_std": 1.0}),
    "residual": ({"kind": "spec", "blocks": 1}, {"kind": "spec", "blocks": 3}),
    "convolution": (
        {"kind": "cnn_vec", "depth": 2},
        {"kind": "cnn_gap", "depth": 1},
        {"kind": "cnn_gap", "depth": 2, "padding": "CIRCULAR", **_BARE},
    ),
    "stationary": (
        {"kind": "rbf", "length_scale": 0.3},
        {"kind": "rbf", "length_scale": 10.0},
        {"kind": "laplace"},
        {"kind": "matern", "nu": 1.5},
        {"kind": "matern", "nu": 2.5, "length_scale": 10.0},
    ),
}
_TRAINED, _TESTED = (8, 11, 16, 23, 32, 45, 60, 90, 120), (4, 10, 24, 40)
# Of the solver: the smallest basis that can be restarted.
_BLOCKS = 6


@dataclass(frozen=True)
class Drawn:
    """A problem: a configuration with its files in a folder, and a description."""

    kind: str
    config: RunConfig
    facts: dict[str, Any] = field(default_factory=dict)


def draw(rng: np.random.Generator, folder: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> Drawn:
    """Return a random problem, whose files are written to `folder`."""
    shares = np.array([KINDS[kind] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    most = _MOST.get(kind, 120 if rng.random() < 0.1 else 60)
    n = int(rng.choice([size for size in _TRAINED if size <= most]))
    p = int(rng.choice([size for size in _TESTED if size <= n]))
    facts: dict[str, Any] = {"n": n, "p": p}
    arrays, coding, c = _targets(rng, n, p, facts)
    if kind == "given":
        kernel, data = _given(rng, folder, n, p, arrays, coding, facts), "labels"
    else:
        data = "npz"
        shape = _shape(rng, kind)
        x = _points(rng, kind, n, p, shape, arrays, facts)
        arrays |= {"x_train": x[:n], "x_test": x[n:]}
        kernel = _network(rng, kind, folder, facts)
    np.savez(folder / "data.npz", allow_pickle=False, **arrays)
    solver, predict = _solver(rng, n, c, kind, facts)
    flips = kind in ("relu", "convolution") and "x_train" in arrays and arrays["x_train"].ndim == 4
    config = RunConfig(
        data=DataConfig(
            kind=data,
            path=str(folder / "data.npz"),
            labels=coding,
            standardize="none" if rng.random() < 0.5 else "channel",
            subset_seed=int(rng.integers(3)),
        ),
        kernel=kernel,
        grid=GridConfig(edge=32),
        store=StoreConfig(
            url=str(folder / "store"),
            dtype="float32" if kernel.dtype == "float64" and rng.random() < 0.08 else None,
            gram="recompute" if kind != "given" and rng.random() < 0.07 else "stored",
        ),
        solver=solver,
        predict=predict,
        cluster=ClusterConfig(kind="serial"),
        augment="hflip" if flips and rng.random() < 0.4 else "none",
        run_dir=str(folder / "run"),
    )
    facts |= {"augment": config.augment, "store_dtype": config.store_dtype, "gram": config.store.gram}
    # The reference knows a kernel, not its even and odd part.
    if config.augment == "none" and facts.get("test_diagonal", True) and rng.random() < _VARIANCES:
        config = dataclasses.replace(config, predict=dataclasses.replace(predict, covariance="diagonal"))
        facts["variances"] = True
    return Drawn(kind, config, facts)


def _targets(rng: np.random.Generator, n: int, p: int, facts: dict[str, Any]) -> tuple[dict[str, np.ndarray], str, int]:
    """Return `y_train` and `y_test`, their coding, and the number of outputs."""
    if rng.random() < 0.35:
        c = int(rng.integers(1, 4))
        scale = 10.0 ** rng.uniform(-8, 8) if rng.random() < 0.6 else 1.0
        facts |= {"targets": "regression", "outputs": c, "scale": scale}
        y = scale * (rng.normal(size=(n + p, c)) + rng.choice([0.0, 1.0, 100.0]))
        return {"y_train": y[:n], "y_test": y[n:]}, "regression", c
    c = int(rng.integers(2, min(20, n // 2) + 1))
    coding = "centered" if rng.random() < 0.8 else "half"
    facts |= {"targets": coding, "outputs": c}
    labels = np.concatenate([np.arange(c), rng.integers(c, size=n - c)])
    names = np.array([str(k) for k in range(c)])
    return {"y_train": rng.permutation(labels), "y_test": rng.integers(c, size=p), "class_names": names}, coding, c


def _shape(rng: np.random.Generator, kind: str) -> tuple[int, ...]:
    if kind == "convolution" or (kind == "relu" and rng.random() < 0.2):
        return (4, 4, 1)
    return (int(rng.choice([2, 6])),)


def _points(
    rng: np.random.Generator,
    kind: str,
    n: int,
    p: int,
    shape: tuple[int, ...],
    arrays: dict[str, np.ndarray],
    facts: dict[str, Any],
) -> np.ndarray:
    """Return normal points, some of which are exact or near copies of training points, with any label."""
    x = rng.normal(size=(n + p, *shape))
    # Integrals in float64 do not tell copies at distances whose square is lost in rounding.
    nearest = -3.0 if kind == "expansion" else -12.0
    distances = []
    for rows in (np.arange(n // 2, n), np.arange(n, n + p)):
        if rng.random() < 0.5:
            continue
        for row in rng.choice(rows, size=int(rng.integers(1, max(2, len(rows) // 3))), replace=False):
            of = int(rng.integers(n // 2))
            distance = 0.0 if rng.random() < 0.4 else 10.0 ** rng.uniform(nearest, -1)
            x[row] = x[of] + distance * rng.normal(size=shape)
            distances.append(distance)
            if row < n and rng.random() < 0.5:
                arrays["y_train"][row] = arrays["y_train"][of]
    facts |= {"d": math.prod(shape), "copies": len(distances), "exact": distances.count(0.0)}
    facts["nearest"] = min((d for d in distances if d > 0), default=None)
    return x


def _network(rng: np.random.Generator, kind: str, folder: Path, facts: dict[str, Any]) -> KernelConfig:
    settings = dict(NETWORKS[kind][rng.integers(len(NETWORKS[kind]))])
    facts["network"] = settings
    if kind == "residual":
        path = folder / "layers.json"
        path.write_text(json.dumps(_residual(settings["blocks"])))
        settings = {"kind": "spec", "path": str(path)}
    facts["dtype"] = str(rng.choice(["float32", "float64"]))
    whole: dict[str, Any] = {"kind": "fcn", "dtype": facts["dtype"], **settings}
    return KernelConfig(**whole)


def _residual(blocks: int) -> list[dict]:
    dense = {"op": "dense", "features": 64, "w_std": SQRT2, "b_std": 0.1}
    relu = {"op": "relu"}
    block = {"op": "residual_sum", "branches": [[relu, dense, relu, dense], []]}
    return [{"op": "flatten"}, dense, *[block] * blocks, relu, dense]


def _given(
    rng: np.random.Generator,
    folder: Path,
    n: int,
    p: int,
    arrays: dict[str, np.ndarray],
    coding: str,
    facts: dict[str, Any],
) -> KernelConfig:
    """Write given matrices to files, and return the kernel that reads them.

    The matrices are products of features with few bits, and then exactly positive semi-definite, or they have a given
    spectrum, up to rounding.
    """
    dtype = str(rng.choice(["float32", "float64"]))
    how = str(rng.choice(["features", "deficient", "copies", "geometric", "clustered"]))
    m = n + p
    if how in ("features", "deficient", "copies"):
        rank = max(2, n // 2) if how == "deficient" else m + int(rng.integers(0, 9))
        features = rng.integers(-7, 8, size=(m, rank)).astype(float)
        # Columns of different sizes; all sums stay exact in 24 or 53 bits.
        features *= 2.0 ** -rng.integers(0, 3 if dtype == "float32" else 14, size=rank)
        if how == "copies":
            rows, of = rng.choice(m, size=m // 4, replace=False), rng.integers(n // 2, size=m // 4)
            features[rows] = features[of]
        features[np.abs(features).sum(1) == 0, 0] = 1.0
        gram = features @ features.T
    else:
        q, _ = np.linalg.qr(rng.normal(size=(m, m)))
        low = rng.uniform(-6, -2) if dtype == "float32" else rng.uniform(-13, -3)
        values = np.geomspace(1.0, 10.0**low, m)
        if how == "clustered":
            values = rng.choice(np.geomspace(1.0, 10.0**low, 4), size=m)
        gram = (q * values) @ q.T
        gram = (gram + gram.T) / 2
    gram = gram.astype(dtype)
    np.save(folder / "train.npy", gram[:n, :n])
    np.save(folder / "test.npy", gram[n:, :n])
    known = bool(rng.random() < 0.85)
    if known:
        np.save(folder / "diagonal.npy", np.diagonal(gram)[n:].copy())
    facts |= {"given": how, "dtype": dtype, "test_diagonal": known}
    return KernelConfig(
        kind="gram",
        train=str(folder / "train.npy"),
        test=str(folder / "test.npy"),
        test_diagonal=str(folder / "diagonal.npy") if known else None,
    )


def _solver(
    rng: np.random.Generator, n: int, c: int, kind: str, facts: dict[str, Any]
) -> tuple[SolverConfig, PredictConfig]:
    name = str(rng.choice(["krylov", "eigh", "cg", "cholesky"], p=[0.5, 0.2, 0.15, 0.15]))
    products = "float32" if rng.random() < 0.3 else "float64"
    settings: dict[str, Any] = {"kind": name, "products": products, "max_steps": 200}
    if name == "krylov":
        settings["tolerance"] = float(rng.choice([1e-2, 1e-4, 1e-7]))
        if rng.random() < 0.35 and _BLOCKS * c < n:
            settings["basis_gib"] = int(rng.integers(_BLOCKS * c, n)) * 8 * n / 2**30
        if rng.random() < 0.05:
            settings["max_steps"] = int(rng.integers(1, 6))
    if name == "cg":
        settings["preconditioner"] = str(rng.choice(["nystrom", "cholesky", "none"]))
        settings["residual"] = float(rng.choice([1e-4, 1e-8, 1e-11], p=[0.3, 0.5, 0.2]))
    if name == "cholesky":
        settings["precision"] = str(rng.choice(["float64", "mixed", "float32"]))
        settings["leave_one_out"] = False
    if rng.random() < 0.4:
        settings["sample_rows"] = int(rng.choice([4, 12]))
    discrete = name in ("krylov", "eigh") and "basis_gib" not in settings and rng.random() < 0.15
    dynamics = str(rng.choice(["gradient_descent", "momentum"])) if discrete else "gradient_flow"
    times = {math.inf}
    if name in ("krylov", "eigh"):
        times = {float(f"{10.0 ** rng.uniform(-3, 12):.3g}") for _ in range(int(rng.integers(1, 5)))}
        if dynamics == "gradient_descent":
            times = {float(math.ceil(t)) for t in times}
        if rng.random() < 0.7:
            times.add(math.inf)
    ridges = {float(f"{10.0 ** rng.uniform(-12, 1):.3g}") for _ in range(int(rng.integers(0, 4)))}
    if not ridges or rng.random() < 0.6:
        ridges.add(0.0)
    kernels = [("ntk",), ("nngp",), ("ntk", "nngp"), ("ntkgp",)][rng.choice(4, p=[0.4, 0.25, 0.3, 0.05])]
    rate = float(10.0 ** rng.uniform(-2, 0)) if dynamics != "gradient_flow" else 1.0
    facts |= {"solver": settings, "dynamics": dynamics, "times": sorted(times), "ridges": sorted(ridges)}
    predict = PredictConfig(
        kernels=("gram",) if kind == "given" else kernels,
        times=tuple(sorted(times)),
        ridges=tuple(sorted(ridges)),
        dynamics=dynamics,
        learning_rate=rate,
    )
    return SolverConfig(**settings), predict
