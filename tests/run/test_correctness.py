"""End to end on real images: against a peer's values, a dense solver, and the bounds that a run exports."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from lab import Lab

from ntkpipe.predictions.schema import Predictions

TIMES = "predict.times=[1,1e4,inf]"
RIDGES = "predict.ridges=[0,1e-3]"

# The peer rounds the angle of an image with itself: its NTK's diagonal is off by this much (measured on its own values),
# and so are all predictions made from it.
PEER_DIAGONAL = 1.02e-6


class Numbered(Lab):
    """All runs of this module share a store; numbers are their names."""

    runs = 0

    def __call__(self, *words: str) -> Predictions:
        self.runs += 1
        return self.run(self.last, *words)

    @property
    def last(self) -> str:
        return f"run{self.runs}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Numbered:
    return Numbered(tmp_path_factory.mktemp("lab"), "cluster=serial")


@pytest.fixture(scope="module")
def cifar(lab, cifar10_subset) -> tuple[str, ...]:
    """200 + 40 real images in tiles of 64."""
    with np.load(cifar10_subset, allow_pickle=False) as data:
        x, y, x_test, y_test = (data[k] for k in ("x_train", "y_train", "x_test", "y_test"))
        np.savez(lab.path / "c.npz", x_train=x[:200], y_train=y[:200], x_test=x_test[:40], y_test=y_test[:40])
    return "data=npz", "data.path=c.npz", "grid.edge=64"


@pytest.fixture(scope="module")
def dense(lab, cifar) -> Predictions:
    """The reference: eigendecomposition in float64."""
    return lab(*cifar, "kernel.dtype=float64", "solver=eigh", TIMES, RIDGES)


def test_krylov_equals_dense(lab, cifar, dense):
    found = lab(*cifar, "kernel.dtype=float64", "solver.tolerance=1e-7", "solver.stop=bound", TIMES, RIDGES)
    error = np.abs(found.mean - dense.mean)
    assert lab.receipt(lab.last, "gram")["computed"] == 0  # another solver, the same tiles
    assert error.max() < 1e-8
    # The dense run has an error of its own, which its bound covers.
    assert (error <= found.error_bound + dense.error_bound).all()
    assert (found.error_bound < 1e-6).all()
    facts = found.attributes["solver"]
    assert all(facts[k]["true_residual"] < 1e-7 for k in ("ntk", "nngp"))


def test_cholesky_equals_dense_at_infinity(lab, cifar, dense):
    found = lab(*cifar, "kernel.dtype=float64", "solver=cholesky", "predict.times=[inf]", RIDGES)
    error = np.abs(found.mean[:, 0] - dense.mean[:, -1])
    assert error.max() < 1e-8
    assert (error <= found.error_bound[:, 0] + dense.error_bound[:, -1]).all()


@pytest.mark.parametrize(("products", "tolerance"), [("float32", 1e-4), ("float64", 1e-1)])
def test_float32_run_is_within_its_bound(lab, cifar, dense, tolerance, products):
    found = lab(
        *cifar, f"solver.tolerance={tolerance}", "solver.stop=bound", f"solver.products={products}", TIMES, RIDGES
    )
    error = np.abs(found.mean - dense.mean)
    assert (error <= found.error_bound + dense.error_bound).all()
    # What rounding and storage may have done is the floor; above it the bound must mean something.
    rounding = sum(found.bound_terms[k] for k in ("product", "storage_train", "storage_test"))
    share = rounding / (rounding + found.bound_terms["krylov"])
    above = error > found.error_bound * share[:, :, :, None, :] + dense.error_bound
    assert (found.error_bound[above] <= 1e4 * error[above]).all()
    if products == "float64":  # of float32 products the floor lies above the error of the looser run, too
        assert above.any() == (tolerance > 1e-2)


def test_subset_of_the_tiles(lab, cifar, dense):
    """A leading block of the same store is the kernel of the smaller data set."""
    small = lab(
        *cifar, "kernel.dtype=float64", "solver=eigh", "data.train_size=100", "data.test_size=20", TIMES, RIDGES
    )
    assert lab.receipt(lab.last, "gram")["computed"] == 0
    assert set(small.test_index) < set(dense.test_index)
    assert small.mean.shape[-2:] == (20, 10)
    again = lab(
        *cifar,
        "kernel.dtype=float64",
        "data.train_size=100",
        "solver.tolerance=1e-7",
        "solver.stop=bound",
        TIMES,
        RIDGES,
    )
    rows = np.searchsorted(again.test_index, small.test_index)
    np.testing.assert_allclose(again.mean[..., rows, :], small.mean, atol=1e-8)


@pytest.fixture(scope="module")
def peer(lab, reference_folder):
    """The peer's values, and its 200 + 50 normalised images as an npz."""
    with np.load(reference_folder / "preds_public.npz", allow_pickle=False) as archive:
        values = {k: archive[k] for k in archive.files}
    facts = json.loads((reference_folder / "preds_public.json").read_text())

    def normalised(u8):
        return (u8 / 255.0 - values["mean"]) / values["std"]

    np.savez(
        lab.path / "peer.npz",
        x_train=normalised(values["train_images_u8"]),
        y_train=values["y_train"].argmax(1),
        x_test=normalised(values["test_images_u8"]),
        y_test=values["y_test"].argmax(1),
    )
    words = ("data=npz", "data.path=peer.npz", "data.standardize=none", "kernel.dtype=float64", "grid.edge=64")
    return facts, values, words


