"""Choosing the ridge and the time: held-out images against a run without them, leave-one-out against refitting."""

from __future__ import annotations

import numpy as np
import pytest
from lab import Lab

from ntkpipe.dynamics.leave_one_out import residuals_from_eigensystem
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.eigh import Eigensystem
from ntkpipe.run import stages
from ntkpipe.run.prepare import reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.solvers import stochastic
from ntkpipe.tiles.layout import Kernel

N, V = 64, 16
KERNELS: tuple[Kernel, ...] = ("ntk", "nngp")
WORDS = (
    "cluster=serial",
    "data=digits",
    f"data.train_size={N}",
    "data.test_size=12",
    "grid.edge=32",
    "kernel.dtype=float64",
    "predict.ridges=[1e-4,1e-2,1]",
)
TIMES, LAST = "predict.times=[1,100,1e4,inf]", "predict.times=[inf]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    path = tmp_path_factory.mktemp("lab")
    return Lab(path, *WORDS, f"store.url={path / 'store'}")  # looked at from elsewhere too


@pytest.fixture
def no_figures(monkeypatch) -> None:
    monkeypatch.setattr(stages, "write_report", lambda run, *_: run.path / "report")


def dense(run: RunDir, kernel: Kernel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The train-train kernel, targets and labels."""
    context = reopen(run)
    labels = context.data.labels()
    assert labels.labels_train is not None
    return assemble(context.kernels.train(kernel).matrix), labels.y_train[:N], labels.labels_train[:N]


def refitted(a: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Residuals of every image predicted from the others, one fit each."""
    out = np.empty_like(y)
    for i in range(len(y)):
        rest = np.delete(np.arange(len(y)), i)
        weights = np.linalg.solve(a[np.ix_(rest, rest)] + ridge * np.eye(len(rest)), y[rest])
        out[i] = y[i] - a[i, rest] @ weights
    return out


TIGHT = {"krylov": ("solver.tolerance=1e-8",), "cg": ("solver.residual=1e-12",)}


@pytest.mark.parametrize("flips", ["none", "hflip"])
@pytest.mark.parametrize(("solver", "times"), [("krylov", TIMES), ("eigh", TIMES), ("cg", LAST), ("cholesky", LAST)])
def test_held_out_errors_are_those_of_a_fit_without_the_images(lab, no_figures, solver, times, flips):
    name = f"held-{solver}-{flips}"
    words = (f"solver={solver}", times, *TIGHT.get(solver, ()), f"augment={flips}")
    predicted = lab.run(name, *words, "predict.selection=held_out", f"predict.held_out={V}")
    run, found = lab.opened(name), lab.metrics(name)["selection"]
    for kernel in KERNELS:
        a, y, labels = dense(run, kernel)
        record = found["kernels"][kernel]
        plain = reopen(run).kernels.train(kernel).diagonal(plain=True)[: N - V]
        for r, ridge in enumerate([1e-4, 1e-2, 1.0]):
            inner = a[: N - V, : N - V] + ridge * plain.mean() * np.eye(N - V)
            means = a[N - V :, : N - V] @ np.linalg.solve(inner, y[: N - V])
            squared = np.mean((means - y[N - V :]) ** 2, axis=1)
            # Predictions are right to 1e-8 and the solver's own 1e-11.
            assert record["mse"][-1][r] == pytest.approx(squared.mean(), rel=1e-6)
            assert record["mse_standard_error"][-1][r] == pytest.approx(squared.std() / np.sqrt(V), rel=1e-5)
            assert record["accuracy"][-1][r] == np.mean(means.argmax(1) == labels[N - V :])
        accuracy, best = np.array(record["accuracy"]), record["best"]
        assert best["accuracy"] == accuracy.max()
        at = record["times"].index(best["time"]), record["ridges"].index(best["ridge"])
        assert accuracy[at] == accuracy.max()
        assert best["mse"] == np.array(record["mse"])[accuracy == accuracy.max()].min()
        assert record["images"] == V
    assert found["test_images_used"] is False
    assert f"last {V} training points" in found["chosen_on"]
    # The final predictions are those of all training images.
    calm = lab.run(f"calm-{solver}-{flips}", *words)
    np.testing.assert_array_equal(predicted.mean, calm.mean)


@pytest.mark.parametrize("solver", ["eigh", "cholesky"])
def test_leave_one_out_is_refitting(lab, no_figures, solver):
    lab.run(f"loo-{solver}", f"solver={solver}", LAST, "predict.selection=loo")
    run = lab.opened(f"loo-{solver}")
    found = lab.metrics(f"loo-{solver}")["selection"]["kernels"]
    with np.load(run.path / "leave_one_out.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    for kernel in KERNELS:
        a, y, labels = dense(run, kernel)
        assert found[kernel]["exact"] is True
        for r, ridge in enumerate([1e-4, 1e-2, 1.0]):
            wanted = refitted(a, y, ridge * np.diagonal(a).mean())
            # Condition 1e4: residuals of order one, right to 1e-11.
            np.testing.assert_allclose(arrays[kernel][r], wanted, atol=1e-9)
            assert found[kernel]["mse"][0][r] == pytest.approx(np.mean(wanted**2), rel=1e-8)
            right = (y - wanted).argmax(1) == labels
            assert found[kernel]["accuracy"][0][r] == np.mean(right)


@pytest.mark.parametrize("solver", ["krylov", "cg"])
def test_a_sample_is_left_out_where_all_would_cost_too_much(lab, no_figures, solver, monkeypatch):
    monkeypatch.setattr(stochastic, "ROWS", 16)
    words = ("predict.selection=loo", "solver.tolerance=1e-7", *(["solver.residual=1e-10"] if solver == "cg" else []))
    lab.run(f"loo-{solver}", f"solver={solver}", LAST, *words)
    run = lab.opened(f"loo-{solver}")
    assert not (run.path / "leave_one_out.npz").exists()
    rows = stochastic.sample_indices(N, 16, seed=1)
    record = lab.metrics(f"loo-{solver}")["selection"]["kernels"]["ntk"]
    assert (record["images"], record["exact"]) == (16, False)
    a, y, _ = dense(run, "ntk")
    for r, ridge in enumerate([1e-4, 1e-2, 1.0]):
        squared = np.mean(refitted(a, y, ridge * np.diagonal(a).mean())[rows] ** 2, axis=1)
        assert record["mse"][0][r] == pytest.approx(squared.mean(), rel=1e-4)
        assert record["mse_standard_error"][0][r] == pytest.approx(squared.std() * np.sqrt((1 - 16 / N) / 16), rel=1e-3)


def test_the_report_says_on_what_was_chosen(lab, drawn, capsys):
    words = ("predict.selection=held_out", "predict.held_out=0.25", "predict.covariance=diagonal", "solver=eigh")
    lab.run("told", TIMES, *words)
    assert "without the test points" in capsys.readouterr().err
    report = lab.path / "told" / "report"
    page = (report / "report.html").read_text()
    assert "Chosen on the last 16 training points" in page
    assert 'class="chosen"' in page or 'class="best chosen"' in page
    assert (report / "figures" / "selection.png").exists()
    best = lab.metrics("told")["selection"]["chosen"]["ntk"]
    entries = lab.metrics("told")["entries"]
    match = [e for e in entries if (e["kernel"], e["time"], e["ridge"]) == ("ntk", best["time"], best["ridge"])]
    assert best["test"]["accuracy"] == match[0]["accuracy"]


def test_too_many_held_out_are_refused(lab, capsys):
    words = (TIMES, "predict.selection=held_out", "predict.held_out=64", "run_dir=all")
    assert lab.command("run", *lab.words, *words) == 2
    assert "predict.held_out" in capsys.readouterr().err


def test_a_singular_kernel_has_no_residuals_without_ridge():
    x = np.random.default_rng(0).standard_normal((6, 3))
    found = residuals_from_eigensystem(Eigensystem.of(x @ x.T), np.ones((6, 2)), [0.0, 0.1])
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], refitted(x @ x.T, np.ones((6, 2)), 0.1), atol=1e-12)


