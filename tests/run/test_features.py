"""`kernel=features`: products of features that somebody else computed, from end to end, and what are no features."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

N, P, F, C = 70, 18, 90, 3
WORDS = ("cluster=serial", "kernel=features", "data=labels", "data.path=y.npz", "grid.edge=32")
FILES = ("kernel.train=J.npy", "kernel.test=JT.npy")
ANSWER = ("predict.times=[inf]", "predict.ridges=[0.01]", "kernel.scale=7", "kernel.dtype=float64")


@pytest.fixture
def features(work):
    """Random features and labels that depend on them, as files; returns the arrays."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N + P, F))
    y = np.argmax(x[:, :C], axis=1)
    np.save("J.npy", x[:N])
    np.save("JT.npy", x[N:])
    np.savez("y.npz", y_train=y[:N], y_test=y[N:])
    return {"train": x[:N], "test": x[N:], "targets": np.eye(C)[y[:N]] - 1 / C}


def _exact(features, ridge=0.01):
    k = features["train"] @ features["train"].T / 7
    return (features["test"] @ features["train"].T / 7) @ np.linalg.solve(
        k + ridge * np.diagonal(k).mean() * np.eye(N), features["targets"]
    )


def _predict(work, name, *words):
    for stage in ("gram", "solve", "predict"):
        found = work.ok(stage, f"run_dir={name}", *WORDS, *words)
    return found


@pytest.mark.parametrize("solver", ["krylov", "cg", "eigh", "cholesky"])
def test_every_solver_gives_what_the_products_say(work, features, solver):
    tight = {"krylov": ["solver.tolerance=1e-9"], "cg": ["solver.residual=1e-12"]}
    _predict(work, "a", *FILES, *ANSWER, f"solver={solver}", *tight.get(solver, []))
    found = work.predictions("a")
    assert found.kernels == ("gram",)
    error = np.abs(found.mean[0, 0, 0] - _exact(features))
    assert error.max() < 1e-8
    assert (error <= found.error_bound[0, 0, 0] + 1e-12).all()
    assert set(found.bound_kind.ravel()) == {"rigorous"}  # diagonals are computed
    assert work("verify", "run_dir=a", "repair=false").code == 0


def test_files_of_every_kind_are_the_same_kernel(work, features):
    _predict(work, "a", *FILES, *ANSWER)
    np.savez("J.npz", features["train"])
    made = zarr.create_array("JT.zarr", shape=(P, F), chunks=(5, 13), dtype="float64")
    made[:] = features["test"]
    _predict(work, "b", "kernel.train=J.npz", "kernel.test=JT.zarr", *ANSWER)
    assert len(list((work.path / "store/gram").iterdir())) == 1
    np.testing.assert_array_equal(work.predictions("a").mean, work.predictions("b").mean)
    _predict(work, "c", *FILES, *ANSWER[:2], "kernel.scale=8", "kernel.dtype=float64")
    assert len(list((work.path / "store/gram").iterdir())) == 2


def test_variances_and_covariances_and_single_precision(work, features):
    words = (*FILES, *ANSWER[:3], "predict.covariance=full", "store.gram=recompute")
    _predict(work, "a", *words)
    found = work.predictions("a")
    np.testing.assert_allclose(found.mean[0, 0, 0], _exact(features), atol=1e-4)
    x, z = features["train"], features["test"]
    k, q, own = x @ x.T / 7, z @ x.T / 7, z @ z.T / 7
    exact = own - q @ np.linalg.solve(k + 0.01 * np.diagonal(k).mean() * np.eye(N), q.T)
    np.testing.assert_allclose(found.covariance[0, 0, 0], exact, atol=2e-4 * np.diagonal(own).max())
    np.testing.assert_allclose(found.variance[0, 0, 0], np.diagonal(exact), atol=2e-4 * np.diagonal(own).max())


def test_changed_features_are_found(work, features):
    _predict(work, "a", *FILES, *ANSWER)
    changed = features["train"].copy()
    changed[3, 4] += 1
    np.save("J.npy", changed)
    assert work("verify", "run_dir=a", "repair=false").code != 0
    assert work("predict", "run_dir=a", *WORDS, *FILES, *ANSWER).code != 0


def test_the_report_and_the_plan(work, features):
    plan = work.ok("plan", *WORDS, *FILES, *ANSWER).out
    assert "one kernel" in plan
    assert "memory" in plan
    work.ok("run", "run_dir=a", *WORDS, *FILES, *ANSWER)
    assert (work.path / "a/report/report.html").exists()
    assert json.loads((work.path / "a/metrics.json").read_text())["entries"][0]["kernel"] == "gram"
    assert "nothing to do" in work.ok("run", "run_dir=a", *WORDS, *FILES, *ANSWER).err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("kernel.train=narrow.npy", FILES[1]), "narrow.npy has 5 features of each point"),
        ((FILES[0], "kernel.test=nan.npy"), "entry (2, 3) of"),
        (("kernel.train=zero.npy", FILES[1]), "row 4 of"),
        ((FILES[0], "kernel.test=two.npz"), "must hold one array"),
        ((FILES[0], "kernel.test=packed.npz"), "compressed"),
        ((FILES[0], "kernel.test=whole.npy"), "store it as float32 or float64"),
        ((FILES[0],), "needs kernel.train=FILE"),
        ((*FILES, "kernel.scale=0"), "must be above 0"),
        ((*FILES, "augment=hflip"), "kernel=features has no images"),
        ((*FILES, "predict.kernels=[ntk]"), "is called gram"),
        ((*FILES, "predict.initial=network"), "needs kernel=empirical"),
        ((*FILES, "kernel.depth=2"), "has no meaning for kernel=features"),
        (("kernel.train=few.npy", "kernel.test=fewt.npy", "predict.ridges=[0]"), "whose rank is at most 5"),
    ],
)
def test_what_is_refused_before_anything_is_computed(work, features, words, text):
    x, z = features["train"], features["test"]
    zero, nan = x.copy(), z.copy()
    zero[4], nan[2, 3] = 0, np.nan
    files = {
        "narrow": x[:, :5],
        "zero": zero,
        "nan": nan,
        "whole": z.astype(np.int64),
        "few": x[:, :5],
        "fewt": z[:, :5],
    }
    for name, array in files.items():
        np.save(f"{name}.npy", array)
    np.savez("two.npz", a=z, b=z)
    np.savez_compressed("packed.npz", z)
    found = work(
        "gram",
        "run_dir=a",
        *WORDS,
        *(w for w in ANSWER if w.split("=")[0] not in {x.split("=")[0] for x in words}),
        *words,
    )
    assert found.code in (2, 3)
    assert text in found.err
    assert not work.objects("gram/**/c/*")
