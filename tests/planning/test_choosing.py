"""What `solver=auto` chooses, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ntkpipe.config import PredictConfig, RunConfig, SolverConfig
from ntkpipe.planning.choosing import choose
from ntkpipe.planning.shapes import Shapes

END = (math.inf,)
IMAGES = Shapes("f" * 64, 50_000, 10_000, 5000, 1000, (32, 32, 3), 10)


def chosen(shapes: Shapes = IMAGES, solver: dict[str, Any] | None = None, **predict: Any) -> tuple[str, str]:
    config = RunConfig(predict=PredictConfig(**predict), solver=SolverConfig(**solver or {}))
    found, lines = choose(config, shapes)
    return found.solver.kind, lines[0] if solver is None or "kind" not in solver else ""


@pytest.mark.parametrize(
    "predict",
    [{}, {"times": END}, {"times": (10.0, math.inf)}, {"times": END, "covariance": "diagonal"}],
    ids=["grid", "end", "finite", "variances"],
)
def test_many_points_are_solved_by_krylov(predict: dict[str, Any]) -> None:
    kind, line = chosen(**predict)
    assert kind == "krylov"
    assert line.startswith("solver   krylov: 5,000 points")


@pytest.mark.parametrize(
    "solver",
    [{"tolerance": 1e-5}, {"max_steps": 50}, {"basis_gib": 1.0}, {"basis": "workers"}, {"basis_dtype": "float32"}],
    ids=lambda one: next(iter(one)),
)
def test_settings_of_iterative_solvers_choose_one(solver: dict[str, Any]) -> None:
    assert chosen(dataclasses.replace(IMAGES, used_train=2000), solver=solver, times=END)[0] == "krylov"


def test_few_points_are_solved_densely() -> None:
    assert chosen(dataclasses.replace(IMAGES, used_train=2000), times=END)[0] == "eigh"


@pytest.mark.parametrize("kind", ["krylov", "eigh", "cg", "cholesky"])
def test_a_solver_that_is_named_is_kept(kind: str) -> None:
    assert chosen(solver={"kind": kind}, times=END)[0] == kind
