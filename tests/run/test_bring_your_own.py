"""`kernel=gram`: matrices that somebody else computed, from end to end, and what is no kernel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

N, P, C = 90, 21, 3
WORDS = ("cluster=serial", "kernel=gram", "data=labels", "data.path=y.npz", "grid.edge=32", "kernel.train=K.npy")
TEST = "kernel.test=KT.npy"
DIAGONAL = "kernel.test_diagonal=d.npy"


@pytest.fixture
def kernel(work):
    """A kernel of random points and labels that depend on them, as files; returns the arrays."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N + P, 4))
    k = np.exp(-0.5 * ((x[:, None] - x[None]) ** 2).sum(-1)) + 1e-3 * np.eye(N + P)
    k *= np.outer(1 + 0.2 * np.abs(x[:, 0]), 1 + 0.2 * np.abs(x[:, 0]))
    y = np.argmax(x[:, :C], axis=1)
    arrays = {"K": k[:N, :N], "KT": k[N:, :N], "d": np.diagonal(k)[N:].copy()}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("y.npz", y_train=y[:N], y_test=y[N:])
    arrays["targets"] = np.eye(C)[y[:N]] - 1 / C
    return arrays


def _solved(kernel, ridge):
    scale = ridge * np.diagonal(kernel["K"]).mean()
    return kernel["KT"] @ np.linalg.solve(kernel["K"] + scale * np.eye(N), kernel["targets"])


def _predict(work, name, *words):
    """All stages but the report, whose figures take most of the time."""
    for stage in ("gram", "solve", "predict"):
        found = work.ok(stage, f"run_dir={name}", *words)
    return found


@pytest.mark.parametrize("solver", ["krylov", "cg", "eigh", "cholesky"])
def test_every_solver_gives_what_the_matrix_says(work, kernel, solver):
    words = (*WORDS, TEST, "predict.times=[inf]", "predict.ridges=[0.01,0.1]", f"solver={solver}")
    tight = {"krylov": ["solver.tolerance=1e-9"], "cg": ["solver.residual=1e-12"]}
    _predict(work, "a", *words, *tight.get(solver, []))
    found = work.predictions("a")
    assert found.kernels == ("gram",)
    for r, ridge in enumerate((0.01, 0.1)):
        error = np.abs(found.mean[0, 0, r] - _solved(kernel, ridge))
        assert error.max() < 1e-8
        assert (error <= found.error_bound[0, 0, r] + 1e-12).all()
    assert set(found.bound_kind.ravel()) == {"estimate"}  # k(x, x) of the test points is not known
    assert not (work.path / "store/gram").exists()  # read in place: nothing was copied
    metrics = json.loads((work.path / "a/metrics.json").read_text())
    assert metrics["entries"][0]["accuracy"] > 0.5


def test_with_the_test_diagonal_bounds_are_rigorous(work, kernel):
    words = (*WORDS, TEST, "predict.times=[10,inf]", "predict.ridges=[0.1]")
    _predict(work, "a", *words, DIAGONAL)
    _predict(work, "b", *words)
    known, estimated = work.predictions("a"), work.predictions("b")
    assert set(known.bound_kind.ravel()) == {"rigorous"}
    np.testing.assert_array_equal(known.mean, estimated.mean)
    assert (estimated.error_bound >= known.error_bound * 0.999).mean() > 0.9


def test_a_zarr_array_is_the_same_kernel_and_finds_what_was_solved(work, kernel):
    words = ("predict.times=[inf]", "predict.ridges=[0.1]", *WORDS[:-1])
    _predict(work, "a", *words, WORDS[-1], TEST)
    lower = np.where(np.tri(N, dtype=bool), kernel["K"], np.nan)
    for name, array in (("K", lower), ("KT", kernel["KT"])):
        made = zarr.create_array(f"{name}.zarr", shape=array.shape, chunks=(37, 11), dtype="float64")
        made[:] = array
    before = work.objects("krylov/**/*")
    _predict(work, "b", *words, "kernel.train=K.zarr", "kernel.test=KT.zarr")
    assert work.objects("krylov/**/*") == before
    np.testing.assert_array_equal(work.predictions("b").mean, work.predictions("a").mean)


