"""Runs side by side, at the end of a sweep, by command and from Python."""

from __future__ import annotations

import contextlib
import csv
import io

import numpy as np
import pytest
from lab import QUICK, Lab

import ntkpipe as nk
from ntkpipe.errors import ConfigError
from ntkpipe.run.compare import Comparison

WORDS = ("run", "--multirun", *QUICK, "predict.times=[1,inf]", "report=false", "run_dir=s")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, request):
    """A sweep over two depths and one that is none; what it printed."""
    lab = Lab(tmp_path_factory.mktemp("sweep"))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture(in_=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = lab.command(*WORDS, "kernel.depth=1,-1,2")
    capture.resume_global_capture()
    return lab, code, out.getvalue()


def test_a_sweep_ends_with_one_table_and_what_failed(swept):
    lab, code, out = swept
    assert code == 2
    table, failed = out.split("1 of 3 jobs failed")
    assert "kernel.depth=-1 must be at least 0" in failed
    heads, *rows = [line.split() for line in table.splitlines() if line.startswith(("run ", "depth="))]
    assert heads[:4] == ["run", "kernel.depth", "kernel", "accuracy"]
    assert sorted(row[0] for row in rows) == ["depth=1", "depth=1", "depth=2", "depth=2"]
    assert [float(row[3]) for row in rows] == sorted((float(row[3]) for row in rows), reverse=True)
    assert {path.name for path in (lab.path / "s").glob("compare.*")} == {
        f"compare.{ending}" for ending in ("csv", "tex", "html", "png", "svg")
    }


def test_the_table_is_that_of_the_metrics(swept):
    lab, _, _ = swept
    made = nk.compare(lab.path / "s")
    assert made.settings == ("kernel.depth",)
    assert made.measure == "accuracy"
    for row in made.rows:
        entries = [e for e in lab.metrics(f"s/{row['run']}")["entries"] if e["kernel"] == row["kernel"]]
        assert row["value"] == max(e["accuracy"] for e in entries)
        assert row["last"] == entries[-1]["accuracy"]
    frame = made.to_pandas()
    assert list(frame.columns) == [
        "run",
        "kernel.depth",
        "kernel",
        "accuracy",
        "time",
        "ridge",
        "last",
        "max_error_bound",
    ]
    (first, *_) = csv.DictReader(io.StringIO(made.to_csv()))
    assert float(first["accuracy"]) == made.rows[0]["value"]
    assert made.to_latex().count("\\\\\n") == 5
    assert made.to_html().count("<tr>") == 5
    assert len(made.plot().axes[0].lines) == 4


def test_by_command(swept, capsys):
    lab, _, _ = swept
    (lab.path / "empty").mkdir(exist_ok=True)
    capsys.readouterr()
    assert lab.command("compare", "s/depth=1", "s/depth=2", "empty", "path=side") == 0
    out = capsys.readouterr().out
    assert "empty: run_dir=empty is not a run" in out
    assert (lab.path / "side" / "compare.png").exists()
    page = (lab.path / "side" / "compare.html").read_text()
    assert page.count("<tr>") == 5
    assert "data:image/svg+xml" in page
    assert "empty: run_dir=empty is not a run" in page
    assert lab.command("compare") == 2
    assert lab.command("compare", "empty") == 2


def test_a_run_alone_and_nothing(swept):
    lab, _, _ = swept
    run = nk.open_run(lab.path / "s" / "depth=1")
    made = nk.compare(run)
    assert (made.settings, len(made.rows)) == ((), 2)
    assert made.labels() == ["depth=1, " + row["kernel"] for row in made.rows]
    with pytest.raises(ConfigError, match="no run to compare has results"):
        nk.compare([])


def test_numbers_that_may_be_wrong_are_marked():
    row = {
        "run": "a",
        "kernel": "ntk",
        "value": 0.9,
        "time": 10.0,
        "ridge": 0.0,
        "last": 0.8,
        "max_error_bound": np.inf,
    }
    made = Comparison("accuracy", (), (row | {"doubts": {"last": "minimum_norm"}},), (((10.0, 0.9),),))
    heads, cells = made.cells()
    assert dict(zip(heads, cells, strict=True))["last"] == "0.8*"
    assert dict(zip(heads, cells, strict=True))["accuracy"] == "0.9"
    assert "* directions below the rounding error are left out" in str(made)
    assert "0.8*" not in made.to_csv()