def agree(found, wanted, slack=0.0):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8 * max(1.0, np.abs(wanted).max()) + slack)


def slack(values, ridge) -> tuple[float, float]:
    """How far the peer's diagonal moves NTK means and covariances, to first order: |dA| |k A^-1| |A^-1 y| and so on."""
    n = len(values["y_train"])
    kernel = np.zeros((n, n))
    kernel[np.triu_indices(n)] = values["k_train_train_triu_ntk"]
    kernel = kernel + kernel.T - np.diag(kernel.diagonal())
    gain = np.linalg.norm(np.linalg.solve(kernel + ridge * np.eye(n), values["k_test_train_ntk"].T), axis=0).max()
    dual = np.linalg.norm(np.linalg.solve(kernel + ridge * np.eye(n), values["y_train"]), axis=0).max()
    return PEER_DIAGONAL * gain * dual, 4 * PEER_DIAGONAL * gain**2


def test_peer_relative_ridge(lab, peer):
    facts, values, words = peer
    times = f"predict.times=[{','.join(map(str, facts['t']))},inf]"
    made = (*words, times, f"predict.ridges=[{facts['diag_reg']}]")
    of_mean, of_covariance = slack(values, facts["diag_reg"] * 20)
    kernels = {"ntk": (of_mean, of_covariance), "nngp": (0.0, 0.0), "ntkgp": (of_mean, of_covariance)}
    full = lab(*made, "solver=eigh", "predict.covariance=full", f"predict.kernels=[{','.join(kernels)}]")
    krylov = lab(*made, "solver.tolerance=1e-7")
    for k, name in enumerate(("ntk", "nngp")):
        of_mean, of_covariance = kernels[name]
        for found in (full, krylov):
            agree(found.mean[k, :-1, 0], values[f"ens_{name}_mean_t"], of_mean)
            agree(found.mean[k, -1, 0], values[f"ens_{name}_mean_inf"], of_mean)
        agree(krylov.mean[k], full.mean[k])
        agree(full.covariance[k, :-1, 0], values[f"ens_{name}_cov_t"], of_covariance)
        agree(full.covariance[k, -1, 0], values[f"ens_{name}_cov_inf"], of_covariance)
        np.testing.assert_allclose(full.variance[k], np.diagonal(full.covariance[k], axis1=-2, axis2=-1), rtol=1e-12)
    direct = lab(
        *words,
        "predict.times=[inf]",
        f"predict.ridges=[{facts['diag_reg']}]",
        "solver=cholesky",
        "predict.covariance=diagonal",
        f"predict.kernels=[{','.join(kernels)}]",
    )
    for k, (name, (of_mean, of_covariance)) in enumerate(kernels.items()):
        agree(direct.mean[k, 0, 0], values[f"gp_{name}_mean"], of_mean)
        agree(direct.variance[k, 0, 0], np.diagonal(values[f"gp_{name}_cov"]), of_covariance)
        agree(direct.mean[k, 0, 0], full.mean[k, -1, 0])
        agree(direct.variance[k, 0, 0], full.variance[k, -1, 0])


def test_peer_absolute_ridge(lab, peer):
    facts, values, words = peer
    ridge = facts["absreg_diag_reg"]
    found = lab(
        *words,
        "solver=eigh",
        f"predict.times=[{facts['t'][3]},inf]",
        f"predict.ridges=[{ridge}]",
        "predict.ridge_scale=absolute",
    )
    for k, (name, moved) in enumerate((("ntk", slack(values, ridge)[0]), ("nngp", 0.0))):
        agree(found.mean[k, 0, 0], values[f"ens_absreg_{name}_mean_t3"], moved)
        agree(found.mean[k, 1, 0], values[f"ens_absreg_{name}_mean_inf"], moved)


