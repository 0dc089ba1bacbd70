"""The examples run to their end, and what they show is short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ntkpipe as nk

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT.parent / "shared" / "data" / "cifar10_subset.npz"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    if "CIFAR10_NPZ" in path.read_text() and not IMAGES.exists():
        pytest.skip("needs CIFAR-10 images")
    known = {**os.environ, "MPLBACKEND": "agg", "CIFAR10_NPZ": str(IMAGES)}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_objects_are_short_and_figures_are_pictures():
    data = nk.load_dataset("digits", train_size=30, test_size=10)
    gram = nk.Gram(nk.zoo.fcn(depth=1), data)
    gram.compute()
    for solver in (nk.Eigh(), nk.Krylov()):
        solution = solver.solve(gram.train("ntk"), data.targets, ridges=[0.1, 1])
        assert repr(solution).endswith(
            "Solution(ntk of 30 training points, 10 outputs; all times; ridges 0.1, 1 (relative))"
        )
    predictions = solution.predict(gram.test("ntk"), times=[1, nk.inf], covariance="diagonal")
    made = repr(predictions)
    assert made.startswith("Predictions(ntk: 2 times, 2 ridges, 10 test points, 10 classes; mean, error_bound, ")
    assert "variance" in made
    assert predictions.plot()._repr_png_().startswith(b"\x89PNG")
    assert "5 features, 2 outputs" in repr(nk.Dataset([[0.0] * 5] * 4, [0, 1, 0, 1], test_fraction=0.5))
