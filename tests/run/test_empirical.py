"""`kernel=empirical`: the kernels of one finite network, from end to end."""

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

LAYERS = [
    {"op": "flatten"},
    {"op": "dense", "features": 32, "w_std": 1.4, "b_std": 0.1},
    {"op": "relu"},
    {"op": "dense", "features": 10, "w_std": 1.4},
]
WORDS = (
    *(
        "cluster=serial",
        "data=digits",
        "data.train_size=60",
        "data.test_size=12",
        "kernel=empirical",
        "kernel.path=net.json",
    ),
    *("kernel.dtype=float64", "grid.edge=32", "predict.times=[inf]", "predict.ridges=[0.01]"),
)


@pytest.fixture
def layers(work):
    (work.path / "net.json").write_text(json.dumps(LAYERS))


def stages(work, name, *words):
    for stage in ("gram", "solve", "predict"):
        found = work.ok(stage, f"run_dir={name}", *WORDS, *words)
    return found


def test_predictions_are_those_of_the_networks_kernels(work, layers):
    weights = finite.init(LAYERS, (8, 8, 1), 5)
    finite.save_weights(work.path / "w.npz", weights)
    stages(work, "drawn", "kernel.seed=5")
    stages(work, "read", "kernel.weights=w.npz")
    first, second = work.predictions("drawn"), work.predictions("read")
    np.testing.assert_array_equal(first.mean, second.mean)
    assert len(list((work.path / "store/gram").iterdir())) == 1  # the same weights, the same tiles

    from ntkpipe.run.prepare import reopen

    opened = reopen(open_run(work.path / "drawn")._folder).opened
    images = opened.source.images  # type: ignore[attr-defined]
    x, z = (images.read(block, 0, n).astype(np.float64) for block, n in (("train", 60), ("test", 12)))
    made = finite.empirical_kernel(LAYERS, weights, x, outputs="trace")
    other = finite.empirical_kernel(LAYERS, weights, z, x, outputs="trace")
    labels = images.labels()
    order = np.argsort(labels.test_index[:12])
    for k, name in enumerate(first.kernels):
        dense, rows = getattr(made, name), getattr(other, name)
        ridge = 0.01 * np.trace(dense) / 60
        exact = rows @ np.linalg.solve(dense + ridge * np.eye(60), labels.y_train[:60])
        error = np.abs(first.mean[k, 0, 0] - exact[order])
        assert (error <= first.error_bound[k, 0, 0] + 1e-12).all()
        assert error.max() < 1e-3


def test_linearised_network_from_its_own_start_is_the_one_trained_in_weight_space(work):
    """One output, so that the mean over outputs is the kernel itself: 40 steps of gradient descent on f_0 + J (theta - theta_0)."""
    layers = [*LAYERS[:3], {"op": "dense", "features": 1, "w_std": 1.4}]
    (work.path / "net.json").write_text(json.dumps(layers))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((25, 2, 3, 1)), rng.standard_normal((25, 1))
    np.savez(work.path / "d.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    weights = finite.init(layers, (2, 3, 1), 3)
    words = (
        "cluster=serial",
        "data=npz",
        "data.path=d.npz",
        "data.labels=regression",
        "data.standardize=none",
        "kernel=empirical",
    )
    words += ("kernel.path=net.json", "kernel.seed=3", "kernel.dtype=float64", "solver=eigh", "predict.kernels=[ntk]")
    words += (
        "predict.times=[40]",
        "predict.dynamics=gradient_descent",
        "predict.learning_rate=0.3",
        "predict.initial=network",
    )
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, "run_dir=a", *words)
    assert work("verify", "run_dir=a", "repair=false", "rows=5").code == 0

    with jax.enable_x64():
        held = [(jnp.asarray(w, jnp.float64), None if b is None else jnp.asarray(b, jnp.float64)) for w, b in weights]
        flat, unravel = ravel_pytree(held)

        def outputs(theta):
            return jnp.asarray(_by_hand(unravel(theta), x))[:, 0]

        start, jacobian = np.asarray(outputs(flat)), np.asarray(jax.jacrev(outputs)(flat))
    theta = np.zeros(len(flat))
    for _ in range(40):
        residual = start[:20] + jacobian[:20] @ theta - y[:20, 0]
        theta -= 0.3 / 20 * jacobian[:20].T @ residual
    np.testing.assert_allclose(
        work.predictions("a").mean[0, 0, 0, :, 0], (start + jacobian @ theta)[20:], rtol=0, atol=1e-10
    )
    new = open_run(work.path / "a").predict(x[20:])
    np.testing.assert_allclose(new.mean, work.predictions("a").mean, rtol=0, atol=1e-10)
    # The same from a file of outputs, in the order of the data.
    np.savez(work.path / "f0.npz", train=start[:20, None], test=start[20:, None])
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, "run_dir=b", *words[:-1], "predict.initial=f0.npz")
    np.testing.assert_allclose(work.predictions("b").mean, work.predictions("a").mean, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="new points cannot be predicted"):
        open_run(work.path / "b").predict(x[20:])


