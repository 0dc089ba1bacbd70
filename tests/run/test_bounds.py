"""Error bounds hold: a small problem of every kind, run here and answered again in 120 digits.

`benchmarks/random_bounds.py` draws any number of others.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_bounds import compare, run
from random_problems import Drawn

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

N, P = 24, 8
INF = math.inf


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs from a network of one ReLU layer in float64 that krylov solves, at times up to inf, with and without a ridge."""

    points: str = "apart"
    targets: str = "classes"
    scale: float = 1.0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    kernel: dict[str, Any] = dataclasses.field(default_factory=dict)
    solver: dict[str, Any] = dataclasses.field(default_factory=dict)
    predict: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: str = "none"


CONVERGED = {"times": (INF,), "ridges": (1e-6, 1e-2)}
CASES = {
    "plain": Case(),
    "copies in float32": Case("copies", kernel={"dtype": "float32"}, solver={"products": "float32"}),
    "near copies": Case("near", solver={"kind": "eigh"}),
    "near copies in float32": Case("near", kernel={"dtype": "float32"}, predict={"ridges": (1e-4,)}),
    "small targets": Case(targets="regression", scale=1e-8),
    "large targets in float32": Case(targets="regression", scale=1e8, kernel={"dtype": "float32"}),
    "cg with float32 products": Case("near", solver={"kind": "cg", "products": "float32"}, predict=CONVERGED),
    "cholesky with float32 products": Case(
        "near", solver={"kind": "cholesky", "precision": "mixed", "products": "float32"}, predict=CONVERGED
    ),
    "restarts": Case(
        solver={"basis_gib": 18 * 8 * N / 2**30, "tolerance": 1e-2}, predict={"times": (10.0, INF), "ridges": (1e-2,)}
    ),
    "flips": Case("images", augment="hflip"),
    "descent": Case(predict={"dynamics": "gradient_descent", "times": (1.0, 1000.0, INF)}),
    "momentum": Case(predict={"dynamics": "momentum", "times": (1.0, 1000.0, INF)}),
    "linear": Case(kernel={"kind": "linear", "b_std": None}),
    "smooth": Case("near", kernel={"kind": "rbf"}, predict={"ridges": (0.0, 1e-8)}),
    "expansion": Case(
        kernel={"activation": "swish", "w_std": 1.0, "activation_args": {"degree": 24}}, predict={"ridges": (1e-3,)}
    ),
    "given": Case("deficient"),
}


def drawn(folder: Path, case: Case) -> Drawn:
    """The problem, its files in the folder."""
    rng = np.random.default_rng(7)
    y = rng.normal(size=(N + P, 1)) * case.scale if case.targets == "regression" else np.arange(N + P) % 3
    arrays = {"y_train": y[:N], "y_test": y[N:]}
    kernel, kind = {"dtype": "float64"} | case.kernel, "npz"
    if case.points == "deficient":
        # Small integers: exact, of rank 10 on training and test points together.
        features = rng.integers(-5, 6, size=(N + P, 10)).astype(float)
        gram = features @ features.T
        for name, part in (("train", gram[:N, :N]), ("test", gram[N:, :N]), ("test_diagonal", gram.diagonal()[N:])):
            np.save(folder / f"{name}.npy", part)
            kernel[name] = str(folder / f"{name}.npy")
        kernel["kind"], kind = "gram", "labels"
    else:
        x = rng.normal(size=(N + P, 2, 2, 1) if case.points == "images" else (N + P, 4))
        distance = {"copies": 0.0, "near": 1e-7}.get(case.points)
        if distance is not None:
            # With other labels: of training points, and of test points.
            x[12:15], x[N : N + 2] = x[:3] + distance, x[4:6] + distance
            x[15:18], x[N + 2 : N + 4] = x[6:9] + 1e-3, x[4:6]
        arrays |= {"x_train": x[:N], "x_test": x[N:]}
    if "kind" not in kernel:
        kernel["depth"] = 1
    np.savez(folder / "data.npz", **arrays)
    labels = "regression" if case.targets == "regression" else "centered"
    config = RunConfig(
        data=DataConfig(kind=kind, path=str(folder / "data.npz"), labels=labels),
        kernel=KernelConfig(**kernel),
        grid=GridConfig(edge=32),
        store=StoreConfig(url=str(folder / "store")),
        solver=SolverConfig(**case.solver),
        predict=PredictConfig(**{"times": (1.0, 1e5, INF), "ridges": (0.0, 1e-3)} | case.predict),
        cluster=ClusterConfig(kind="serial"),
        augment=case.augment,
        run_dir=str(folder / "run"),
    )
    return Drawn(case.points, config)


@pytest.mark.parametrize("name", CASES)
def test_no_error_exceeds_its_bound(tmp_path, name):
    inputs, predictions = run(drawn(tmp_path, CASES[name]))
    if name == "restarts":
        assert all(facts["restarted"] for facts in predictions.attributes["solver"].values())
    found = compare(inputs, predictions)
    assert "worst" not in found, found["worst"]
    # And the bounds say something.
    counts = found["counts"].values()
    entries = sum(one["entries"] for one in counts)
    silent = sum(one.get(what, 0) for one in counts for what in ("unknown", "infinite", "idle"))
    assert silent < entries / 2, found["counts"]
