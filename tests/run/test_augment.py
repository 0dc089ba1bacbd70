"""Training on images and their flips: against a run on the data set that holds both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lab import Lab

from ntkpipe.predictions.schema import Predictions

N, P = 60, 15
EXACT = ("data=npz", "data.standardize=none", "kernel.dtype=float64", "grid.edge=32", "cluster=serial")
ALL = "predict.kernels=[ntk,nngp,ntkgp]"
TIMES = "predict.times=[1,100,1e4,inf]"

# Both runs round everything in float64 and solve systems of condition up to 3e3 (measured on these images): n eps
# condition = 8e-11 at worst. They were apart by 3e-14.
CLOSE = 1e-10


class Flips(Lab):
    """Images, and the same with their flips."""

    def both(self, name: str, *words: str) -> tuple[Predictions, Predictions]:
        """With augmentation, and on the doubled data set."""
        return (
            self.run(f"{name}-flips", "data.path=images.npz", "augment=hflip", *words),
            self.run(f"{name}-doubled", "data.path=doubled.npz", *words),
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory, cifar10_subset) -> Flips:
    path = tmp_path_factory.mktemp("flips")
    with np.load(cifar10_subset, allow_pickle=False) as data:
        # Dyadic pixels: float32 runs see the same images.
        x = {name: data[f"x_{name}"][:n] / 128.0 - 1.0 for name, n in (("train", N), ("test", P))}
        y = {name: data[f"y_{name}"][:n].astype(np.int64) for name, n in (("train", N), ("test", P))}
    test = {"x_test": x["test"], "y_test": y["test"], "class_names": np.array(list("abcdefghij"))}
    np.savez(path / "images.npz", x_train=x["train"], y_train=y["train"], **test)
    twice = np.concatenate([x["train"], x["train"][:, :, ::-1]]), np.concatenate([y["train"], y["train"]])
    np.savez(path / "doubled.npz", x_train=twice[0], y_train=twice[1], **test)
    return Flips(path, *EXACT)


def agree(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= CLOSE * np.abs(wanted).max()


@pytest.fixture(scope="module")
def dense(lab) -> tuple[Predictions, Predictions]:
    return lab.both("dense", "solver=eigh", ALL, TIMES, "predict.ridges=[0,1e-3]", "predict.covariance=full")


def test_means_and_covariances_are_those_of_the_doubled_data_set(dense):
    found, wanted = dense
    for k in range(3):
        for t in range(4):
            for r in range(2):
                agree(found.mean[k, t, r], wanted.mean[k, t, r])
                agree(found.covariance[k, t, r], wanted.covariance[k, t, r])
                agree(found.variance[k, t, r], wanted.variance[k, t, r])
    assert found.attributes["augment"] == "hflip"
    assert (np.array(found.attributes["absolute_ridges"]["ntk"])[1:] > 0).all()
    for name in ("ntk", "nngp"):
        np.testing.assert_allclose(*(p.attributes["absolute_ridges"][name] for p in dense), rtol=1e-13)


def test_bounds_hold_against_the_doubled_data_set(lab, dense):
    _, wanted = dense
    # Few steps: the truncated Krylov space is what is wrong with these means.
    found = lab.run(
        "rough", "data.path=images.npz", "augment=hflip", ALL, TIMES, "predict.ridges=[0,1e-3]", "solver.tolerance=0.3"
    )
    error = np.abs(found.mean - wanted.mean)
    assert error.max() > 1e-4
    assert (error <= found.error_bound + wanted.error_bound).all()


@pytest.mark.parametrize("dynamics", ["gradient_descent", "momentum"])
def test_other_dynamics_and_absolute_ridges(lab, dynamics):
    found, wanted = lab.both(
        dynamics,
        "solver=eigh",
        f"predict.dynamics={dynamics}",
        "predict.times=[3,1000]",
        "predict.ridges=[0.01]",
        "predict.ridge_scale=absolute",
    )
    agree(found.mean, wanted.mean)


def test_cholesky(lab):
    found, wanted = lab.both(
        "direct",
        "solver=cholesky",
        ALL,
        "predict.times=[inf]",
        "predict.ridges=[0.1]",
        "predict.ridge_scale=absolute",
        "predict.covariance=diagonal",
    )
    agree(found.mean, wanted.mean)
    agree(found.variance, wanted.variance)


def test_krylov_and_default_times(lab, dense):
    found = lab.run(
        "krylov", "data.path=images.npz", "augment=hflip", TIMES, "predict.ridges=[0,1e-3]", "solver.tolerance=1e-10"
    )
    wanted = dense[1].mean[:2]
    # The bound itself was allowed to be 1e-10, on means of order one.
    assert np.abs(found.mean - wanted).max() <= 1e-10 + CLOSE * np.abs(wanted).max()
    flips, doubled = lab.both("times", "predict.ridges=[1e-2]")
    np.testing.assert_array_equal(flips.times, doubled.times)
    rates = [lab.receipt(f"times-{which}", "solve")["kernels"] for which in ("flips", "doubled")]
    for kernel in ("ntk", "nngp"):
        np.testing.assert_allclose(*(r[kernel]["max_learning_rate"] for r in rates), rtol=1e-9)


@pytest.fixture(scope="module")
def single(lab) -> Predictions:
    words = ("augment=hflip", "kernel.dtype=float32", TIMES, "predict.ridges=[0,1e-3]")
    return lab.run("single", "data.path=images.npz", *words)


def test_float32_is_within_its_bound(lab, dense, single):
    wanted = dense[1]
    assert "images.npz) and their flips" in (lab.path / "single/report/report.html").read_text()
    assert (np.abs(single.mean - wanted.mean[:2]) <= single.error_bound + wanted.error_bound[:2]).all()


def test_means_store_the_even_part_alone_and_variances_add_the_odd_one(lab, dense, single):
    stores = {
        p.name: json.loads((p / "manifest.json").read_text())["identity"] for p in (lab.path / "store/gram").iterdir()
    }
    names = ["even", "odd"]
    assert {i["symmetry"] for i in stores.values() if i["n_train"] == N} == set(names)
    assert all("symmetry" not in i for i in stores.values() if i["n_train"] == 2 * N)
    mean_only = lab.receipt("single", "gram")
    assert len(lab.receipt("dense-flips", "gram")["stores"]) == 2
    assert len(mean_only["stores"]) == 1
    # Tiles are those of the images, not of the doubled set.
    assert lab.receipt("dense-doubled", "gram")["tiles"] > 2 * mean_only["tiles"]


def test_an_odd_part_that_is_missing_is_added_to_an_even_one(lab):
    words = ("data.path=images.npz", "augment=hflip", "kernel.depth=1", "predict.times=[inf]", "solver=cholesky")
    first = lab.run("added-a", *words)
    even = sorted((lab.path / "store").glob("gram/*/receipts/train/*.json"))
    times = {p: p.stat().st_mtime_ns for p in even}
    second = lab.run("added-b", *words, "predict.covariance=diagonal")
    np.testing.assert_array_equal(first.mean, second.mean)
    assert lab.receipt("added-b", "gram")["computed"] == lab.receipt("added-a", "gram")["computed"] > 0
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    assert len(sorted((lab.path / "store").glob("gram/*/receipts/train/*.json"))) == len(even) + 3


def test_damage_to_either_part_is_found_and_mended(lab, capfd):
    words = ("data.path=images.npz", "augment=hflip", "kernel.depth=2", "predict.times=[inf]", "solver=cholesky")
    first = lab.run("mended", *words, "predict.covariance=diagonal")
    for place in lab.receipt("mended", "gram")["stores"]:
        chunk = next((Path(place) / "tiles.zarr").glob("ntk/train/c/1/0"))
        content = bytearray(chunk.read_bytes())
        content[9] ^= 1
        chunk.write_bytes(bytes(content))
    capfd.readouterr()
    assert lab.command("verify", "run_dir=mended", "repair=false") == 6
    assert sum(line.startswith("damaged") for line in capfd.readouterr().out.splitlines()) == 2
    (lab.path / "mended/stages/predict.json").unlink()
    (lab.path / "mended/stages/solve.json").unlink()
    assert lab.command("run", "run_dir=mended") == 0  # met in the middle of the solve
    assert lab.command("verify", "run_dir=mended") == 0
    again = lab.predictions("mended")
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.variance, again.variance)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("data.zca=0.1",), "does not commute with flips"),
        (("augment=vflip",), "not one of none, hflip"),
        (("data.path=narrow.npz",), "images with a width"),
        (("kernel=spec", "kernel.path=strided.json"), "invariant under flips"),
    ],
)
def test_what_cannot_be_augmented_is_refused_before_anything_is_computed(lab, capfd, words, text):
    layer = {"op": "conv", "features": 4, "filter": [3, 3], "w_std": 1.4, "b_std": 0.1, "padding": "SAME"}
    spec = [
        {**layer, "strides": [2, 2]},
        {"op": "relu"},
        {"op": "flatten"},
        {"op": "dense", "features": 10, "w_std": 1.0},
    ]
    (lab.path / "strided.json").write_text(json.dumps(spec))
    with np.load(lab.path / "images.npz") as data:
        np.savez(lab.path / "narrow.npz", **{k: v[:, :, :1] if v.ndim == 4 else v for k, v in data.items()})
    before = sorted((lab.path / "store").rglob("*"))
    refused = ("run_dir=refused", "data.path=images.npz", "augment=hflip", *words)
    assert lab.command("run", *EXACT, *refused) == 2
    assert text in capfd.readouterr().err
    assert not (lab.path / "refused" / "run.json").exists()
    assert [p for p in sorted((lab.path / "store").rglob("*")) if p not in before and "gram" in p.parts] == []


def test_convolutions(lab):
    """Spatial kernels, pooled and of a few small images: they take their flips' pixels from elsewhere."""
    layer = {"op": "conv", "features": 4, "filter": [3, 3], "w_std": 1.4, "b_std": 0.1}
    spec = [layer, {"op": "relu"}, {"op": "avg_pool", "window": [2, 2], "strides": [2, 2]}, layer, {"op": "relu"}]
    spec += [{"op": "global_avg_pool"}, {"op": "dense", "features": 10, "w_std": 1.0, "b_std": 0.1}]
    (lab.path / "pooled.json").write_text(json.dumps(spec))
    for name in ("images", "doubled"):
        with np.load(lab.path / f"{name}.npz") as data:
            few = {
                k: v.reshape(-1, N, *v.shape[1:])[:, :24].reshape(-1, *v.shape[1:])
                for k, v in data.items()
                if "train" in k
            }
            few |= {"x_test": data["x_test"][:4], "y_test": data["y_test"][:4], "class_names": data["class_names"]}
            few = {k: v[:, 12:20, 12:20] if v.ndim == 4 else v for k, v in few.items()}
            np.savez(lab.path / f"few-{name}.npz", **few)
    words = (
        "kernel=spec",
        "kernel.path=pooled.json",
        "solver=eigh",
        "predict.times=[1000,inf]",
        "predict.covariance=full",
    )
    found = lab.run("conv-flips", "data.path=few-images.npz", "augment=hflip", *words)
    wanted = lab.run("conv-doubled", "data.path=few-doubled.npz", *words)
    for k in range(2):
        agree(found.mean[k], wanted.mean[k])
        agree(found.covariance[k], wanted.covariance[k])
