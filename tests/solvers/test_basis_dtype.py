"""`Krylov(basis_dtype="float32")`: the promises of every solver, bounds and estimates that hold, half of the memory, and refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from conformance.solvers import SolverConformance

import ntkpipe as nk
from ntkpipe.config import DataConfig, SolverConfig
from ntkpipe.data.dataset import load_dataset
from ntkpipe.dynamics.filters import GradientFlow
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.errors import ConfigError
from ntkpipe.planning.memory import Room, basis_capacity, held_memory
from ntkpipe.solvers.basis_solution import BasisSolution
from ntkpipe.solvers.krylov import Krylov
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.gram import Gram
from ntkpipe.storage.memory import MemoryStore

N, P, C = 200, 30, 4
TIMES = (1.0, 100.0, 1e4, math.inf)
ROUNDED = Krylov(tolerance=1e-7, stop="bound", basis_dtype="float32")


class TestRounded(SolverConformance):
    solver = Krylov(tolerance=1e-7, checkpoint_every=1, basis_dtype="float32")
    exact_leave_one_out = False


def kernel(kind: str) -> np.ndarray:
    """(N + P, N + P): of images under a network of three hidden layers, or with a prescribed spectrum."""
    rng = np.random.default_rng(1)
    if kind == "images":
        x = load_dataset(DataConfig(kind="digits"), dtype="float64").x_train[: N + P]
        return np.asarray(nk.zoo.fcn(depth=3)(x, x).ntk)
    q, _ = np.linalg.qr(rng.normal(size=(N + P,) * 2))
    values = {"decaying": np.logspace(-2, 2, N + P), "outlier": np.append(np.linspace(0.3, 1, N + P - 1), 1e3)}[kind]
    made = (q * values) @ q.T
    return (made + made.T) / 2


@pytest.mark.parametrize("kind", ["images", "decaying", "outlier"])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_predictions_are_within_bound_and_estimate_and_near_float64_ones(kind: str, ridge: float) -> None:
    whole = kernel(kind)
    train, test = whole[:N, :N], whole[N:, :N]
    targets = np.random.default_rng(2).normal(size=(N, C))
    gram = Gram.from_arrays(train, test, whole.diagonal()[N:], edge=64)
    values, vectors = np.linalg.eigh(train)
    absolute = ridge * float(train.diagonal().mean())
    flow = GradientFlow(N, C)
    found = ROUNDED.solve(gram.train("gram"), targets, times=TIMES, ridges=(ridge,), error_estimate="true")
    plain = dataclasses.replace(ROUNDED, basis_dtype="float64").solve(
        gram.train("gram"), targets, times=TIMES, ridges=(ridge,), error_estimate="true"
    )
    rounded, exact = (one.evaluate(gram.test("gram")) for one in (found, plain))
    assert isinstance(found, BasisSolution)
    assert isinstance(found.space, KrylovSolution)
    assert found.space.basis.dtype == np.float32
    for i, time in enumerate(TIMES):
        phi = flow.weights(values + absolute, time, cutoff=0.0)
        wanted = test @ (vectors @ (phi[:, None] * (vectors.T @ targets)))
        error = np.abs(rounded.mean[i, 0] - wanted)
        assert (error <= rounded.bound[i, 0] + 1e-12).all()
        assert rounded.estimate is not None
        assert (error <= rounded.estimate[i, 0] + 1e-12).mean() >= 0.99
        assert error.max() <= np.abs(exact.mean[i, 0] - wanted).max() + 1e-5 * np.abs(wanted).max()
    # Ritz values are those of the stored vectors, in float64.
    assert found.largest == pytest.approx(values[-1], rel=1e-10)


@pytest.mark.parametrize(("outputs", "scale"), [(40, 1.0), (3, 1.0), (3, 2.0**20), (3, 2.0**-20)])
def test_many_outputs_and_any_unit_of_targets_stop_at_the_tolerance(outputs: int, scale: float) -> None:
    whole = kernel("decaying")
    train, test = whole[:N, :N], whole[N:, :N]
    rng = np.random.default_rng(2)
    # Rank 3, so that 40 outputs do not fill the space in a few steps.
    targets = scale * rng.normal(size=(N, 3)) @ (rng.normal(size=(3, outputs)) if outputs > 3 else np.eye(3))
    gram = Gram.from_arrays(train, test, whole.diagonal()[N:], edge=64)
    found = Krylov(basis_dtype="float32", tolerance=1e-5).solve(
        gram.train("gram"), targets, times=math.inf, ridges=1e-3
    )
    made, absolute = found.evaluate(gram.test("gram")), 1e-3 * float(train.diagonal().mean())
    error = np.abs(made.mean[0, 0] - test @ np.linalg.solve(train + absolute * np.eye(N), targets))
    assert error.max() < 2e-5 * np.abs(targets).max()
    assert (error <= made.bound[0, 0]).all()
    assert made.error_estimate is not None
    assert (error <= made.error_estimate[0, 0]).mean() >= 0.99


def test_half_of_the_memory_is_planned_and_kept() -> None:
    room = Room(1 << 34, 2)
    half, whole = (SolverConfig(kind="krylov", basis_gib=1.0, basis_dtype=dtype) for dtype in ("float32", "float64"))
    assert basis_capacity(half, 50_000, 10, 0, room) == 2 * basis_capacity(whole, 50_000, 10, 0, room)
    plain = (dataclasses.replace(one, basis_gib=None) for one in (half, whole))
    held = [held_memory(one, 50_000, 10, 0, room) for one in plain]
    assert held[0] - held[1] == 4 * 50_000 * 10 * 200


def test_one_basis_is_not_taken_for_the_other() -> None:
    gram = kernel("decaying")[:N, :N]
    targets = np.random.default_rng(2).normal(size=(N, C))
    store = MemoryStore("both")
    workspace = Workspace(store=store)
    solvers = (ROUNDED, dataclasses.replace(ROUNDED, basis_dtype="float64"))
    keys = [s.solve(gram, targets, times=TIMES, workspace=workspace).facts["key"] for s in solvers]
    assert keys[0] != keys[1]
    auto = Krylov(tolerance=1e-7, stop="bound").solve(gram, targets, times=TIMES, workspace=workspace)
    assert auto.facts["key"] == keys[1]


def test_a_basis_that_does_not_fit_is_refused() -> None:
    gram = kernel("decaying")[:N, :N]
    small = dataclasses.replace(ROUNDED, basis_gib=40 * 4 * N / 2**30)
    with pytest.raises(ConfigError, match=r"basis_dtype=float64, or raise solver\.basis_gib"):
        small.solve(gram, np.random.default_rng(2).normal(size=(N, C)), times=TIMES)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"basis_dtype": "float16"}, "float16 would leave three digits"),
        ({"basis_dtype": "float32", "basis": "workers"}, "for a basis in the driver"),
        ({"basis_dtype": "half"}, "basis_dtype"),
    ],
)
def test_what_is_not_to_be_had_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        SolverConfig(kind="krylov", **settings)