def test_pixels_whose_slope_is_a_convention(lab):
    standard = {"parameterization": "standard", "b_std": 0.0}
    conv = {"op": "conv", "features": 3, "filter": [3, 3], "strides": [1, 1], "padding": "SAME", **standard}
    (lab.path / "net.json").write_text(
        json.dumps([conv, {"op": "relu"}, {"op": "flatten"}, {"op": "dense", "features": 1, **standard}])
    )
    words = (
        "data=digits",
        "data.train_size=20",
        "data.test_size=5",
        "kernel.dtype=float64",
        "kernel=spec",
        "kernel.path=net.json",
    )
    for standardize, told in (("none", True), ("channel", False)):
        kept = lab(*words, f"data.standardize={standardize}").attributes["warnings"]
        assert any("slope of the nonlinearity at 0" in w for w in kept) is told


def test_singular_kernel(lab, cifar10_subset):
    with np.load(cifar10_subset, allow_pickle=False) as data:
        x, y = data["x_train"][:60], data["y_train"][:60]
        test = {"x_test": data["x_test"][:10], "y_test": data["y_test"][:10]}
    # Twenty images twice, five of them with two labels: as good as once with the mean of their targets.
    labels = np.concatenate([y, y[:15], (y[15:20] + 1) % 10])
    np.savez(lab.path / "twice.npz", x_train=np.concatenate([x, x[:20]]), y_train=labels, **test)
    words = ("data=npz", "data.path=twice.npz", "kernel.dtype=float64", "predict.times=[100,inf]", "grid.edge=32")
    for solver in ("krylov", "eigh"):
        found = lab(*words, f"solver={solver}")
        assert np.isfinite(found.mean).all()
        assert np.abs(found.mean).max() < 5
        assert any("20 training images exactly equal another one" in w for w in found.attributes["warnings"])
        assert not (found.bound_kind == "minimum_norm").any()
        assert found.error_bound.max() < 1e-2
    log = (lab.path / lab.last / "log.jsonl").read_text()
    assert "20 training images exactly equal" in log


def test_regression(lab, cifar10_subset):
    with np.load(cifar10_subset, allow_pickle=False) as data:
        x, x_test = data["x_train"][:100], data["x_test"][:20]
    bright = {"y_train": x.mean((1, 2)) / 255, "y_test": x_test.mean((1, 2)) / 255}
    np.savez(lab.path / "bright.npz", x_train=x, x_test=x_test, **bright)
    found = lab(
        "data=npz", "data.path=bright.npz", "data.labels=regression", "solver=eigh", "predict.covariance=diagonal"
    )
    assert found.label is None
    assert found.mean.shape[-1] == 3
    folder = lab.path / lab.last
    assert (folder / "report" / "report.html").exists()
    entries = lab.metrics(lab.last)["entries"]
    assert min(e["mse"] for e in entries) < 0.01
    assert all(e.get("accuracy") is None for e in entries)
    single = {k: v.mean(1) for k, v in bright.items()}
    np.savez(lab.path / "grey.npz", x_train=x, x_test=x_test, **single)
    assert lab("data=npz", "data.path=grey.npz", "data.labels=regression").mean.shape[-1] == 1


def test_discrete_dynamics(lab, cifar, dense, capfd):
    """Small steps of gradient descent, and of momentum at its own clock, follow gradient flow; large ones are named."""
    made = (*cifar, "kernel.dtype=float64", "solver=eigh", RIDGES)
    descent = lab(*made, "predict.dynamics=gradient_descent", "predict.times=[1,10000,inf]")
    assert np.abs(descent.mean[:, -1] - dense.mean[:, -1]).max() < 1e-8
    assert np.abs(descent.mean - dense.mean).max() < 0.05
    momentum = lab(*made, "predict.dynamics=momentum", "predict.times=[0,10,1e7,inf]")
    assert np.abs(momentum.mean[:, 0]).max() == 0
    assert np.abs(momentum.mean[:, -1] - dense.mean[:, -1]).max() < 1e-8
    rate = descent.attributes["solver"]["ntk"]["max_learning_rate"]
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wild = lab(
            *made,
            "predict.dynamics=gradient_descent",
            "predict.times=[1,20]",
            "predict.kernels=[ntk]",
            f"predict.learning_rate={3 * rate}",
        )
    assert any("learning_rate" in w and f"{rate:.3g}"[:3] in w for w in wild.attributes["warnings"]), (
        wild.attributes["warnings"],
        rate,
    )
    assert "warning" in capfd.readouterr().err
