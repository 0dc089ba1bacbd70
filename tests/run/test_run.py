"""What a run leaves, what a second one reuses, and who may touch what."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pandas as pd
import pytest
import xarray

from ntkpipe.report.page import ALONG_TRAINING
from ntkpipe.storage.board import Board, read_boards
from ntkpipe.storage.local import LocalStore

TIMES = "predict.times=[10,inf]"


def test_a_run_and_what_can_be_done_with_it(work, drawn):
    first = work.ok("run", "run_dir=a", *work.quick, TIMES)
    assert "predictions.zarr" in first.out
    folder = work.path / "a"
    data = xarray.open_zarr(folder / "predictions.zarr", consolidated=False)
    assert data["mean"].dims == ("kernel", "time", "ridge", "test", "class")
    assert data["mean"].sel(kernel="ntk", time=np.inf).shape == (1, 20, 10)
    assert data["error_bound"].shape == data["mean"].shape
    assert (np.diff(data["test"].values) > 0).all()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {(e["kernel"], float(e["time"])) for e in metrics["entries"]} == {
        (kernel, time) for kernel in ("ntk", "nngp") for time in (10.0, np.inf)
    }
    figures = {p.stem for p in (folder / "report").glob("**/*.svg")}
    assert figures == {p.stem for p in (folder / "report").glob("**/*.png")}
    page = (folder / "report" / "report.html").read_text()
    assert page.count('src="data:image/') == len(figures - set(ALONG_TRAINING)) > 0  # the slider shows the others
    assert "confusion" in figures
    assert "Confusion matrix" in page

    # A second run says so and touches nothing.
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and ".leases" not in p.parts}
    stored = {p: p.stat().st_mtime_ns for p in work.objects("**/*")}
    for words in (("run", "run_dir=a", *work.quick, TIMES), ("run", "run_dir=a")):
        again = work.ok(*words)
        assert "nothing to do" in again.err
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and ".leases" not in p.parts}
    assert stored == {p: p.stat().st_mtime_ns for p in work.objects("**/*")}

    status = work("status", "run_dir=a")
    assert (status.code, "finished" in status.out) == (0, True)
    for form, read in (("parquet", pd.read_parquet), ("csv", pd.read_csv)):
        work.ok("export", "run_dir=a", f"format={form}", f"path=out.{form}")
        assert len(read(f"out.{form}")) >= 2 * 2 * 20
    work.ok("export", "run_dir=a", "format=npz", "path=out.npz")
    with np.load("out.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["mean"], data["mean"].values)
    work.ok("export", "run_dir=a", "format=zarr", "path=out.zarr")
    assert xarray.open_zarr("out.zarr", consolidated=False)["mean"].equals(data["mean"])
    assert work("export", "run_dir=a", "format=xml", "path=out.xml").code == 2
    assert work("export", "run_dir=a", "format=npz", "path=out.npz").code != 0  # not without overwrite=true
    work.ok("export", "run_dir=a", "format=npz", "path=out.npz", "overwrite=true")

    assert "agree with their receipts" in work.ok("verify", "run_dir=a").out
    work.ok("report", "run_dir=a")


def test_tiles_are_reused_across_runs(work):
    work.ok("run", "run_dir=a", *work.quick, TIMES)
    computed = work.receipt("a", "gram")["computed"]
    assert computed == work.receipt("a", "gram")["tiles"] == 2 * 3 // 2 + 1 * 2
    tiles = {p: p.read_bytes() for p in work.chunks()}
    others = {
        "solver": ("solver=eigh",),
        "times": ("predict.times=[3]",),
        "ridges": ("predict.ridges=[1e-3]",),
        "size": ("data.train_size=40", "data.test_size=10"),
        "labels": ("data.labels=half",),
    }
    for name, words in others.items():
        work.ok("gram", f"run_dir={name}", *work.quick, *words)
        assert work.receipt(name, "gram")["computed"] == 0
    assert {p: p.read_bytes() for p in work.chunks()} == tiles
    # More images: only what is new is computed, in the same store.
    work.ok("gram", "run_dir=more", *work.quick, "data.train_size=90")
    more = work.receipt("more", "gram")
    assert (more["computed"], more["reused"]) == (3 + 1, 3 + 2)
    assert len(list((work.path / "store" / "gram").iterdir())) == 1
    for k, words in enumerate(("kernel.depth=1", "grid.edge=64", "kernel.dtype=float64", "data.downsample=2")):
        work.ok("gram", f"run_dir=new{k}", *work.quick, words)
        assert work.receipt(f"new{k}", "gram")["reused"] == 0
    assert len(list((work.path / "store" / "gram").iterdir())) == 5


def test_a_named_store_keeps_its_identity(work):
    work.ok("gram", "run_dir=a", *work.quick, "store.name=mine")
    for k, (setting, field) in enumerate(
        [
            ("kernel.depth=1", "spec|architecture"),
            ("grid.edge=64", "edge"),
            ("kernel.dtype=float64", "dtype"),
            ("data.subset_seed=1", "data"),
        ]
    ):
        found = work("gram", f"run_dir=b{k}", *work.quick, "store.name=mine", setting)
        assert found.code == 6
        assert any(f in found.err for f in field.split("|"))
        assert not (work.path / f"b{k}" / "run.json").exists()
    work.ok("gram", "run_dir=c", *work.quick, "store.name=mine")
    assert work("gram", "run_dir=d", *work.quick, "store.name=../out").code != 0


def test_one_stage_at_a_time(work):
    words = ("run_dir=a", *work.quick, TIMES)
    found = work("predict", *words)
    assert (found.code, "is not a run" in found.err) == (2, True), found.err
    for command, stage in (("solve", "gram"), ("gram", None), ("predict", "solve")):
        found = work(command, *words)
        if stage is None:
            assert found.code == 0
        else:
            assert (found.code, f"ntkpipe {stage}" in found.err) == (4, True), found.err
    assert work("status", "run_dir=a").code == 4
    assert work("report", "run_dir=a").code == 4
    work.ok("solve", "run_dir=a")  # the stored configuration
    work.ok("predict", "run_dir=a")
    work.ok("report", "run_dir=a")
    assert "nothing to do" in work.ok("run", "run_dir=a").err


def test_a_basis_that_another_run_has_extended(work):
    """Runs share a basis: what one has sampled of it must not be joined to what another has added since."""
    loose = (*work.quick, "predict.kernels=[ntk]", "predict.times=[10]", "solver.tolerance=0.1")
    for command in ("gram", "solve"):
        work.ok(command, "run_dir=a", *loose)
    work.ok("run", "run_dir=b", *work.quick, "predict.kernels=[ntk]", "predict.times=[10,inf]", "solver.tolerance=1e-9")
    few, many = (work.receipt(run, "solve")["kernels"]["ntk"]["vectors"] for run in "ab")
    assert few < many
    assert "has grown" in work.ok("predict", "run_dir=a").err
    a, b = work.predictions("a"), work.predictions("b")
    assert (np.abs(a.mean[:, 0] - b.mean[:, 0]) <= a.error_bound[:, 0] + b.error_bound[:, 0]).all()


def test_subsets_are_nested_and_balanced(work):
    for n in (30, 60):
        work.ok("gram", f"run_dir=n{n}", *work.quick, f"data.train_size={n}", "data.balanced=true")
    assert work.receipt("n60", "gram")["reused"] == work.receipt("n30", "gram")["tiles"]


def test_sweep(work):
    found = work.ok("run", "run_dir=s", *work.quick, "--multirun", "predict.times=[inf]", "solver=krylov,eigh")
    jobs = sorted(p.name for p in (work.path / "s").iterdir() if p.is_dir() and not p.name.startswith("."))
    assert jobs == ["solver=eigh", "solver=krylov"]
    assert [work.receipt(f"s/{j}", "gram")["computed"] for j in jobs] in ([0, 5], [5, 0])
    assert "nothing to do" not in found.err
    again = work.ok("run", "run_dir=s", *work.quick, "predict.times=[inf]", "solver=krylov,eigh", "-m")
    assert again.err.count("nothing to do") == 2
    # One bad job spoils its own result only.
    mixed = work("run", "run_dir=s", *work.quick, "-m", "data.train_size=9999,20", "predict.times=[inf]")
    assert mixed.code == 3
    assert (work.path / "s" / "train_size=20" / "predictions.zarr").exists()


def test_clean(work):
    work.ok("gram", "run_dir=a", *work.quick)
    work.ok("solve", "run_dir=a")
    name = next((work.path / "store" / "gram").iterdir()).name
    listed = work.ok("clean").out
    assert name in listed
    assert work("clean", "delete=nothing").code == 2
    work.ok("clean", "delete=litter")
    work.ok("clean", "delete=solves")
    assert not work.objects("krylov/**/*")
    assert work.chunks()
    work.ok("clean", f"delete={name}")
    assert not work.chunks()
    work.ok("run", "run_dir=a", *work.quick)
    assert work.receipt("a", "gram")["computed"] == 5


def test_clean_knows_what_runs_on_clusters_leave(work):
    store = LocalStore(work.path / "store")
    store.put(".compiled/abc/jit_tile", b"x" * 2000)
    store.put(".probe/0123", b"token")
    assert "compiled programs: 2" in work.ok("clean").out
    with Board(store, work.path / "a", every=0.2) as board:
        board.tell(stage="gram", line="at work")
        while not list(read_boards(store)):
            time.sleep(0.02)
        assert "kept 1 marks of runs on clusters" in work.ok("clean", "delete=litter").out
        assert store.exists(".probe/0123")
        board.tell(line="finished", final=True)
    assert "removed 1 marks of killed runs on clusters" in work.ok("clean", "delete=litter").out
    assert not store.exists(".probe/0123")
    assert "freed" in work.ok("clean", "delete=compiled").out
    assert list(store.list(".")) == []


def test_raw_data_that_is_gone_or_changed(work):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((40, 4, 4)), "y_train": np.arange(40) % 3}
    arrays |= {"x_test": rng.random((8, 4, 4)), "y_test": np.arange(8) % 3}
    words = ("run_dir=a", "cluster=serial", "data=npz", "data.path=x.npz", "predict.times=[inf]")
    np.savez("x.npz", **arrays)
    work.ok("gram", *words)
    np.savez("x.npz", **{**arrays, "y_train": (np.arange(40) + 1) % 3})
    for command in ("gram", "run"):
        found = work(command, *words)
        assert (found.code, "has changed since" in found.err) == (3, True)
    (work.path / "x.npz").unlink()
    work.ok("run", *words)
    assert "nothing to do" in work.ok("run", *words).err
    work.ok("verify", "run_dir=a")
    np.savez("x.npz", **arrays)
    work.ok("run", *words)  # the same content under another date: looked at again, and found to be the same


@pytest.mark.slow
def test_one_run_at_a_time(work):
    """A second run says who holds the folder or the store; a killed holder holds nothing."""
    words = ("cluster=serial", "data=digits", "grid.edge=16")
    work.ok("plan", *words)
    holder = work.start("run", "run_dir=a", *words)
    try:
        work.wait_for(lambda: len(work.receipts()) > 3, holder)
        holder.send_signal(signal.SIGSTOP)
        for second in ("a", "b"):
            found = work("run", f"run_dir={second}", *words)
            assert found.code == 5
            assert str(holder.pid) in found.err
        status = work("status", "run_dir=a")
        assert status.code == 4
        assert f"running (run in {work.path / 'a'} is held by process {holder.pid}" in status.out
        assert "tiles are stored" in status.out
        name = next((work.path / "store" / "gram").iterdir()).name
        assert work("clean", f"delete={name}").code == 5
    finally:
        work.kill(holder)
    done = len(work.receipts())
    assert "not running" in work("status", "run_dir=a").out
    # At once: no lease outlives its holder. Only a little is computed, to keep this short.
    work.ok("gram", "run_dir=c", *words, "data.train_size=32", "data.test_size=16")
    assert len(work.receipts()) <= done + 5