@pytest.mark.parametrize("method", ["held_out", "loo"])
def test_errors_of_standardised_targets_are_in_the_units_of_the_data(tmp_path, no_figures, method):
    rng = np.random.default_rng(3)
    x, scale, offset = rng.standard_normal((60, 4)), np.array([30.0, 0.2]), np.array([100.0, -1.0])
    y = np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1) * scale + offset
    np.savez(tmp_path / "a.npz", x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    lab = Lab(tmp_path, "cluster=serial", "data=npz", f"data.path={tmp_path / 'a.npz'}", "solver=eigh", LAST)
    words = ("kernel.dtype=float64", "predict.ridges=[1e-2,1]", "predict.kernels=[nngp]", f"predict.selection={method}")
    if method == "held_out":
        words = (*words, "predict.held_out=12")
    predictions = lab.run(method, *words, "data.targets=standardize")  # real targets without more words
    found = lab.metrics(method)
    record = found["selection"]["kernels"]["nngp"]
    context = reopen(lab.opened(method))
    a, known = assemble(context.kernels.train("nngp").matrix), context.data.labels().y_train
    np.testing.assert_allclose(np.sort(known[:, 0]), np.sort((y[:48, 0] - y[:48, 0].mean()) / y[:48, 0].std()))
    for r, ridge in enumerate([1e-2, 1.0]):
        if method == "loo":
            errors = refitted(a, known, ridge * a.diagonal().mean())
        else:
            inner = a[:36, :36] + ridge * a.diagonal()[:36].mean() * np.eye(36)
            errors = known[36:] - a[36:, :36] @ np.linalg.solve(inner, known[:36])
        expected = np.mean((errors * y[:48].std(axis=0)) ** 2)
        assert record["mse"][-1][r] == pytest.approx(expected, rel=1e-6)
    # Of the same units as the test error.
    squared = np.mean((predictions.mean[0, 0] - y[48:]) ** 2, axis=(1, 2))
    best = found["selection"]["chosen"]["nngp"]
    assert best["test"]["mse"] == pytest.approx(squared[[1e-2, 1.0].index(best["ridge"])], rel=1e-9)
    if method == "loo":
        kept = np.load(lab.opened(method).path / "leave_one_out.npz")["nngp"]
        assert np.mean(kept[1] ** 2) == pytest.approx(record["mse"][-1][1], rel=1e-9)
