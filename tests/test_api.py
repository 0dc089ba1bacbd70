"""The objects at the top: what a notebook does, and that a run of the command line is the same."""

from __future__ import annotations

import io
import sys

import matplotlib.figure
import numpy as np
import pytest
from blank_figures import blank_figures
from lab import QUICK, Lab

import ntkpipe as nk
from ntkpipe.errors import ConfigError, DataError, IncompleteError
from ntkpipe.events.event import Event, Kind

TIMES, RIDGES = (1.0, 100.0, nk.inf), (0.0, 1e-3)


@pytest.fixture(scope="module")
def data() -> nk.Dataset:
    return nk.load_dataset("digits", train_size=60, test_size=20)


@pytest.fixture(scope="module")
def gram(data) -> nk.Gram:
    made = nk.Gram(nk.zoo.fcn(depth=3, w_std=2**0.5, b_std=0.1), data, edge=32)
    made.compute()
    return made


def laplace(x1, x2):
    distance = np.linalg.norm(x1.reshape(len(x1), 1, -1) - x2.reshape(1, len(x2), -1), axis=2)
    return np.exp(-distance / 8)


@pytest.mark.parametrize(
    ("word", "solver", "times"),
    [
        ("krylov", nk.Krylov(), TIMES),
        ("eigh", nk.Eigh(), TIMES),
        ("cg", nk.ConjugateGradients(), (nk.inf,)),
        ("cholesky", nk.Cholesky(), (nk.inf,)),
    ],
)
def test_a_run_by_command_has_the_same_bits(tmp_path, gram, data, word, solver, times):
    ridges = RIDGES if word in ("krylov", "eigh") else RIDGES[1:]
    words = [f"predict.times=[{','.join(f'{t:g}' for t in times)}]", f"predict.ridges=[{','.join(map(str, ridges))}]"]
    lab = Lab(tmp_path, *QUICK, f"solver={word}", "predict.covariance=diagonal", *words)
    with blank_figures():
        by_command = lab.run("run", "predict.kernels=[ntk]")
    solution = solver.solve(gram.train("ntk"), data.targets, times=times, ridges=ridges)
    by_hand = solution.predict(gram.test("ntk"), times=times, covariance="diagonal")
    for name in ("mean", "error_bound", "bound_kind", "variance", "variance_bound", "test_index", "label", "target"):
        np.testing.assert_array_equal(getattr(by_hand, name), getattr(by_command, name), err_msg=name)


def test_predictions_as_tables(gram, data):
    solution = nk.Krylov().solve(gram.train("ntk"), data.targets, ridges=RIDGES)
    found = solution.predict(gram.test("ntk"), times=TIMES)
    array, frame, metrics = found.to_xarray(), found.to_pandas(), found.metrics()
    assert dict(array.sizes) == {"kernel": 1, "time": 3, "ridge": 2, "test": 20, "class": 10}
    assert len(frame) == 3 * 2 * 20
    right = (found.mean[0, 2, 0].argmax(1) == found.label).mean()
    row = metrics[(metrics.time == nk.inf) & (metrics.ridge == 0)]
    assert row.accuracy.item() == pytest.approx(right)
    assert isinstance(found.plot(), matplotlib.figure.Figure)


def test_kernels_are_arrays_of_a_kind(gram):
    kernel, test = gram.train("ntk"), gram.test("nngp")
    whole = kernel.to_numpy().astype(np.float64)
    v = np.random.default_rng(0).standard_normal((60, 2))
    np.testing.assert_allclose(kernel @ v, whole @ v, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(kernel.rows([3, 40]), whole[[3, 40]])
    np.testing.assert_array_equal(whole, whole.T)
    np.testing.assert_allclose(kernel.diagonal(), whole.diagonal(), rtol=2.0**-22)
    assert test.shape == test.to_numpy().shape == test.to_xarray().shape == (20, 60)
    with pytest.raises(ConfigError, match="kernel 'linear' is not one of ntk, nngp, ntkgp"):
        gram.train("linear")


def test_a_function_is_a_kernel(data):
    gram = nk.Gram(laplace, data, name="laplace", edge=32)
    with pytest.raises(IncompleteError):
        gram.train().to_numpy()
    gram.compute()
    x = np.concatenate([data.prepared("float32").x_train[:60], data.prepared("float32").x_test[:20]])
    np.testing.assert_allclose(gram.train().to_numpy(), laplace(x[:60], x[:60]), rtol=2e-6)
    np.testing.assert_allclose(gram.test().to_numpy(), laplace(x[60:], x[:60]), rtol=2e-6)
    found = nk.Eigh().solve(gram.train(), data.targets, ridges=[1e-3]).predict(gram.test(), times=[nk.inf])
    k, y = laplace(x[:60], x[:60]).astype(np.float64), data.targets
    mean = laplace(x[60:], x[:60]) @ np.linalg.solve(k + 1e-3 * np.eye(60), y)
    order = np.argsort(gram.test().points.index)
    assert (np.abs(found.mean[0, 0, 0] - mean[order]) <= found.error_bound[0, 0, 0] + 1e-5).all()
    with pytest.raises(ConfigError, match="needs a name"):
        nk.Gram(laplace, data)


def test_matrices_are_kernels():
    x = np.random.default_rng(1).standard_normal((50, 3))
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))
    labels = np.arange(10) % 3
    gram = nk.Gram.from_arrays(k[:40, :40], k[40:, :40], np.ones(10), y_test=labels)
    targets = np.eye(3)[np.arange(40) % 3]
    solution = nk.Cholesky().solve(gram.train(), targets, ridges=[1e-2], ridge_scale="absolute")
    found = solution.predict(gram.test(), covariance="diagonal")
    right = k[40:, :40] @ np.linalg.solve(k[:40, :40] + 1e-2 * np.eye(40), targets)
    np.testing.assert_allclose(found.mean[0, 0, 0], right, atol=1e-12)
    variance = 1 - np.einsum("ij,ji->i", k[40:, :40], np.linalg.solve(k[:40, :40] + 1e-2 * np.eye(40), k[:40, 40:]))
    np.testing.assert_allclose(found.variance[0, 0, 0], variance, atol=1e-12)
    assert (found.label == labels).all()
    np.testing.assert_allclose(solution.predict(k[40:, :40]).mean[0, 0, 0], right, atol=1e-12)


