"""Numbers that are not finite, or all zero: facts, metrics and reports are written all the same, and no prediction is made up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ntkpipe.errors import NumericalError
from ntkpipe.run.run_dir import RunDir

WORDS = ("cluster=serial", "data=npz", "data.path=d.npz", "predict.kernels=[nngp]")


@pytest.fixture
def inputs(work):
    """Writes targets (30,) for 20 training and 10 test points."""

    def write(targets: np.ndarray) -> None:
        x = np.random.default_rng(0).normal(size=(30, 4))
        np.savez(work.path / "d.npz", x_train=x[:20], y_train=targets[:20], x_test=x[20:], y_test=targets[20:])

    return write


@pytest.mark.parametrize("solver", ["krylov", "eigh"])
def test_targets_that_are_all_zero_are_predicted(work, inputs, drawn, solver):
    inputs(np.zeros(30))
    words = ("data.labels=regression", "predict.times=[10,inf]", f"solver={solver}", "predict.covariance=diagonal")
    work.ok("run", "run_dir=r", *WORDS, *words)
    assert not work.predictions("r").mean.any()
    texts = [
        (work.path / "r" / "metrics.json").read_text(),
        *(p.read_text() for p in work.path.glob("r/stages/*.json")),
    ]
    texts += (work.path / "r" / "log.jsonl").read_text().splitlines()
    for text in texts:
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_facts_of_a_stage_keep_their_numbers(work):
    inputs_of_run = ("cluster=serial", "data=synthetic", "data.n_train=8", "data.n_test=4", "data.shape=[2,2,1]")
    work.ok("gram", "run_dir=r", *inputs_of_run)
    run = RunDir.open(work.path / "r")
    run.finish("solve", 1.0, kernels={"ntk": {"largest": math.inf, "smallest": math.nan, "steps": 3}})
    facts = run.require("solve")["kernels"]["ntk"]
    assert (facts["largest"], math.isnan(facts["smallest"]), facts["steps"]) == (math.inf, True, 3)
    assert "NaN" not in (work.path / "r/stages/solve.json").read_text()


def test_predictions_that_are_no_numbers_are_refused(work, inputs, monkeypatch):
    from ntkpipe.solvers import prediction

    def broken(*args):
        means, *rest = found(*args)
        means[-1, 0, 2] = math.nan
        return means, *rest

    found = prediction._means
    inputs(np.arange(30) % 2)
    monkeypatch.setattr(prediction, "_means", broken)
    refused = work("run", "run_dir=r", "predict.times=[10,inf]", *WORDS)
    assert (refused.code, "nngp: predictions at t=inf" in refused.err) == (NumericalError.exit_code, True)
    assert not (work.path / "r" / "predictions.zarr").exists()


@pytest.mark.parametrize("times", ["[10]", "[inf]"])
def test_a_learning_curve_needs_one_time_alone(work, inputs, drawn, times):
    inputs(np.arange(30) % 2)
    out = work.ok("run", "run_dir=r", "predict.train_sizes=[6,12,20]", f"predict.times={times}", *WORDS).out
    assert "n=20" in out
    curves = json.loads((work.path / "r/learning_curve.json").read_text())
    assert {curve["point"] for curve in curves} == {"only" if times == "[10]" else "inf"}
    for curve in curves:
        if curve["measure"] == "mse":
            made = [json.loads((work.path / f"r/train_size={n}/metrics.json").read_text()) for n in (6, 12, 20)]
            np.testing.assert_allclose(curve["values"], [one["entries"][0]["mse"] for one in made], rtol=1e-12)
    assert (work.path / "r/learning_curve.html").exists()


def test_a_learning_curve_without_errors_has_a_page(work, inputs, drawn):
    inputs(np.zeros(30))
    words = ("data.labels=regression", "predict.train_sizes=[6,12,20]", "predict.times=[10]")
    out = work.ok("run", "run_dir=r", *words, *WORDS).out
    assert "an error is 0" in out
