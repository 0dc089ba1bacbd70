"""Losses other than the squared one, from configuration to predictions."""

from __future__ import annotations

import numpy as np
import pytest
from lab import QUICK, Lab
from scipy.integrate import solve_ivp
from scipy.special import softmax

import ntkpipe as nk
from ntkpipe.run.prepare import reopen

_WORDS = (*QUICK, "kernel.dtype=float64", "kernel.depth=1", "report=false")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), *_WORDS)


def test_cross_entropy_is_integrated_as_scipy_does(lab):
    times = [30.0, 1000.0]
    made = lab.run(
        "run", "predict.loss=cross_entropy", "predict.times=[30,1000]", "solver.tolerance=1e-6", "report=true"
    )
    blocks, data = reopen(lab.opened("run")).kernels, reopen(lab.opened("run")).data
    train, test = blocks.train("ntk").to_numpy(), blocks.test("ntk").to_numpy()
    y = np.eye(10)[data.labels().labels_train[:60]]
    n, c = y.shape

    def field(_, u):
        return (y - softmax(train @ u.reshape(n, c), axis=1)).ravel() / (n * c)

    exact = solve_ivp(field, (0, times[-1]), np.zeros(n * c), "LSODA", times, rtol=1e-10, atol=1e-12)
    order = np.argsort(data.labels().test_index[:20], kind="stable")
    for k in range(2):
        off = np.abs(made.mean[0, k, 0] - (test @ exact.y[:, k].reshape(n, c))[order])
        assert off.max() < 1e-6
        assert (off <= made.error_bound[0, k, 0]).all()
    assert (made.bound_kind == "estimate").all()
    entry = lab.metrics("run")["entries"][1]
    assert entry["accuracy"] > 0.4
    assert 0 < entry["log_loss"] < np.log(10)
    assert entry["mse"] < 0.09
    assert lab.command("verify", "run_dir=run") == 0
    assert "cross_entropy" in (lab.path / "run" / "run.json").read_text()


def test_squared_loss_by_integration_is_the_closed_form(lab):
    words = ("predict.times=[30,1000]", "predict.ridges=[0,1e-2]")
    closed = lab.run("closed", *words)
    found = lab.run("flow", *words, "solver=flow", "solver.tolerance=1e-7")
    np.testing.assert_allclose(found.mean, closed.mean, atol=1e-7)
    assert (np.abs(found.mean - closed.mean) <= found.error_bound + closed.error_bound).all()


def test_a_solve_that_was_stopped_goes_on(lab, monkeypatch):
    from ntkpipe.dynamics.loss_flow import LossFlow

    words = ("predict.loss=logistic", "predict.times=[1000]", "solver.checkpoint_every=3")
    whole, advance, passes = lab.run("whole", *words, "store.url=one"), LossFlow.field, 0

    def stops(self, x):
        nonlocal passes
        passes += 1
        if passes == 60:
            raise KeyboardInterrupt
        return advance(self, x)

    monkeypatch.setattr(LossFlow, "field", stops)
    assert lab.command("run", *_WORDS, "run_dir=cut", "store.url=two", *words) != 0
    monkeypatch.undo()
    cut = lab.run("cut", "store.url=two", *words)
    np.testing.assert_allclose(cut.mean, whole.mean, atol=1e-12)


def test_huber_from_python_and_what_it_refuses():
    data = nk.load_dataset("digits", train_size=40, test_size=8)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, dtype="float64")
    gram.compute(progress=False)
    solver = nk.Flow(loss="huber", huber_delta=0.2)
    solution = solver.solve(gram.train("ntk"), data.targets, times=[10, 300], progress=False)
    made = solution.predict(gram.test("ntk"), progress=False)
    assert made.attributes["loss"] == "huber"
    with pytest.raises(nk.errors.ConfigError, match="no closed form"):
        solution.predict(gram.test("ntk"), covariance="diagonal", progress=False)
    with pytest.raises(nk.errors.ConfigError, match="t = inf"):
        solver.solve(gram.train("ntk"), data.targets, times=[nk.inf], progress=False)
    with pytest.raises(nk.errors.ConfigError, match="the solution has no times"):
        solution.at(times=[5])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict.loss=cross_entropy",), "no finite limit"),
        (("predict.loss=cross_entropy", "predict.times=[10,inf]"), "grow like log t"),
        (("predict.loss=huber", "predict.times=[inf]"), "use predict.loss=squared for t = inf"),
        (("predict.loss=hinge", "predict.times=[1]"), "predict.loss"),
        (("predict.loss=cross_entropy", "predict.times=[1]", "predict.covariance=diagonal"), "no closed form"),
        (("predict.loss=cross_entropy", "predict.times=[1]", "solver=krylov"), "leave solver=krylov out"),
        (("predict.loss=logistic", "predict.times=[1]", "predict.huber_delta=2"), "huber_delta"),
        (("predict.loss=logistic", "predict.times=[1]", "predict.dynamics=momentum"), "gradient flow"),
        (("solver=flow",), "finite times"),
    ],
)
def test_what_has_no_meaning_is_refused(work, words, said):
    found = work("run", *_WORDS, *words)
    assert found.code == 2
    assert said in found.err


def test_real_targets_have_no_cross_entropy(work, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    np.savez(tmp_path / "d.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    words = ("cluster=serial", "data=npz", "data.path=d.npz", "data.labels=regression", "predict.times=[1]")
    found = work("run", *words, "predict.loss=cross_entropy")
    assert found.code != 0
    assert "needs classes" in found.err
    assert "tiles computed" not in found.out + found.err
