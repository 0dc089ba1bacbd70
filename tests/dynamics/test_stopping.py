from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.stopping import stop_rule
from ntkpipe.dynamics.talbot import DECAY_ERROR, PHI_ERROR, ROOT_ERROR, flow_shifts
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator


def test_the_contour_gives_flow_at_every_eigenvalue_to_its_stated_error():
    x = np.concatenate([[0.0], np.geomspace(1e-12, 1e14, 5000)])
    for s in (1e-3, 1.0, 1e7):
        shifts, phi, decay = flow_shifts(s)
        inverse = 1 / (x[:, None] / s + shifts)
        exact = np.where(x > 0, -np.expm1(-x) / np.where(x > 0, x, 1), 1)
        error = np.abs((inverse * phi).sum(1).real / s - exact)
        assert error.max() <= PHI_ERROR
        assert (np.sqrt(x) * error).max() <= ROOT_ERROR
        assert np.abs((inverse * decay).sum(1).real - np.exp(-x)).max() <= DECAY_ERROR


@pytest.mark.parametrize("times", [None, (10.0, 1e3, math.inf), (1e2, 1e4)])
@pytest.mark.parametrize(
    ("dynamics", "condition"),
    [
        ("gradient_flow", 1e1),
        ("gradient_flow", 1e4),
        ("gradient_flow", 1e6),
        ("gradient_descent", 1e4),
        ("momentum", 1e2),
    ],
)
def test_the_cheap_part_changes_no_decision(dynamics, times, condition, make_problem):
    p = make_problem(100 * np.maximum(np.arange(1.0, 121) ** -2, 1 / condition))
    f = make_filter(dynamics, p.n, p.c)
    runs = []
    for whole in (False, True):
        rule = stop_rule(f, times, [0.0, 1e-4, 1e-1], largest_test_diagonal=float(p.diagonal.max()), tolerance=1e-5)
        if whole:
            rule._part = lambda result: None
        result = block_lanczos(DenseOperator(p.train), p.targets, max_steps=60, stop=rule)
        runs.append((rule, result))
    (fast, short), (slow, long) = runs
    assert short.steps == long.steps
    assert [h[:2] for h in fast.history] == [h[:2] for h in slow.history]
    for cheap, full in zip(fast.history, slow.history, strict=True):
        assert cheap[2] <= full[2] * (1 + 1e-3)  # never above the whole, but for the tolerance of an eigenvalue
    if dynamics == "gradient_flow":
        assert fast.eigensystems <= min(4, slow.eigensystems)
        if times is None:  # nothing is left out at t = inf
            np.testing.assert_allclose([h[2] for h in fast.history], [h[2] for h in slow.history], rtol=1e-3)


@pytest.mark.parametrize("times", [(math.inf,), (1e2, 1e4, math.inf)])
def test_a_tolerance_out_of_reach_ends_where_rounding_is_all_that_is_left(times, make_problem):
    p = make_problem(np.geomspace(1e-1, 1e2, 400), c=4)
    f = make_filter("gradient_flow", p.n, p.c)

    def solve(stop):
        result = block_lanczos(DenseOperator(p.train), p.targets, max_steps=300, stop=stop)
        return result.steps, KrylovSolution.from_lanczos(result).dual_weights(f, times, (0.0,))

    exact = KrylovSolution.from_eigensystem(*np.linalg.eigh(p.train), p.targets).dual_weights(f, times, (0.0,))
    rule = stop_rule(f, times, (0.0,), largest_test_diagonal=float(p.diagonal.max()), tolerance=1e-18)
    steps, found = solve(rule)
    most, best = solve(None)
    assert steps < 0.9 * most  # of an invariant space
    assert np.abs(p.test_train @ (found - exact)).max() < 10 * np.abs(p.test_train @ (best - exact)).max() + 1e-13
