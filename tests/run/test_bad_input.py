"""Bad input: a clear error before any work starts, and the same folder serves the corrected run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe.storage.local import LocalStore

RNG = np.random.default_rng(0)


def images(n=40, p=8, **changes):
    """A small, sound data set, with some of its arrays changed."""
    arrays = {
        "x_train": RNG.random((n, 4, 4, 1)),
        "y_train": np.arange(n) % 3,
        "x_test": RNG.random((p, 4, 4, 1)),
        "y_test": np.arange(p) % 3,
    }
    return {**arrays, **changes}


def spoilt(value):
    x = RNG.random((40, 4, 4, 1))
    x[7, 1, 2, 0] = value
    return x


BAD_DATA = {
    "nan": (images(x_train=spoilt(np.nan)), "hold NaN or infinite values (rows 7)"),
    "infinite": (images(x_test=spoilt(np.inf)[:8]), "x_test hold NaN or infinite"),
    "label too large": (images(y_test=np.arange(8)), "must lie in 0..2"),
    "label negative": (images(y_train=np.arange(40) % 3 - 1), "negative label"),
    "labels not integers": (images(y_train=np.linspace(0, 1, 40)), "data.labels=regression"),
    "shapes differ": (images(x_test=RNG.random((8, 4, 5, 1))), "bring them to the same shape"),
    "impossible shape": (images(x_train=RNG.random((40, 2, 2, 2, 2, 2))), "(n, height, width, channels)"),
    "no images": (images(x_test=np.zeros((0, 4, 4, 1)), y_test=np.zeros(0, int)), "x_test is empty"),
    "one class": (images(y_train=np.zeros(40, int), y_test=np.zeros(8, int)), "needs at least two classes"),
    "labels do not pair up": (images(y_train=np.arange(39) % 3), "pair up one to one"),
    "float32 overflow": (images(x_test=np.full((8, 4, 4, 1), 1e300)), "kernel.dtype=float64"),
}


@pytest.mark.parametrize("case", sorted(BAD_DATA))
def test_bad_data(work, case):
    arrays, text = BAD_DATA[case]
    words = ("cluster=serial", "data=npz", "data.path=x.npz", "run_dir=a", "predict.times=[inf]")
    np.savez("x.npz", **arrays)
    found = work("run", *words)
    assert (found.code, text in found.err) == (3, True), found.err
    assert "Traceback" not in found.err
    assert not (work.path / "a" / "run.json").exists()
    assert "were refused" in work("status", "run_dir=a").err
    assert not work.objects("**/*")


def test_corrected_data_in_the_folder_of_a_refusal(work):
    words = ("cluster=serial", "data=npz", "data.path=x.npz", "run_dir=a", "predict.times=[inf]")
    np.savez("x.npz", **BAD_DATA["nan"][0])
    assert work("run", *words).code == 3
    np.savez("x.npz", **images())
    work.ok("gram", *words, "solver.tolerance=1e-3")


SETTINGS = {
    "too few images": ("data.train_size=5000", 3, "1500 such points|only 1500 training images"),
    "too few test images": ("data.test_size=298", 3, "297 such points|only 297 test images"),
    "one class left": ("data.train_size=1", 3, "at least two classes"),
    "no such file": ("data=npz data.path=nowhere.npz", 3, "not a file"),
    "no such data set": ("data=cifar10 data.path=nowhere", 3, "nowhere"),
    "tile too large": ("cluster.memory_gib=0.5", 8, "memory"),
    "dense too large": (
        "solver=eigh cluster.memory_gib=1.5 data=synthetic data.n_train=20000 data.shape=[1,1,2] data.train_size=null",
        8,
        "solver=krylov",
    ),
    "downsampling": ("data.downsample=3", 2, "downsample"),
    "activation": ("kernel.activation=relux", 2, "relux"),
    "activation's parameter": ("kernel.activation=leaky_relu kernel.activation_args={beta:1}", 2, "beta"),
    "no architecture": ("kernel=spec kernel.path=nowhere.json", 2, "nowhere.json"),
    "not Gaussian": ("kernel=spec kernel.path=layers.json", 2, "layer 1"),
    "balanced regression": ("data.balanced=true data.labels=regression", 2, "class labels"),
}


# What is refused while images are read and tiles are laid out, and not by the configuration: also where others are stored.
PREPARED = ("too few images", "one class left", "tile too large", "dense too large", "downsampling")


@pytest.mark.parametrize(
    ("case", "prepared"), [*((case, False) for case in SETTINGS), *((case, True) for case in PREPARED)]
)
def test_bad_settings(work, case, prepared):
    words, code, text = SETTINGS[case]
    # Two nonlinearities in a row: the input of the second is not Gaussian.
    layers = [{"op": "flatten"}, {"op": "relu"}, {"op": "relu"}, {"op": "dense", "features": 1}]
    (work.path / "layers.json").write_text(json.dumps(layers))
    if prepared:
        work.ok("gram", *work.quick, "run_dir=first")
    before = work.objects("**/*")
    found = work("run", "run_dir=a", *work.quick, *words.split())
    assert found.code == code, found.err
    assert any(t in found.err for t in text.split("|")), found.err
    assert "Traceback" not in found.err
    assert work.objects("**/*") == before
    assert not (work.path / "a" / "run.json").exists()
    if prepared:  # the folder serves the corrected run
        work.ok("gram", "run_dir=a", *work.quick)


def test_disk_too_small(work, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "free_bytes", lambda self: 1000)
        found = work("run", "run_dir=a", *work.quick)
    assert found.code == 8
    assert "free" in found.err
    assert not work.objects("**/*")
    work.ok("gram", "run_dir=a", *work.quick)


def test_a_folder_that_is_no_run(work):
    (work.path / "thesis").mkdir()
    (work.path / "thesis" / "chapter.tex").write_text("x")
    found = work("run", "run_dir=thesis", *work.quick)
    assert found.code == 2
    assert "chapter.tex" in found.err
    assert [p.name for p in (work.path / "thesis").iterdir()] == ["chapter.tex"]
    (work.path / "file").write_text("x")
    assert work("run", "run_dir=file", *work.quick).code == 2
    assert work("run", "run_dir=a", "store.url=file", *work.quick).code == 2


def test_another_configuration_in_the_same_folder(work):
    work.ok("gram", "run_dir=a", *work.quick)
    found = work("run", "run_dir=a", *work.quick, "kernel.depth=2", "predict.times=[inf]")
    assert found.code == 2
    assert "kernel.depth: 3 there, 2 now; predict.times" in found.err
    # Where tasks run is free to change.
    work.ok("gram", "run_dir=a", *work.quick, "cluster.memory_gib=2")


def test_a_refused_store_inside_the_run_folder_is_no_obstacle(work):
    words = ("run_dir=a", "store.url=a/tiles", *work.quick)
    work.ok("gram", "run_dir=b", "store.url=a/tiles", "store.name=mine", *work.quick)
    found = work("run", *words, "store.name=mine", "kernel.depth=1")
    assert found.code == 6
    work.ok("gram", *words)
