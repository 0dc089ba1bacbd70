"""Several depths of one network: ordinary runs, whose tiles come out of one evaluation."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from ntkpipe.errors import ConfigError
from ntkpipe.gram.worker import Evaluation


def test_depths_are_ordinary_runs_that_share_one_evaluation(work, monkeypatch):
    evaluated: list[int] = []
    tile = Evaluation.tile

    def watched(self, *args, **kwargs):
        evaluated.append(len(self.wanted))
        return tile(self, *args, **kwargs)

    monkeypatch.setattr(Evaluation, "tile", watched)
    words = ("kernel.dtype=float64", "predict.times=[100,inf]", *work.quick)
    found = work.ok("run", "run_dir=d", "kernel.readout_depths=[1,3]", *words)
    tiles = work.receipt("d/depth=1", "gram")["computed"]
    assert tiles == 5
    # Once for both depths; later depths find theirs. Other calls are of the sampled rows, each of one network.
    assert [n for n in evaluated if n > 1] == [2] * tiles
    assert work.receipt("d/depth=3", "gram")["reused"] == tiles
    assert "depth 3   ntk" in found.out
    with (work.path / "d/depths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    metrics = json.loads((work.path / "d/depth=3/metrics.json").read_text())["entries"]
    assert [float(r["accuracy"]) for r in rows if r["depth"] == "3"] == [entry["accuracy"] for entry in metrics]

    # A plain run of one of the depths finds its tiles, in the same store.
    evaluated.clear()
    work.ok("run", "run_dir=plain", "kernel.depth=3", *words)
    assert work.receipt("plain", "gram")["computed"] == 0
    np.testing.assert_array_equal(work.predictions("plain").mean, work.predictions("d/depth=3").mean)
    # And one in a store of its own computes the same to rounding.
    work.ok("run", "run_dir=alone", "kernel.depth=3", "store.url=other", *words)
    np.testing.assert_allclose(work.predictions("alone").mean, work.predictions("d/depth=3").mean, rtol=0, atol=1e-10)
    # The runs can be taken up by themselves, and together; folders with an equals sign in their name can be named.
    assert "nothing to do" in work.ok("run", "run_dir=d/depth=1").err
    again = work.ok("run", "run_dir=d", "kernel.readout_depths=[1,3]", *words)
    assert again.err.count("nothing to do") == 2


def test_a_depth_that_is_stored_already_is_not_written_again(work):
    work.ok("gram", "run_dir=a", "kernel.depth=2", *work.quick)
    before = {p: p.stat().st_mtime_ns for p in work.chunks()}
    work.ok("gram", "run_dir=d", "kernel.readout_depths=[4,2,1]", *work.quick)
    assert len(work.chunks()) == 3 * len(before)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert work.receipt("d/depth=4", "gram")["computed"] == work.receipt("a", "gram")["computed"]
    assert work.receipt("d/depth=2", "gram")["computed"] == 0


def test_depths_and_flips_together(work):
    words = ("augment=hflip", "solver=cholesky", "predict.times=[inf]", "predict.covariance=diagonal", *work.quick)
    work.ok("run", "run_dir=d", "kernel.readout_depths=[2,1]", "kernel.dtype=float64", *words)
    work.ok("run", "run_dir=a", "kernel.depth=1", "kernel.dtype=float64", "store.url=other", *words)
    assert len(work.receipt("d/depth=2", "gram")["stores"]) == 4
    found, wanted = work.predictions("d/depth=1"), work.predictions("a")
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=0, atol=1e-10 * wanted.variance.max())


def test_the_plan_says_what_is_shared(work):
    one, three = (
        work.ok("plan", *work.quick, word).out for word in ("kernel.depth=5", "kernel.readout_depths=[1,5,3]")
    )
    assert "3: depth 1, depth 5, depth 3; from one evaluation of a pair" in three

    def line(text: str, name: str) -> str:
        return next(row for row in text.splitlines() if row.startswith(name))

    assert line(one, "arithmetic") == line(three, "arithmetic")
    assert line(one, "disk") != line(three, "disk")
    assert "stores" not in one
    assert not (work.path / "runs").exists()


def test_convolutional_families_share_too(work):
    words = ("kernel=cnn_vec", "data.train_size=20", "data.test_size=5", *work.quick[:2], "grid.edge=32")
    work.ok("gram", "run_dir=d", "kernel.readout_depths=[1,2]", *words)
    work.ok("gram", "run_dir=a", "kernel.depth=2", *words)
    assert work.receipt("a", "gram")["computed"] == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("kernel=myrtle5", "kernel.readout_depths=[1,3]"), "is only for fcn, cnn_vec, cnn_gap, cntk"),
        (("kernel.readout_depths=[1,1]",), "each depth once"),
        (("kernel.readout_depths=[1,-1]",), "must be at least 0"),
        (("kernel.readout_depths=[1,2]", "store.name=mine"), "store.name names one Gram store"),
    ],
)
def test_what_has_no_depths_is_refused(work, words, text):
    found = work("run", "run_dir=d", *work.quick, *words)
    assert found.code == ConfigError.exit_code
    assert text in found.err
    assert not (work.path / "d").exists()
