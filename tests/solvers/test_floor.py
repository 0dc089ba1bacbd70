"""Where errors of the tiles and rounding are all that is left, more passes make no prediction better: krylov stops there."""

from __future__ import annotations

import math

import numpy as np

import ntkpipe as nk
from ntkpipe.data.points import Dataset
from ntkpipe.sources.gram import Gram
from ntkpipe.tasks.serial import SerialExecutor

N, P = 300, 40


def test_a_tolerance_below_the_floor_of_rounding_ends_where_the_error_stops_falling() -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((N + P, 6)) @ rng.standard_normal((6, 16))).reshape(-1, 4, 4, 1).astype(np.float32)
    y = np.sin(x.reshape(N + P, -1)[:, :2])
    gram = Gram(nk.zoo.fcn(depth=3), Dataset(x[:N], y[:N], x[N:], y[N:]), edge=128)
    gram.compute(progress=False)
    kernel, test, targets = gram.train("ntk"), gram.test("ntk"), y[:N]
    here = SerialExecutor()
    train = gram.opened.source.exact_rows("train", np.arange(N), N, here, 1)["ntk"]
    along = gram.opened.source.exact_rows("test", np.arange(P), N, here, 1)["ntk"]
    exact = along @ np.linalg.solve(train, targets)

    def error(solver: nk.Krylov | nk.Eigh) -> tuple[float, dict]:
        found = solver.solve(kernel, targets, times=(math.inf,), ridges=(0.0,))
        return float(np.sqrt(np.mean((found.evaluate(test).mean[0, 0] - exact) ** 2))), found.facts

    floor, _ = error(nk.Eigh())
    stopped, facts = error(nk.Krylov(tolerance=1e-14))
    assert facts["reason"] == "ROUNDING"
    assert stopped < 1.1 * floor
    on, more = error(nk.Krylov(tolerance=1e-14, stop="bound"))
    assert facts["steps"] < 0.9 * more["steps"]
    assert on > 0.9 * stopped  # what the further passes are for
    step, reached, wanted = facts["estimates"][-1]
    assert step == facts["steps"]
    assert 1e-14 < reached <= wanted
    loose, few = error(nk.Krylov(tolerance=1e-14, max_steps=facts["steps"]))
    assert (loose, few["steps"]) == (stopped, facts["steps"])