def test_points_without_labels_have_no_metrics():
    k = np.eye(6) + 0.1
    gram = nk.Gram.from_arrays(k[:4, :4], k[4:, :4])
    found = nk.Eigh().solve(gram.train(), np.ones((4, 1))).predict(gram.test())
    assert np.isfinite(found.mean).all()
    assert found.to_pandas()["mean_0"].notna().all()
    with pytest.raises(DataError):
        found.metrics()


def test_doubtful_predictions_warn():
    x = np.random.default_rng(2).standard_normal((20, 2))
    gram = nk.Gram.from_arrays(x[:15] @ x[:15].T, x[15:] @ x[:15].T)
    solution = nk.Eigh().solve(gram.train(), np.random.default_rng(3).standard_normal((15, 1)), times=[nk.inf])
    with pytest.warns(UserWarning, match="cannot tell from zero"):
        found = solution.predict(gram.test())
    assert found.bound_kind.item() == "minimum_norm"
    assert np.isinf(found.error_bound).all()


def test_a_stopped_solve_goes_on(gram, data, tmp_path):
    class StoppedError(Exception):
        pass

    told = []

    def stop(line, **facts):
        told.append(line)
        if facts.get("steps") == 4:
            raise StoppedError

    settings = {"times": TIMES, "ridges": RIDGES}
    solver, kernel = nk.Krylov(checkpoint_every=2), gram.train("ntk")
    with pytest.raises(StoppedError):
        solver.solve(kernel, data.targets, **settings, workspace=nk.Workspace(store=gram.store, tell=stop))
    again = solver.solve(kernel, data.targets, **settings, workspace=nk.Workspace(store=gram.store))
    fresh = solver.solve(kernel, data.targets, **settings)
    test = gram.test("ntk")
    np.testing.assert_array_equal(again.predict(test).mean, fresh.predict(test).mean)


@pytest.mark.slow
def test_two_processes_compute_the_same(data, tmp_path):
    arch = nk.zoo.fcn(depth=1, w_std=1.0, b_std=0.0)
    one = nk.Gram(arch, data, edge=32)
    one.compute()
    two = nk.Gram(arch, data, edge=32, store=str(tmp_path / "store"))
    with nk.LocalExecutor(workers=2) as executor:
        two.compute(executor)
    np.testing.assert_array_equal(one.train("ntk").to_numpy(), two.train("ntk").to_numpy())


def test_calls_tell_events_to_whoever_listens(data):
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, edge=32)
    events: list[Event] = []
    gram.compute(progress=events.append)
    assert [events[0].kind, events[-1].kind] == [Kind.STAGE_BEGUN, Kind.STAGE_DONE]
    assert {event.stage for event in events} == {"gram"}
    assert events[-2].facts["done"] == events[-2].facts["total"] == gram.plan().tiles.tiles
    events.clear()
    solution = nk.Krylov().solve(gram.train("ntk"), data.targets, progress=events.append)
    assert events[0].kind is Kind.STAGE_BEGUN
    assert any(event.kind is Kind.PROGRESS and "ntk" in event.text for event in events)
    events.clear()
    solution.predict(gram.test("ntk"), times=[nk.inf], progress=events.append)
    assert [event.kind for event in events if event.kind is not Kind.PROGRESS] == [Kind.STAGE_BEGUN, Kind.STAGE_DONE]


@pytest.mark.parametrize(("progress", "bar"), [(None, True), (False, False)])
def test_a_terminal_shows_a_bar_unless_told_not_to(data, monkeypatch, progress, bar):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    nk.Gram(nk.zoo.fcn(depth=1), data, edge=32).compute(progress=progress)
    assert ("tiles computed" in shown.getvalue()) is bar
    assert ("\x1b[" in shown.getvalue()) is bar


def test_a_pipe_shows_nothing_unless_told_to(data, capsys):
    gram = nk.Gram(nk.zoo.fcn(depth=1), data, edge=32)
    gram.compute()
    assert capsys.readouterr() == ("", "")
    gram.compute(progress=True)
    assert "0 tiles computed" in capsys.readouterr().err