def test_the_arrays_of_a_gram_store_can_be_given(work):
    quick = (*work.quick, "predict.times=[10,inf]", "predict.kernels=[nngp]", "kernel.depth=1")
    _predict(
        work,
        "a",
        *quick,
        "data=synthetic",
        "data.n_train=120",
        "data.n_test=21",
        "data.train_size=120",
        "data.test_size=21",
    )
    (folder,) = (work.path / "store/gram").glob("*/tiles.zarr")
    labels = work.objects("data/*/labels/*.npz")[0]
    with np.load(labels, allow_pickle=False) as stored:
        np.savez("y.npz", y_train=stored["labels_train"], y_test=stored["labels_test"])
    words = (
        "cluster=serial",
        "kernel=gram",
        "data=labels",
        "data.path=y.npz",
        "data.train_size=120",
        "data.test_size=21",
    )
    words = (*words, f"kernel.train={folder}/nngp/train", f"kernel.test={folder}/nngp/test", "predict.times=[10,inf]")
    _predict(work, "b", *words)
    found, wanted = work.predictions("b"), work.predictions("a")
    order = np.argsort(np.load(labels)["test_index"][:21])
    np.testing.assert_allclose(found.mean[:, :, :, order], wanted.mean, rtol=0, atol=1e-5)


def test_regression_and_subsets(work, kernel):
    np.savez("y.npz", y_train=kernel["targets"], y_test=np.zeros((P, C)))
    words = (*WORDS, TEST, "data.labels=regression", "predict.times=[inf]", "predict.ridges=[0.1]")
    _predict(work, "a", *words, "data.train_size=40", "data.test_size=5", "solver=eigh")
    k = kernel["K"][:40, :40]
    ridge = 0.1 * np.diagonal(k).mean()
    wanted = kernel["KT"][:5, :40] @ np.linalg.solve(k + ridge * np.eye(40), kernel["targets"][:40])
    np.testing.assert_allclose(work.predictions("a").mean[0, 0, 0], wanted, rtol=0, atol=1e-10)


def test_a_changed_file_is_noticed(work, kernel):
    words = (*WORDS, TEST, "predict.times=[inf]", "predict.ridges=[0.1]", "solver=eigh")
    work.ok("run", "run_dir=a", *words)
    assert "nothing to do" in work.ok("run", "run_dir=a").err
    assert "all stored objects agree" in work.ok("verify", "run_dir=a").out
    assert (work.path / "a/report/report.html").exists()
    assert "given:" in work.ok("status", "run_dir=a").out
    changed = kernel["K"].copy()
    changed[5, 2] = changed[2, 5] = changed[2, 5] + 1e-6
    np.save("K.npy", changed)
    found = work("run", "run_dir=a")
    assert found.code == 3
    assert "Set another run_dir for a run on the new data" in found.err
    work.ok("run", "run_dir=b", *words)
    assert not np.array_equal(work.predictions("b").mean, work.predictions("a").mean)
    # Written again with the same values: the same kernel.
    np.save("K.npy", kernel["K"])
    work.ok("run", "run_dir=a")


def test_the_plan_reads_headers_alone(work, kernel):
    np.save("K.npy", np.full((N, N), np.nan))
    found = work.ok("plan", *WORDS, TEST).out
    assert f"{N} x {N}" in found
    assert "K.npy" in found
    assert "estimated" in found
    assert "solver   eigh: " in found
    assert not (work.path / "store").exists()


