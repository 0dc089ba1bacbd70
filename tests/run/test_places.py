"""A stored run means the same from every folder, and after it has moved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.cli.main import main
from ntkpipe.config import RunConfig, StoreConfig
from ntkpipe.run import places
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.checksum import sealed

WORDS = ("cluster=serial", "data=npz", "data.path=sets/d.npz", "predict.kernels=[ntk]", "predict.times=[inf]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a run in `runs/a`, its store in `store`, and its data in `sets`; it is no more where it was made."""
    home = tmp_path_factory.mktemp("places") / "home"
    (home / "sets").mkdir(parents=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(home / "sets" / "d.npz", x_train=x[:24], y_train=y[:24], x_test=x[24:], y_test=y[24:])
    before = os.getcwd()
    os.chdir(home)
    try:
        assert main(["run", *WORDS, "run_dir=runs/a"]) == 0
    finally:
        os.chdir(before)
    return home.rename(home.parent / "kept")


@pytest.fixture
def home(finished, work) -> Path:
    """A copy of it; the present folder is an empty one beside it."""
    shutil.copytree(finished, work.path / "home")
    RunDir.open(work.path / "home" / "runs" / "a").begin()  # as if it had been made here
    (work.path / "away").mkdir()
    os.chdir(work.path / "away")
    return work.path / "home"


def as_of_earlier_version(run: Path) -> None:
    """Paths as they were typed, relative to the folder where the run was started."""
    record = json.loads((run / "run.json").read_text())
    del record["beside"], record["sha256"]
    record["config"]["store"]["url"], record["config"]["data"]["path"] = "./store", "sets/d.npz"
    (run / "run.json").write_text(json.dumps(sealed(record)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("earlier", [False, True])
def test_commands_from_another_folder_read_the_same_store_and_make_nothing(work, home, earlier):
    run = home / "runs" / "a"
    if earlier:
        as_of_earlier_version(run)
    stored = contents(home)
    found = work.ok("verify", f"run_dir={run}", "repair=false")
    assert "damaged" not in found.out
    assert str(home / "store") in found.out
    work.ok("status", f"run_dir={run}")
    work.ok("export", f"run_dir={run}", "path=mine.csv", "format=csv")
    for command in ("gram", "solve", "predict", "run"):
        work.ok(command, f"run_dir={run}", "cluster=serial")
    assert [p.name for p in Path().iterdir()] == ["mine.csv"]
    after = contents(home)
    free = ("exports.json", "run.json", "log.jsonl", "last_used", "progress.json", ".leases", "/runs/", "stages")
    assert {k: v for k, v in after.items() if not any(f in k for f in free)} == {
        k: v for k, v in stored.items() if not any(f in k for f in free)
    }


def test_a_run_that_moved_with_its_store_and_data_is_still_finished(work, home):
    moved = work.path / "elsewhere" / "new name"
    moved.parent.mkdir()
    home.rename(moved)
    assert "damaged" not in work.ok("verify", f"run_dir={moved}/runs/a", "repair=false").out
    assert "nothing to do" in work.ok("run", f"run_dir='{moved}/runs/a'").err
    os.chdir(moved)
    assert "nothing to do" in work.ok("run", *WORDS, "run_dir=runs/a").err
    # What is left is done there, and the new place is written down.
    shutil.rmtree("runs/a/predictions.zarr")
    work.ok("run", "run_dir=runs/a")
    assert json.loads(Path("runs/a/run.json").read_text())["config"]["store"]["url"] == str(moved / "store")


def test_a_copy_reads_the_store_that_was_copied_with_it(work, home):
    shutil.copytree(home, work.path / "copy")
    assert f"{work.path}/copy/store" in work.ok("verify", f"run_dir={work.path}/copy/runs/a", "repair=false").out


def test_a_run_that_moved_alone_finds_its_store_where_it_was(work, home):
    other = work.path / "other" / "runs"
    other.mkdir(parents=True)
    (home / "runs" / "a").rename(other / "a")
    # What lies where the store would be is another one, with other data beside it.
    os.chdir(work.path / "other")
    work.ok("gram", "cluster=serial", "data=synthetic", "data.n_train=20", "run_dir=runs/b")
    (work.path / "other" / "sets").mkdir()
    (work.path / "other" / "sets" / "d.npz").write_bytes(b"something else")
    found = RunDir.open(other / "a").config
    assert (found.store.url, found.data.path) == (str(home / "store"), str(home / "sets" / "d.npz"))
    assert str(home / "store") in work.ok("verify", "run_dir=runs/a", "repair=false").out


@pytest.mark.parametrize("earlier", [False, True])
def test_a_store_that_is_gone_is_named_and_not_made_anew(work, home, earlier):
    run = home / "runs" / "a"
    if earlier:
        as_of_earlier_version(run)
    (home / "store").rename(work.path / "kept")
    (run / "stages" / "report.json").unlink()
    here = contents(work.path)
    for words in (("verify", "repair=false"), ("verify",), ("report",), ("predict",), ("run",)):
        found = work(words[0], f"run_dir={run}", *words[1:])
        assert (found.code, str(home / "store") in found.err, "store.url=" in found.err) == (6, True, True), found.err
    assert str(home / "store") in work("status", f"run_dir={run}").out
    assert not (home / "store").exists()
    assert list(Path().iterdir()) == []
    assert {k: v for k, v in contents(work.path).items() if ".leases" not in k} == {
        k: v for k, v in here.items() if ".leases" not in k
    }
    # Told where it is, every command goes on, and a run that goes on keeps the new address.
    (work.path / "empty").mkdir()
    assert "does not hold" in work("verify", f"run_dir={run}", f"store.url={work.path}/empty").err
    work.ok("verify", f"run_dir={run}", f"store.url={work.path}/kept", "repair=false")
    work.ok("run", f"run_dir={run}", f"store.url={work.path}/kept")
    work.ok("verify", f"run_dir={run}", "repair=false")
    assert not (home / "store").exists()


def test_another_store_or_file_is_another_configuration(work, home):
    run = f"run_dir={home}/runs/a"
    found = work("run", *WORDS, run)  # relative to this folder there are neither these data nor this store
    assert (found.code, "data.path" in found.err) == (2, True)
    found = work("run", *WORDS, f"data.path={home}/sets/d.npz", f"store.url={work.path}/new", run)
    assert (found.code, "store.url" in found.err) == (2, True)
    assert not (work.path / "new").exists()
    # The same places in other words.
    os.symlink(home, work.path / "link")
    words = (f"data.path={home}/sets/../sets/d.npz", f"store.url=file://{home}/store/")
    assert "nothing to do" in work.ok("run", *WORDS, *words, run).err
    words = (f"data.path={work.path}/link/sets/d.npz", f"store.url={work.path}/link/store")
    assert "nothing to do" in work.ok("run", *WORDS, *words, f"run_dir={work.path}/link/runs/a").err


def test_a_sweep_goes_on_from_another_folder(work, home):
    os.chdir(home)
    work.ok("run", *WORDS, "kernel.readout_depths=[1,2]", "run_dir=sweep")
    os.chdir(work.path / "away")
    again = work.ok("run", f"run_dir={home}/sweep")
    assert again.err.count("nothing to do") == 2
    assert list(Path().iterdir()) == []


def test_paths_of_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    config = places.anchored(RunConfig(store=StoreConfig(url="~/store"), run_dir="~/runs/a"))
    assert (config.store.url, config.run_dir) == (f"{tmp_path}/me/store", f"{tmp_path}/me/runs/a")
    assert places.beside(config, Path(config.run_dir)) == {"store.url": "../../store"}
    for url in ("s3://bucket/x", "memory://x"):
        config = places.anchored(RunConfig(store=StoreConfig(url=url)))
        assert config.store.url == url
        assert places.beside(config, tmp_path) == {}
    # What shares the root alone does not move with the run.
    assert places.beside(RunConfig(store=StoreConfig(url="/nowhere/else")), tmp_path) == {}
