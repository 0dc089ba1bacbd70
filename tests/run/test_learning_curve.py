"""Several training sizes: ordinary runs on leading blocks of one Gram matrix, and the learning curve that they give."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from ntkpipe import open_run
from ntkpipe.errors import ConfigError

QUICK = ("cluster=serial", "data=digits", "data.test_size=40", "grid.edge=32")
WORDS = ("predict.times=[10,inf]", "predict.kernels=[nngp]", "predict.ridges=[1e-4]", *QUICK)


def test_without_a_report_the_command_that_writes_the_curve_is_named(work):
    found = work.ok("run", "run_dir=c", "predict.train_sizes=[20,30]", "report=false", *WORDS)
    assert "ntkpipe report run_dir=c writes the learning curve" in found.out
    work.ok("report", "run_dir=c")
    assert (work.path / "c/learning_curve.csv").exists()


def test_sizes_are_ordinary_runs_on_one_matrix(work, drawn):
    found = work.ok("run", "run_dir=c", "predict.train_sizes=[70,30,50]", *WORDS)
    computed = [work.receipt(f"c/train_size={n}", "gram") for n in (30, 50, 70)]
    # 30 rows are one row of tiles, 50 are two, 70 three: train, and two rows of test tiles.
    assert [one["computed"] for one in computed] == [3, 2 + 2, 3 + 2]
    assert [one["reused"] for one in computed] == [0, 3, 3 + 2 + 2]
    work.ok("run", "run_dir=alone", "data.train_size=50", *WORDS)
    assert work.receipt("alone", "gram")["computed"] == 0
    np.testing.assert_array_equal(work.predictions("alone").mean, work.predictions("c/train_size=50").mean)

    assert "n=70" in found.out
    with (work.path / "c/learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["point"] for row in rows} == {"inf", "best"}
    for n in (30, 50, 70):
        entries = json.loads((work.path / f"c/train_size={n}/metrics.json").read_text())["entries"]
        (row,) = [row for row in rows if row["train_size"] == str(n) and row["point"] == "inf"]
        assert float(row["accuracy"]) == pytest.approx(entries[-1]["accuracy"], abs=1e-12)
        assert float(row["mse"]) == pytest.approx(entries[-1]["mse"], rel=1e-12)
        best = [row for row in rows if row["train_size"] == str(n) and row["point"] == "best" and row["accuracy"]]
        assert float(best[0]["accuracy"]) == pytest.approx(max(e["accuracy"] for e in entries), abs=1e-12)
    laws = json.loads((work.path / "c/learning_curve.json").read_text())
    assert all(law["fit"]["exponent"] > 0 for law in laws if law["measure"] == "mse")
    page = (work.path / "c/learning_curve.html").read_text()
    assert "Scaling laws" in page
    assert "data:image/" in page
    for name in ("png", "svg"):
        assert (work.path / f"c/learning_curve.{name}").stat().st_size > 5000


def test_the_folder_of_a_sweep_is_looked_after_as_a_whole(work):
    words = ("run_dir=c", "predict.train_sizes=[30,50]", *WORDS)
    work.ok("gram", *words)
    found = work("status", "run_dir=c")
    assert found.code == 4
    assert "sweep over train_size, 0 of 2 finished" in found.out
    # Named alone, the folder knows what it was started with.
    assert "a power law needs at least 3 sizes" in work.ok("run", "run_dir=c").out
    assert "sweep over train_size, 2 of 2 finished" in work.ok("status", "run_dir=c").out
    # One more size goes on from there, and the curve has all of them.
    work.ok("run", "run_dir=c", "predict.train_sizes=[30,50,70]", *WORDS)
    (work.path / "c/learning_curve.html").unlink()
    assert "n=30       n=50       n=70" in work.ok("report", "run_dir=c").out
    assert (work.path / "c/learning_curve.html").exists()


def test_the_folder_of_depths_too(work):
    work.ok("run", "run_dir=d", "kernel.readout_depths=[2,1]", "data.train_size=40", *WORDS)
    assert "sweep over depth, 2 of 2 finished" in work.ok("status", "run_dir=d").out
    (work.path / "d/depths.csv").unlink()
    assert "depth 2" in work.ok("report", "run_dir=d").out
    assert (work.path / "d/depths.csv").exists()
    (work.path / "d/sweep.json").write_text("{")
    assert "repeat the sweep's command" in work("status", "run_dir=d").err
    (work.path / "d/sweep.json").unlink()
    assert "runs, 2 of 2 finished" in work.ok("status", "run_dir=d").out


def test_sizes_of_a_given_kernel_and_of_recomputed_tiles(work):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 5))
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 5) + 1e-3 * np.eye(80)
    np.save("K.npy", k[:60, :60])
    np.save("KT.npy", k[60:, :60])
    np.savez("y.npz", y_train=x[:60, 0], y_test=x[60:, 0])
    words = (
        "cluster=serial",
        "kernel=gram",
        "kernel.train=K.npy",
        "kernel.test=KT.npy",
        "data=labels",
        "data.path=y.npz",
    )
    work.ok(
        "run", "run_dir=a", *words, "data.labels=regression", "predict.times=[inf]", "predict.train_sizes=[15,30,60]"
    )
    laws = json.loads((work.path / "a/learning_curve.json").read_text())
    assert [law["measure"] for law in laws] == ["mse"]
    values = laws[0]["values"]
    assert values[0] > values[2]
    work.ok("run", "run_dir=b", "predict.train_sizes=[30,60]", "store.gram=recompute", *WORDS)
    assert work.chunks() == []


def test_the_plan_is_that_of_the_largest(work):
    found = work.ok("plan", "predict.train_sizes=[30,70]", *WORDS).out
    assert "the largest alone" in found
    assert "70 x 70" in found
    assert not (work.path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("predict.train_sizes=[30,30]",), "each size once"),
        (("predict.train_sizes=[1,30]",), "must be at least 2"),
        (("predict.train_sizes=[20,30]", "data.train_size=40"), "leave data.train_size out"),
        (("predict.train_sizes=[20,30]", "data.statistics=subset"), "data.statistics=full"),
        (("predict.train_sizes=[20,30]", "kernel.readout_depths=[1,2]"), "separate sweeps"),
    ],
)
def test_what_is_no_sweep_is_refused(work, words, text):
    found = work("run", "run_dir=c", *QUICK, *words)
    assert found.code == ConfigError.exit_code
    assert text in found.err
    assert not (work.path / "c").exists()


def test_theory_stands_beside_what_is_measured(work):
    """Squared errors that the largest run's spectrum predicts, at every smaller size, in a table and on the page."""
    words = ("predict.times=[inf]", "predict.kernels=[ntk]", "predict.ridges=[1e-4]", *QUICK)
    work.ok("run", "run_dir=t", "predict.train_sizes=[120,60]", "predict.theory=true", *words)
    with (work.path / "t/learning_theory.csv").open() as file:
        rows = {int(row["train_size"]): float(row["predicted_mse"]) for row in csv.DictReader(file)}
    assert list(rows) == [60]
    expected = open_run(work.path / "t/train_size=120").spectrum("ntk").learning_curve([60])
    assert list(rows.values()) == [one.test_mse for one in expected]
    page = (work.path / "t/learning_curve.html").read_text()
    assert "not accuracy" in page
    with (work.path / "t/learning_extrapolated.csv").open() as file:
        further = list(csv.DictReader(file))
    assert [int(row["train_size"]) for row in further] == [240, 480, 960]
    for row in further:
        low, value, high = (float(row[name]) for name in ("low", "extrapolated_mse", "high"))
        assert low <= value <= high
        assert f"{value:.4f}" in page
    work.ok("run", "run_dir=alone", "data.train_size=60", *words)
    np.testing.assert_array_equal(work.predictions("alone").mean, work.predictions("t/train_size=60").mean)


def test_theory_needs_several_sizes(work):
    found = work("run", "run_dir=u", "predict.theory=true", *QUICK)
    assert found.code == 2
    assert "set predict.train_sizes" in found.err
