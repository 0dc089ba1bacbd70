"""Stopping by test predictions: neither early nor late, the same way however often it is interrupted."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ntkpipe as nk
from benchmarks.stopping import Drawn, Line, draw, tried
from ntkpipe.dynamics.enough import EstimateRule
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.movement import TestMeans, summed_outputs
from ntkpipe.dynamics.stopping import steps_to_go, stop_rule
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason

TIMES = (0.0, 1e2, 1e4, math.inf)
RIDGES = (0.0, 1e-2)


def means_of(p, f, times=TIMES, ridges=RIDGES) -> TestMeans:
    watched = np.eye(3, p.n)
    return TestMeans(p.test_train, watched, f, times, ridges, np.abs(p.targets).max(axis=0))


def rule_of(p, f, tolerance, times=TIMES, ridges=RIDGES, noise=0.0) -> EstimateRule:
    scales = np.abs(p.targets).max(axis=0)
    diagonal = float(p.diagonal.max())
    bound = stop_rule(f, times, ridges, largest_test_diagonal=diagonal, tolerance=tolerance, scales=scales, noise=noise)
    return EstimateRule(bound, means_of(p, f, times, ridges))


@pytest.mark.parametrize("c", [3, 33])
def test_means_by_blocks_are_those_of_all_eigenvectors(c, make_problem):
    p = make_problem(np.geomspace(1e-3, 10, 150), c=c)
    f = make_filter("gradient_flow", p.n, c)
    followed, recorded = means_of(p, f), means_of(p, f)
    seen = []

    def stop(result: LanczosResult) -> bool:
        space, step = KrylovSolution.from_lanczos(result), len(result.block_sizes)
        followed.follow(result)
        recorded.follow(result)
        recorded.record(step, space)
        one, other = (means.moved(step) for means in (followed, recorded))
        if one is None or other is None:
            assert one is other
            return False
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
        exact = p.test_train @ space.dual_weights(f, TIMES, RIDGES)
        exact = exact.reshape(-1, len(TIMES), len(RIDGES), c).transpose(1, 2, 0, 3)
        assert one.shape == summed_outputs(exact).shape
        np.testing.assert_allclose(followed.along[-3:], space.basis[:, :3].T, atol=1e-12)
        seen.append(step)
        return False

    block_lanczos(DenseOperator(p.train), p.targets, max_steps=12, stop=stop, check_every=lambda step: step + 1)
    assert followed.by_blocks
    assert not recorded.by_blocks
    assert len(seen) > (0 if c == 33 else 5)


def test_a_resumed_solve_decides_alike(make_problem):
    p = make_problem(np.geomspace(1e-4, 10, 200), c=2)
    f = make_filter("gradient_flow", p.n, p.c)
    operator = DenseOperator(p.train)
    whole = rule_of(p, f, 1e-5)
    steps = block_lanczos(operator, p.targets, max_steps=90, stop=whole, check_every=whole.check_every).steps
    late, asked = rule_of(p, f, 1e-5), []

    def resumed(result: LanczosResult) -> bool:
        asked.append(len(result.block_sizes))
        return late(result)

    # As a rule is asked after a restart at a checkpoint: of the later steps alone.
    first = 1 + steps // 2
    assert (
        block_lanczos(operator, p.targets, max_steps=90, stop=resumed, check_every=lambda s: max(s + 1, first)).steps
        == steps
    )
    assert asked[1] == first
    assert late.estimates[-1] == whole.estimates[-1]


@pytest.mark.parametrize(
    ("dynamics", "times", "noise"),
    [
        ("gradient_descent", (100.0, 3000.0), 0.0),
        ("momentum", (100.0, 1000.0), 0.0),
        ("gradient_flow", (1e3, math.inf), 1e-2),
    ],
)
def test_other_dynamics_and_null_directions_are_followed_by_eigenvectors(dynamics, times, noise, make_problem):
    null = np.full(60, 1e-3) if noise else np.zeros(0)
    p = make_problem(np.concatenate([null, np.geomspace(1e-1, 10, 240)]), c=4)
    f, tolerance = make_filter(dynamics, p.n, p.c, learning_rate=0.5), 1e-4
    rule = rule_of(p, f, tolerance, times, (0.0,), noise)
    result = block_lanczos(DenseOperator(p.train), p.targets, max_steps=90, stop=rule, check_every=rule.check_every)
    assert not rule.means.by_blocks
    assert result.reason is Reason.CONVERGED
    found = KrylovSolution.from_lanczos(result, noise)
    exact = KrylovSolution.from_eigensystem(*np.linalg.eigh(p.train), p.targets, noise)
    error = p.test_train @ (found.dual_weights(f, times, (0.0,)) - exact.dual_weights(f, times, (0.0,)))
    assert np.abs(error).max() <= tolerance * np.abs(p.targets).max()


def test_the_forecast_is_the_trend_of_the_last_half():
    falling = [(step, 10.0 ** (-step / 5)) for step in range(1, 21)]
    assert steps_to_go(falling, 1e-6) == 10
    assert steps_to_go(falling[:2], 1e-6) is None  # two points are no trend
    assert steps_to_go(falling, 1.0) is None  # it is there
    assert steps_to_go([(step, 1.0 + step) for step in range(1, 21)], 1e-6) is None
    assert steps_to_go([], 1e-6) is None


@pytest.mark.slow
def test_it_is_neither_early_nor_late_on_random_problems():
    """As `benchmarks/stopping.py`, which tries 1,000."""
    found = [Line.of(tried(draw(np.random.default_rng([7, k])), "estimate")) for k in range(40)]
    lines = [line for line in found if line is not None]
    assert len(lines) > 20
    assert sum(line.beyond for line in lines) <= 0.01 * sum(line.predictions for line in lines)
    assert sum(line.made - line.needed > 2 + 0.1 * line.needed for line in lines) <= 0.05 * len(lines)
    assert sum(line.made for line in lines) <= 1.12 * sum(line.needed for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["ntk", "nngp"])
def test_it_is_neither_early_nor_late_on_images(name, dtype):
    data = nk.load_dataset("digits", train_size=900, test_size=297)
    kernel, test = {}, {}
    for precision in {"float64", dtype}:
        gram = nk.Gram(nk.zoo.fcn(depth=3), data, dtype=precision)
        gram.compute()
        kernel[precision], test[precision] = gram.train(name), gram.test(name)
    filtered = make_filter("gradient_flow", 900, 10)
    drawn = Drawn(
        kind="points",
        train=kernel["float64"].to_numpy(),
        stored=kernel[dtype].to_numpy().astype(np.float64),
        stored_test=test[dtype].to_numpy().astype(np.float64),
        diagonal=test["float64"].diagonal(),
        targets=np.asarray(data.targets),
        filter=filtered,
        times=(1e3, math.inf),
        ridges=(0.0,),
        tolerance=1e-4,
    )
    line = Line.of(tried(drawn, "estimate", most=45))
    assert line is not None
    assert line.beyond == 0
    assert line.made - line.needed <= 2 + 0.1 * line.needed
