"""`kernel=empirical`: the kernels of one finite network, from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe import finite

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

    from ntkpipe.run.opened import open_run
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


def test_other_seeds_are_other_tiles_and_damaged_weights_are_found_and_mended(work, layers):
    stages(work, "a", "kernel.seed=1")
    stages(work, "b", "kernel.seed=2")
    assert len(list((work.path / "store/gram").iterdir())) == 2
    assert np.abs(work.predictions("a").mean - work.predictions("b").mean).max() > 1e-3
    for file in (work.path / "store/networks").iterdir():
        finite.save_weights(file, finite.init(LAYERS, (8, 8, 1), 77))
    found = work("verify", "run_dir=a", "repair=false")
    assert found.code == 6
    assert "other weights than its name says" in found.out
    assert "repaired" in work.ok("verify", "run_dir=a").out
    assert work("verify", "run_dir=a", "repair=false").code == 0


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("augment=hflip", "symmetric under flips"),
        ("kernel.outputs=full", "is not one of trace, pseudo"),
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
