"""Kernels of one finite network as a kernel source: tiles, identity, weights in the store, solvers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe import finite
from ntkpipe.errors import ConfigError, CorruptionError, DataError

DENSE = [
    {"op": "flatten"},
    {"op": "dense", "features": 24, "w_std": 1.4, "b_std": 0.1},
    {"op": "relu"},
    {"op": "dense", "features": 3, "w_std": 1.0},
]
CONV = [
    {"op": "conv", "features": 4, "filter": [3, 3], "w_std": 1.4},
    {"op": "relu"},
    {"op": "flatten"},
    {"op": "dense", "features": 3, "w_std": 1.0},
]


def dataset(n: int = 20, p: int = 5) -> nk.Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + p, 4, 4, 1))
    y = np.arange(n + p) % 3
    return nk.Dataset(x[:n], y[:n], x[n:], y[n:])


def blocks(gram: nk.Gram) -> tuple[np.ndarray, np.ndarray]:
    """Training and test points in the order of the tiles."""
    images = gram.opened.source.images
    return images.read("train", 0, 20), images.read("test", 0, 5)


@pytest.mark.parametrize("spec", [DENSE, CONV], ids=["dense", "convolution"])
@pytest.mark.parametrize("outputs", ["trace", "pseudo"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_tiles_are_the_kernels_of_the_network(spec, outputs, dtype, tolerance):
    gram = nk.Gram(nk.EmpiricalKernel(spec, seed=2, outputs=outputs), dataset(), dtype=dtype, edge=8)
    report = gram.compute()
    assert report.computed == 9  # six of the triangle, three of the rectangle
    train, test = (x.astype(np.float64) for x in blocks(gram))
    weights = finite.init(spec, train.shape[1:], 2)
    own = finite.empirical_kernel(spec, weights, train, outputs=outputs)
    other = finite.empirical_kernel(spec, weights, test, train, outputs=outputs)
    for name in ("ntk", "nngp"):
        scale = np.abs(getattr(own, name)).max()
        stored = gram.train(name).to_numpy()
        np.testing.assert_array_equal(stored, stored.T)
        np.testing.assert_allclose(stored, getattr(own, name), rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(gram.test(name).to_numpy(), getattr(other, name), rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(gram.train(name).diagonal(), np.diagonal(getattr(own, name)), rtol=1e-12)


@pytest.mark.parametrize("tiles", ["stored", "recompute"])
def test_solvers_predict_what_the_dense_matrix_does(tiles):
    data = dataset()
    gram = nk.Gram(nk.EmpiricalKernel(DENSE), data, dtype="float64", edge=8, tiles=tiles)
    gram.compute()
    weights = finite.init(DENSE, (4, 4, 1), 0)
    train, test = (x.astype(np.float64) for x in blocks(gram))
    k = finite.empirical_kernel(DENSE, weights, train, outputs="trace").ntk
    q = finite.empirical_kernel(DENSE, weights, test, train, outputs="trace").ntk
    for solver in (nk.Eigh(), nk.Krylov(tolerance=1e-10)):
        solution = solver.solve(gram.train("ntk"), data.targets, ridges=[1e-2])
        found = solution.predict(gram.test("ntk"), times=[nk.inf])
        ridge = solution.problem.ridges[0]
        exact = q @ np.linalg.solve(k + ridge * np.eye(20), data.targets)
        order = gram.opened.blocks.points.index
        np.testing.assert_allclose(found.mean[0, 0, 0][order], exact, atol=1e-9)
        assert (np.abs(found.mean[0, 0, 0][order] - exact) <= found.error_bound[0, 0, 0][order] + 1e-15).all()


def test_tiles_are_found_again_and_other_weights_have_others(tmp_path):
    def computed(kernel) -> int:
        return nk.Gram(kernel, dataset(), store=str(tmp_path / "store"), edge=8).compute().computed

    weights = finite.init(DENSE, (4, 4, 1), 7)
    finite.save_weights(tmp_path / "w.npz", weights)
    assert computed(nk.EmpiricalKernel(DENSE, seed=7)) == 9
    # Drawn, given and read: the same weights, however they came.
    assert computed(nk.EmpiricalKernel(DENSE, weights)) == 0
    assert computed(nk.EmpiricalKernel(DENSE, tmp_path / "w.npz")) == 0
    weights[0][0][0, 0] += 1
    assert computed(nk.EmpiricalKernel(DENSE, weights)) == 9


def test_weights_that_were_damaged_in_the_store_make_no_tile(tmp_path):
    gram = nk.Gram(nk.EmpiricalKernel(DENSE), dataset(), store=str(tmp_path / "store"), edge=8)
    gram.opened  # noqa: B018  writes the weights
    (file,) = (tmp_path / "store" / "networks").glob("*.npz")
    finite.save_weights(file, finite.init(DENSE, (4, 4, 1), 99))
    with pytest.raises(CorruptionError, match="do not match its name"):
        gram.compute()


def test_a_plan_counts_the_products_of_a_pair():
    plan = nk.Gram(nk.EmpiricalKernel(DENSE), dataset()).plan()
    # Per layer one product of inputs; of signals one for all outputs at the hidden layer; nothing is evaluated one by one.
    assert plan.tiles.cost.product_flops >= 2 * (16 + 24 + 24 + 3 * 3)
    assert plan.tiles.cost.elementwise_flops == 0
    assert "NNGP and NTK" in str(plan)


def test_what_a_finite_network_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="trace, pseudo"):
        nk.EmpiricalKernel(DENSE, outputs="none")
    with pytest.raises(ConfigError, match="does not support outputs='full'"):
        nk.Gram(nk.EmpiricalKernel(DENSE, outputs="full"), dataset())
    with pytest.raises(ConfigError, match="trace, pseudo"):
        nk.EmpiricalKernel.of_function(lambda p, x: x, {}, name="x", outputs="full")
    with pytest.raises(ConfigError, match="symmetric under flips"):
        nk.Gram(nk.EmpiricalKernel(DENSE), dataset(), augment="hflip").plan()
    with pytest.raises(DataError, match=r"W \(16, 24\)"):
        nk.Gram(nk.EmpiricalKernel(DENSE, finite.init(DENSE, (5, 4, 1))), dataset()).plan()
    broken = finite.init(DENSE, (4, 4, 1))
    broken[0][0][0, 0] = np.nan
    with pytest.raises(DataError, match="non-finite"):
        nk.Gram(nk.EmpiricalKernel(DENSE, broken), dataset()).plan()
    dropped = [*DENSE[:3], {"op": "dropout", "rate": 0.5}, DENSE[3]]
    with pytest.raises(ConfigError, match="dropout"):
        nk.Gram(nk.EmpiricalKernel(dropped), dataset()).plan()
    np.savez(tmp_path / "w.npz", weight=np.zeros(3))
    with pytest.raises(DataError, match="W0, b0, W1"):
        nk.EmpiricalKernel(DENSE, tmp_path / "w.npz")
    with pytest.raises(DataError, match="cannot be read"):
        nk.EmpiricalKernel(DENSE, tmp_path / "nowhere.npz")
    finite.save_weights(tmp_path / "w.npz", finite.init(DENSE, (4, 4, 1)))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        nk.EmpiricalKernel(DENSE, tmp_path / "w.npz")


def as_function(parameters, x):
    """The dense network by hand, parameters as other libraries hold them."""
    h = x.reshape(len(x), -1) @ parameters["first"]["w"] * (1.4 / 4) + 0.1 * parameters["first"]["b"]
    return jnp.maximum(h, 0) @ parameters["last"]["w"] / np.sqrt(24).astype(np.float32)


@pytest.mark.parametrize("outputs", ["trace", "pseudo"])
def test_a_network_that_is_a_jax_function_has_the_same_kernel(outputs):
    (w, b), (v, _) = finite.init(DENSE, (4, 4, 1), 4)
    held = {"first": {"w": w, "b": b}, "last": {"w": v}}
    kernels = [
        nk.EmpiricalKernel.of_function(as_function, held, name="by hand", outputs=outputs),
        nk.EmpiricalKernel(DENSE, seed=4, outputs=outputs),
    ]
    grams = [nk.Gram(kernel, dataset(), dtype="float64", edge=8) for kernel in kernels]
    assert [gram.compute().computed for gram in grams] == [9, 9]
    assert grams[0].plan().tiles.cost.product_flops == 2 * (16 * 24 + 24 + 72) * (3 if outputs == "trace" else 1)
    for block in ("train", "test"):
        ours, theirs = (getattr(gram, block)("ntk").to_numpy() for gram in grams)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 * np.abs(theirs).max())  # 1 / sqrt(24) in float32


def test_a_function_is_known_by_its_name_and_its_parameters():
    def compute(scale: float, name: str = "by hand", store: str = "memory://functions") -> int:
        held = {"first": {"w": np.full((16, 24), scale), "b": np.zeros(24)}, "last": {"w": np.ones((24, 3))}}
        kernel = nk.EmpiricalKernel.of_function(as_function, held, name=name)
        return nk.Gram(kernel, dataset(), store=store, edge=32).compute().computed

    assert [compute(1.0), compute(1.0), compute(2.0), compute(2.0, "another")] == [2, 0, 2, 2]


def test_functions_that_have_no_such_kernel_are_refused():
    with pytest.raises(ConfigError, match="needs a name"):
        nk.EmpiricalKernel.of_function(as_function, {}, name="")
    for parameters, text in (({"w": np.ones(3, int)}, "real numbers"), ({"w": np.array([np.nan])}, "finite")):
        with pytest.raises(DataError, match=text):
            nk.Gram(nk.EmpiricalKernel.of_function(as_function, parameters, name="x"), dataset()).plan()
    flat = nk.EmpiricalKernel.of_function(lambda p, x: x.sum(axis=(1, 2, 3)) * p, np.ones(1), name="x")
    with pytest.raises(DataError, match=r"must return \(n, c\)"):
        nk.Gram(flat, dataset()).plan()


@pytest.mark.parametrize("outputs", ["trace", "pseudo"])
def test_the_rank_is_no_larger_than_it_is_said_to_be(outputs):
    spec = [
        {"op": "flatten"},
        {"op": "dense", "features": 2},
        {"op": "relu"},
        {"op": "dense", "features": 2, "b_std": 0.1},
    ]
    kernel = nk.EmpiricalKernel(spec, outputs=outputs).at((2, 1, 1))
    assert kernel.parameters == 10
    x = np.random.default_rng(0).standard_normal((40, 2, 1, 1))
    ntk = np.asarray(finite.empirical_kernel(spec, finite.init(spec, (2, 1, 1)), x, outputs=outputs).ntk)
    # Four weights before the readout, whose gradients of both outputs are multiples of one; of the readout two inputs and a bias.
    assert kernel.rank == (7 if outputs == "trace" else 10)
    assert np.linalg.matrix_rank(ntk, tol=1e-10 * np.trace(ntk)) <= kernel.rank


def test_the_cost_is_known_without_weights():
    for spec in (DENSE, CONV):
        kernel = nk.EmpiricalKernel(spec)
        assert kernel.cost((4, 4, 1)) == kernel.at((4, 4, 1)).cost
