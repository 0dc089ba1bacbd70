"""What a run takes its data for, and that runs which have begun stay with what they took it for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkpipe.config import DataConfig, RunConfig
from ntkpipe.data.source_records import same_source, source_key
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.checksum import sealed, unsealed

QUICK = ("cluster=serial", "predict.times=[inf]", "predict.kernels=[ntk]", "grid.edge=64")


def save(path, shape=(4, 4, 1), classes=2, **changes) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.random((24, *shape)),
        "y_train": np.arange(24) % classes,
        "x_test": rng.random((8, *shape)),
        "y_test": np.arange(8) % classes,
    }
    np.savez(path, **{**arrays, **changes})


def reread(work, monkeypatch) -> None:
    """Make the store and the run look as if an earlier version had read the data."""
    import ntkpipe.data.source_records as inputs

    monkeypatch.setattr(inputs, "_READING", {})
    monkeypatch.setattr("ntkpipe.kernels.images._refuse_another", lambda name, shape: None)


def test_a_run_that_has_begun_stays_with_its_layout_and_a_new_one_is_asked(work, monkeypatch):
    save("d.npz", (3, 8, 8))
    words = ("data=npz", "data.path=d.npz", *QUICK)
    with monkeypatch.context() as earlier:
        reread(work, earlier)
        work.ok("gram", *words, "run_dir=old")
    assert list(RunDir.open("old").require("data")["image_shape"]) == [3, 8, 8]
    refused = work("run", *words, "run_dir=new")
    assert refused.code == 3
    assert "data.layout=NCHW" in refused.err
    work.ok("run", "run_dir=old")
    assert work.predictions("old").mean.shape[-2:] == (8, 2)
    work.ok("run", "run_dir=old")
    work.ok("run", *words, "data.layout=NHWC", "run_dir=told")  # shares the tiles of the first
    assert work.receipt("told", "gram")["computed"] == 0


def test_the_old_key_of_a_source_is_known(tmp_path):
    save(tmp_path / "d.npz")
    config = RunConfig(data=DataConfig(kind="npz", path=str(tmp_path / "d.npz")))
    old, new = source_key(config, reading=1), source_key(config)
    assert old != new
    assert same_source(config, old)
    assert same_source(config, new)
    assert not same_source(config, None)
    np.savez(tmp_path / "d.npz", other=np.ones(3))
    assert not same_source(config, old)


def test_a_layout_and_the_transposed_array_share_a_store(work):
    save("last.npz", (8, 7, 3))
    with np.load("last.npz") as file:
        arrays = dict(file)
    np.savez("first.npz", **{k: v.transpose(0, 3, 1, 2) if k.startswith("x") else v for k, v in arrays.items()})
    work.ok("run", "data=npz", "data.path=last.npz", *QUICK, "run_dir=a")
    work.ok("run", "data=npz", "data.path=first.npz", "data.layout=NCHW", *QUICK, "run_dir=b")
    assert work.receipt("b", "gram")["computed"] == 0
    np.testing.assert_array_equal(work.predictions("a").mean, work.predictions("b").mean)


@pytest.mark.parametrize("again", [False, True], ids=["first", "found prepared"])
def test_notes_on_the_data_are_told_and_kept(work, again):
    x = np.random.default_rng(1).random((24, 4, 4, 1))
    x[5] = np.nan
    save("d.npz", x_train=x, y_test=np.zeros(8, int))
    words = ("data=npz", "data.path=d.npz", "data.drop_invalid=true", *QUICK)
    if again:
        work.ok("gram", *words, "run_dir=earlier")
    done = work.ok("run", *words, "run_dir=r")
    kept = work.predictions("r").attributes["warnings"]
    for text in ("dropped 1 of 24 images in x_train", "classes without test points: 1"):
        assert text in done.err
        assert any(text in note for note in kept)


def test_records_of_before_have_no_notes(work):
    save("d.npz")
    words = ("data=npz", "data.path=d.npz", *QUICK)
    work.ok("gram", *words, "run_dir=a")
    (file,) = work.objects("data/sources/*.json")
    record = unsealed(json.loads(file.read_text()))
    assert record is not None
    del record["notes"]
    file.write_text(json.dumps(sealed(record)))
    work.ok("run", *words, "run_dir=b")