def _by_hand(weights, x):
    (w, b), (v, _) = weights
    h = x.reshape(len(x), -1) @ w * (1.4 / np.sqrt(6)) + 0.1 * b
    return jnp.maximum(h, 0) @ v * (1.4 / np.sqrt(32))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("kernel=fcn", "predict.initial=network"), "needs kernel=empirical"),
        (("kernel=fcn", "predict.initial=nowhere.npz"), "arrays train (n, c) and test"),
        (("kernel=fcn", "predict.initial=f0.npz"), "has shape (3, 10)"),
        (("kernel=fcn", "predict.initial=network", "predict.covariance=diagonal"), "start at zero on average"),
    ],
)
def test_starts_that_there_are_not(work, words, text):
    np.savez(work.path / "f0.npz", train=np.zeros((3, 10)), test=np.zeros((12, 10)))
    sizes = ("data=digits", "data.train_size=60", "data.test_size=12", "grid.edge=32", "cluster=serial")
    found = work("gram", "run_dir=a", *sizes, *words)
    assert found.code in (2, 3)
    assert text in found.err
    assert not list((work.path / "store/gram").rglob("*/c/*"))  # no tile


def test_other_seeds_are_other_tiles_and_damaged_weights_are_found_and_mended(work, layers):
    stages(work, "a", "kernel.seed=1")
    stages(work, "b", "kernel.seed=2")
    assert len(list((work.path / "store/gram").iterdir())) == 2
    assert np.abs(work.predictions("a").mean - work.predictions("b").mean).max() > 1e-3
    for file in (work.path / "store/networks").iterdir():
        finite.save_weights(file, finite.init(LAYERS, (8, 8, 1), 77))
    found = work("verify", "run_dir=a", "repair=false")
    assert found.code == 6
    assert "weights that do not match its name" in found.out
    assert "repaired" in work.ok("verify", "run_dir=a").out
    assert work("verify", "run_dir=a", "repair=false").code == 0


def test_weights_are_listed_and_go_with_their_matrices(work, layers):
    stages(work, "a", "kernel.seed=1")
    stages(work, "b", "kernel.seed=2")
    assert "networks/" in work("status", "run_dir=a").out
    listed = work.ok("clean", "store.url=store").out
    assert listed.count("weights of network") == 2
    assert "no Gram store refers" not in listed
    name = work.receipt("a", "gram")["store"].rpartition("/")[2]
    work.ok("clean", "store.url=store", f"delete={name}")
    assert work.ok("clean", "store.url=store").out.count("no Gram store refers") == 1
    assert "weights of 1 networks" in work.ok("clean", "store.url=store", "delete=networks").out
    assert len(work.objects("networks/*")) == 1
    assert "missing from the store" in work("status", "run_dir=a").out
    assert "networks/" in work("status", "run_dir=b").out


def test_a_kernel_of_fewer_parameters_than_points_is_not_inverted(work):
    small = [{"op": "flatten"}, {"op": "dense", "features": 1, "w_std": 1.0}]
    (work.path / "net.json").write_text(json.dumps(small))
    y = np.arange(100.0) % 7
    x = np.random.default_rng(0).standard_normal((105, 8, 8, 1))
    np.savez("d.npz", x_train=x[:100], y_train=y, x_test=x[100:], y_test=y[:5])
    words = (
        "data=npz",
        "data.path=d.npz",
        "data.labels=regression",
        "kernel=empirical",
        "kernel.path=net.json",
        "cluster=serial",
    )
    found = work("plan", *words)
    assert found.code == 2
    assert "whose rank is at most 64 (the network has 64 parameters)" in found.err
    for fine in (
        ("data.train_size=60",),
        ("predict.ridges=[0.1]",),
        ("predict.times=[10]",),
        ("predict.kernels=[nngp]",),
    ):
        work.ok("plan", *words, *fine)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("augment=hflip", "symmetric under flips"),
        ("kernel.outputs=none", "is not one of trace, pseudo, full"),
        ("kernel.weights=nowhere.npz", "cannot be read"),
        ("kernel.depth=3", "has no meaning for kernel=empirical"),
        ("kernel.path=bad.json", "max_pool|no layer|unknown"),
    ],
)
def test_what_is_refused_before_anything_is_computed(work, layers, word, text):
    (work.path / "bad.json").write_text(json.dumps([{"op": "max_pool"}]))
    found = work("gram", "run_dir=a", *(one for one in WORDS if one.split("=")[0] != word.split("=")[0]), word)
    assert found.code in (2, 3)
    assert any(part in found.err for part in text.split("|"))
    assert not (work.path / "store/gram").exists()


def test_the_infinite_network_is_beside_it(work, layers, blank):
    """Numbers in the metrics, for both kernels; with all pairs of outputs those of the trace; and a figure."""
    words = ("run_dir=a", *WORDS)
    work.ok("run", *words)
    found = json.loads((work.path / "a/metrics.json").read_text())["beside_infinite"]
    assert found["points"] == 60
    assert set(found["kernels"]) == {"ntk", "nngp"}
    for one in found["kernels"].values():
        assert 0.01 < one["deviation"] < 1.0
        assert 0.5 < one["trace_ratio"] < 2.0
        assert set(one["alignment"]) == {"finite", "infinite"}
    assert (work.path / "a/report/figures/beside_infinite.png").exists()
    for stage in ("gram", "solve", "predict"):
        work.ok(stage, "run_dir=b", *WORDS, "kernel.outputs=full")
    full = json.loads((work.path / "b/metrics.json").read_text())["beside_infinite"]["kernels"]["ntk"]
    assert full["deviation"] == pytest.approx(found["kernels"]["ntk"]["deviation"], rel=1e-9)
