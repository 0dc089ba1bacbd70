"""Commands that need an existing run refuse a folder without one at once, and create nothing."""

from __future__ import annotations

import pytest

from ntkpipe.errors import ConfigError, IncompleteError


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "run_dir=none", "store.url=none-store"),
        ("predict", "run_dir=none", "store.url=none-store", "data=digits", "kernel.readout_depths=[1,2]"),
        ("predict", "run_dir=none", "data.new=points.csv"),
        ("report", "run_dir=none"),
        ("report", "run_dir=none", "path=page"),
        ("export", "run_dir=none", "path=out.csv", "format=csv"),
        ("spectrum", "run_dir=none", "path=figures"),
        ("verify", "run_dir=none"),
        ("status", "run_dir=none"),
        ("compare", "none", "path=table"),
    ],
)
def test_a_run_that_does_not_exist_is_refused_and_nothing_is_created(work, words):
    found = work(*words)
    assert found.code == ConfigError.exit_code
    assert "is not a run" in found.err
    assert "start one with ntkpipe run" in found.err
    assert list(work.path.iterdir()) == []


def test_a_solve_without_tiles_is_refused_and_nothing_is_created(work):
    found = work("solve", "run_dir=none", "store.url=none-store", "cluster=serial")
    assert found.code == IncompleteError.exit_code
    assert "run ntkpipe gram with the same settings first" in found.err
    assert list(work.path.iterdir()) == []


def test_a_run_that_is_not_solved_is_refused_before_its_data_is_read(work):
    words = ("run_dir=a", "data=digits", "data.train_size=20", "data.test_size=8", "cluster=serial")
    work.ok("gram", *words)
    before = (work.path / "a" / "log.jsonl").read_bytes()
    found = work("predict", *words)
    assert found.code == IncompleteError.exit_code
    assert "run ntkpipe solve run_dir=" in found.err
    assert (work.path / "a" / "log.jsonl").read_bytes() == before
    assert work("report", "run_dir=a", "path=page").code == IncompleteError.exit_code
    assert not (work.path / "page").exists()
    # A new run may solve with tiles that another run has stored.
    work.ok("solve", *words[1:], "run_dir=b", "solver=cholesky", "predict.times=[inf]")


def test_settings_of_the_other_task_are_refused_before_any_tile(work):
    (work.path / "t.csv").write_text(
        "a,b,y,kind\n" + "\n".join(f"{k * k % 17},{k},{0.3 * k},{'uv'[k % 2]}" for k in range(30))
    )
    words = ("data.path=t.csv", "data.features=[a,b]", "cluster=serial")
    found = work(
        "run", "run_dir=a", *words, "data.target=kind", "predict.noise=held_out", "predict.covariance=diagonal"
    )
    assert found.code == ConfigError.exit_code
    assert "predict.noise needs real targets" in found.err
    found = work("run", "run_dir=b", *words, "data.target=y", "predict.loss=cross_entropy", "predict.times=[10]")
    assert found.code == ConfigError.exit_code
    assert "predict.loss=cross_entropy needs classes" in found.err
    assert "tiles computed" not in found.out + found.err


def test_a_report_with_the_store_of_another_run_is_refused(work):
    words = ("data=digits", "data.test_size=8", "cluster=serial", "report=false", "predict.times=[inf]")
    work.ok("run", "run_dir=d", "kernel.readout_depths=[1,2]", "data.train_size=20", *words)
    work.ok("run", "run_dir=other", "store.url=other-store", "data.train_size=24", *words)
    found = work("export", "run_dir=d", "path=out.csv", "format=csv")
    assert found.code == ConfigError.exit_code
    assert "run_dir=d holds several runs: choose one, such as run_dir=d/depth=2" in found.err
    for folder in ("d", "d/depth=1"):
        for store in ("other-store", "nowhere"):
            found = work("report", f"run_dir={folder}", f"store.url={store}", "path=page")
            assert found.code == ConfigError.exit_code
            assert "name the store of this run" in found.err
    assert not (work.path / "page").exists()
    assert not (work.path / "nowhere").exists()
    (work.path / "store").rename(work.path / "moved")
    assert "depths.csv" in work.ok("report", "run_dir=d", "store.url=moved", "path=page").out
