"""`ntkpipe spectrum`: text, tables and a figure of a stored run; the same from Python."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from lab import QUICK, Lab
from PIL import Image

import ntkpipe as nk
from ntkpipe.dynamics.spectrum import default_sizes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("spectrum"))
    assert lab.command("gram", "run_dir=a", "predict.times=[inf]", "predict.ridges=[1e-3]", *QUICK) == 0
    return lab.path / "a"


def test_a_run_has_a_spectrum(command, run):
    code, out, _ = command("spectrum", f"run_dir={run}", "sizes=[10,30]")
    assert code == 0
    assert "60 points, all eigenvalues" in out
    assert "n =       30: predicted squared error" in out
    assert "It does not predict accuracy." in out
    made = {one["kernel"]: one for one in json.loads((run / "spectrum" / "spectrum.json").read_text())}
    assert set(made) == {"ntk", "nngp"}
    from_python = nk.open_run(run).spectrum("ntk")
    np.testing.assert_array_equal(made["ntk"]["eigenvalues"], from_python.eigenvalues)
    assert sum(made["ntk"]["label_energy"]) == pytest.approx(1.0)
    # At learning rate 1, a mode is learnt at n c / eigenvalue.
    np.testing.assert_allclose(made["ntk"]["learning_times"], 600.0 / from_python.eigenvalues, rtol=1e-12)
    with (run / "spectrum" / "learning_curve.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] == "ntk"]
    expected = from_python.learning_curve([10, 30])
    assert [float(row["test_mse"]) for row in rows] == [one.test_mse for one in expected]
    with (run / "spectrum" / "modes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 60
    with Image.open(run / "spectrum" / "spectrum.png") as image:
        assert min(image.size) > 600
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("probes=1", "probes=1 must be at least 2"),
        ("top=0", "top=0 must be at least 1"),
        ("kernel=gram", "kernel=gram is not one of the run's kernels"),
        ("sizes=[60]", "below the 60 points"),
        ("sizes=30", "must be a list of whole numbers"),
    ],
)
def test_what_is_refused(command, run, words, text):
    code, out, err = command("spectrum", f"run_dir={run}", *words.split())
    assert code == 2
    assert text in err
    assert "eigenvalues" not in out + err  # before anything is computed


def test_a_run_without_tiles_is_told_what_makes_them(command, tmp_path):
    code, _, err = command("spectrum", "run_dir=nowhere")
    assert code == 2
    assert "nowhere" in err
    assert command("spectrum")[0] == 2
    assert default_sizes(64) == [1, 2, 4, 8, 16, 32]