def _spoilt(array, *entries):
    made = array.copy()
    for (i, j), value in entries:
        made[i, j] = value
    return made


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("K", lambda k: _spoilt(k, ((7, 3), 0.5)), "not symmetric: entry (7, 3) is 0.5"),
        ("K", lambda k: _spoilt(k, ((7, 3), np.nan), ((3, 7), np.nan)), "entry (7, 3)"),
        ("K", lambda k: _spoilt(k, ((4, 4), 0.0)), "entry (4, 4)"),
        ("K", lambda k: _spoilt(k, ((7, 3), 50.0), ((3, 7), 50.0)), "not a positive semi-definite kernel"),
        ("K", lambda k: k[:, :-1], "must be square"),
        ("K", lambda k: k.astype(np.float16), "store it as float32 or float64"),
        ("K", lambda k: k[:-2, :-2], "but must have (test points, 88)"),
        ("KT", lambda k: k.T.copy(), "transpose it"),
        ("KT", lambda k: _spoilt(k, ((2, 9), np.inf)), "entry (2, 9)"),
        ("KT", lambda k: k[:-1], "21 values for 20 test points"),
        ("d", lambda d: d[:-1], "20 values for 21 test points"),
        ("d", lambda d: _spoilt(d[:, None], ((3, 0), 1e-3))[:, 0], "give the diagonal of the same kernel"),
        ("K", lambda k: np.array([object()] * 4).reshape(2, 2), "cannot be opened"),
    ],
)
def test_what_is_no_kernel_is_refused(work, kernel, name, change, text):
    np.save(f"{name}.npy", change(kernel[name]), allow_pickle=True)
    found = work("run", "run_dir=a", *WORDS, TEST, DIAGONAL)
    assert found.code == 3
    assert text in found.err
    assert not (work.path / "a/run.json").exists()


def test_there_is_a_label_for_every_row(work, kernel):
    for name, sizes, text in (
        ("y_test", (N, P - 1), "20 entries, but kernel.test has 21"),
        ("y_train", (N + 1, P), "91 ent"),
    ):
        np.savez("y.npz", y_train=np.arange(sizes[0]) % C, y_test=np.arange(sizes[1]) % C)
        found = work("run", "run_dir=a", *WORDS, TEST)
        assert found.code == 3
        assert text in found.err
        assert name in found.err


def test_a_codec_that_may_run_code_is_refused(work, kernel):
    made = zarr.create_array("K.zarr", shape=(N, N), chunks=(N, N), dtype="float64", zarr_format=2, compressors=None)
    made[:] = kernel["K"]
    metadata = json.loads((work.path / "K.zarr/.zarray").read_text())
    metadata["filters"] = [{"id": "pickle"}]
    (work.path / "K.zarr/.zarray").write_text(json.dumps(metadata))
    found = work("run", "run_dir=a", *WORDS[:-1], "kernel.train=K.zarr", TEST)
    assert found.code == 3
    assert "uses the codecs pickle" in found.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((*WORDS,), "kernel.test=FILE"),
        ((*WORDS, TEST, "data=digits"), "do not fit together"),
        ((*WORDS, TEST, "augment=hflip"), "kernel=gram has no images"),
        ((*WORDS, TEST, "store.gram=recompute"), "read in place"),
        ((*WORDS, TEST, "predict.covariance=full", "solver=eigh"), "among test points"),
        ((*WORDS, TEST, "predict.covariance=diagonal", "solver=eigh"), "kernel.test_diagonal"),
        ((*WORDS, TEST, "kernel.depth=5"), "kernel.depth=5 has no meaning for kernel=gram"),
        ((*WORDS, TEST, "predict.kernels=[ntk]"), "is called gram"),
        ((*WORDS, TEST, "data.balanced=true"), "have a fixed order"),
        (("cluster=serial", "data=digits", "predict.kernels=[gram]"), "is only for kernel=gram"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(work, kernel, words, text):
    found = work("run", "run_dir=a", *words)
    assert found.code == 2
    assert text in found.err


def test_variances_are_those_of_the_process(work, kernel):
    words = (*WORDS, TEST, DIAGONAL, "predict.times=[inf]", "predict.ridges=[0.1]", "predict.covariance=diagonal")
    _predict(work, "a", *words, "solver=eigh")
    ridge = 0.1 * np.diagonal(kernel["K"]).mean()
    inside = np.linalg.solve(kernel["K"] + ridge * np.eye(N), kernel["KT"].T)
    wanted = kernel["d"] - np.einsum("pn,np->p", kernel["KT"], inside)
    np.testing.assert_allclose(work.predictions("a").variance[0, 0, 0], wanted, rtol=0, atol=1e-10)
