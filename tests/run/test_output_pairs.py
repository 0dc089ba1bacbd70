"""`kernel.outputs=full`: the linearisation of one finite network, with all pairs of outputs coupled."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ntkpipe import finite
from ntkpipe.errors import ConfigError
from ntkpipe.run.opened import open_run

N, P, C = 14, 5, 3
LAYERS = [
    {"op": "conv", "features": 3, "filter": [2, 2], "w_std": 1.3, "b_std": 0.2},
    {"op": "relu"},
    {"op": "flatten"},
    {"op": "dense", "features": 8, "w_std": 1.4, "b_std": 0.1},
    {"op": "erf"},
    {"op": "dense", "features": C, "w_std": 1.2, "b_std": 0.1},
]
WORDS = (
    *(
        "cluster=serial",
        "data=npz",
        "data.path=d.npz",
        "data.labels=regression",
        "data.standardize=none",
        "data.targets=none",
    ),
    *("kernel=empirical", "kernel.path=net.json", "kernel.seed=3", "kernel.dtype=float64", "kernel.outputs=full"),
    *("grid.edge=16", "predict.dynamics=gradient_descent", "predict.learning_rate=0.4"),
)


@pytest.fixture
def data(work):
    (work.path / "net.json").write_text(json.dumps(LAYERS))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((N + P, 3, 4, 1)), rng.standard_normal((N + P, C))
    x[6] = x[2]  # equal points: trained on the mean of their targets
    np.savez("d.npz", x_train=x[:N], y_train=y[:N], x_test=x[N:], y_test=y[N:])
    return x, y


def trained(x, y, steps):
    """Outputs on the test points of the linearised network, trained in weight space by gradient descent."""
    weights = finite.init(LAYERS, x.shape[1:], 3)
    with jax.enable_x64():
        held = [(jnp.asarray(w, jnp.float64), None if b is None else jnp.asarray(b, jnp.float64)) for w, b in weights]
        flat, unravel = ravel_pytree(held)

        def outputs(theta):
            return made.forward(unravel(theta), jnp.asarray(x))[0].ravel()

        from ntkpipe.finite.network import network

        made = network(LAYERS, x.shape[1:])
        start, jacobian = np.asarray(outputs(flat)), np.asarray(jax.jacrev(outputs)(flat))
    rows, theta = N * C, np.zeros(jacobian.shape[1])
    for _ in range(steps):
        theta -= 0.4 / rows * jacobian[:rows].T @ (start[:rows] + jacobian[:rows] @ theta - y[:N].ravel())
    return (start + jacobian @ theta)[rows:].reshape(P, C)


@pytest.mark.parametrize("solver", ["krylov", "eigh"])
def test_predictions_are_those_of_linear_training_in_weight_space(work, data, solver):
    tight = ["solver.tolerance=1e-11"] if solver == "krylov" else []
    words = (*WORDS, "predict.initial=network", "predict.times=[7,40]", f"solver={solver}", *tight)
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, "run_dir=a", *words)
    found = work.predictions("a")
    assert found.mean.shape == (1, 2, 1, P, C)
    for t, steps in enumerate((7, 40)):
        exact = trained(*data, steps)
        np.testing.assert_allclose(found.mean[0, t, 0], exact, rtol=0, atol=1e-10)
        assert (np.abs(found.mean[0, t, 0] - exact) <= found.error_bound[0, t, 0] + 1e-13).all()
    metrics = json.loads((work.path / "a/metrics.json").read_text())
    assert metrics["test_points"] == P
    assert work.receipt("a", "data")["n_train"] == N
    assert work("verify", "run_dir=a", "repair=false", "rows=5", "tiles=4").code == 0
    with pytest.raises(ConfigError, match="only its own test points"):
        open_run(work.path / "a").predict(data[0][N:])


def test_to_convergence_with_a_ridge_and_leading_points(work, data):
    """Twelve points of fourteen; tiles of single precision that are computed when they are read."""
    words = [w for w in WORDS if not w.startswith(("predict.", "grid."))]
    words += ["predict.times=[inf]", "predict.ridges=[0.05]", "predict.ridge_scale=absolute", "data.train_size=12"]
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, "run_dir=a", *words, "store.gram=recompute")
    found, (x, y) = work.predictions("a"), data
    images = open_run(work.path / "a")._folder
    from ntkpipe.run.prepare import reopen

    order = reopen(images).data.labels().train_index[:12]
    weights = finite.init(LAYERS, x.shape[1:], 3)
    train, test = x[:N][order], x[N:]
    k = finite.empirical_kernel(LAYERS, weights, train).ntk.transpose(0, 2, 1, 3).reshape(12 * C, -1)
    q = finite.empirical_kernel(LAYERS, weights, test, train).ntk.transpose(0, 2, 1, 3).reshape(P * C, -1)
    exact = q @ np.linalg.solve(k + 0.05 * np.eye(12 * C), y[:N][order].reshape(-1, 1))
    np.testing.assert_allclose(found.mean[0, 0, 0], exact.reshape(P, C), rtol=0, atol=1e-9)


def test_the_plan_says_what_all_pairs_cost(work, data):
    said = work.ok("plan", *WORDS, "predict.times=[10]").out
    assert f"{N * C} x {N * C}" in said
    assert "one kernel" in said


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("predict.covariance=diagonal", "covariance over networks"),
        ("predict.kernels=[nngp]", "whose kernel is the ntk"),
        ("predict.selection=held_out", "leaves out rows"),
        ("data.folds=3", "one row per point"),
        ("kernel.path=other.json", "the network has 2 outputs and the targets have 3"),
        ("augment=hflip", "symmetric under flips"),
        ("kernel.path=narrow.json", "whose rank is at most 15"),
        ("cluster.memory_gib=0.001", "GiB|MB|memory"),
    ],
)
def test_what_is_refused(work, data, word, text):
    (work.path / "other.json").write_text(json.dumps([*LAYERS[:-1], LAYERS[-1] | {"features": 2}]))
    narrow = [{"op": "global_avg_pool"}, {"op": "dense", "features": C, "b_std": 0.1}, {"op": "relu"}]
    narrow += [{"op": "dense", "features": C}]
    (work.path / "narrow.json").write_text(json.dumps(narrow))
    name = word.split("=")[0]
    ridges = ["predict.times=[1,10]"] if name == "predict.selection" else []
    found = work("gram", "run_dir=a", *(one for one in WORDS if one.split("=")[0] != name), word, *ridges)
    assert found.code in (2, 3, 8), found.err
    assert any(part in found.err for part in text.split("|")), found.err
    assert not work.objects("gram/**/c/*")
