"""The notebooks run to their end, their pages show their code, and objects are short in notebooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ntkpipe as nk

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT.parent / "shared" / "data" / "cifar10_subset.npz"
NOTEBOOKS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.read_text().startswith("# %%"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    needs_images = "CIFAR10_NPZ" in path.read_text()
    if needs_images and not IMAGES.exists():
        pytest.skip("needs CIFAR-10 images")
    known = {**os.environ, "MPLBACKEND": "agg", "CIFAR10_NPZ": str(IMAGES)}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_notebook_without_its_data_says_so(tmp_path):
    known = {**os.environ, "MPLBACKEND": "agg", "CIFAR10_NPZ": "nowhere.npz"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "images.py"], cwd=tmp_path, env=known, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("skipped: nowhere.npz is not there. Set CIFAR10_NPZ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_of_a_notebook_has_its_cells_and_figures(path):
    """`make notebooks` writes the pages; a changed notebook needs it again."""
    page = ROOT / "docs" / "examples" / f"{path.stem}.md"
    text, at = page.read_text(), 0
    for kind, cell in re.findall(
        r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", path.read_text(), re.DOTALL | re.MULTILINE
    ):
        cell = re.sub(r"^# ?", "", cell, flags=re.MULTILINE) if kind else cell.replace("  # fmt: skip", "")
        at = text.replace("  # fmt: skip", "").index(cell.strip(), at)
    figures = re.findall(r"!\[Figure\]\((.*?)\)", text)
    assert figures
    assert all((page.parent / figure).stat().st_size > 5000 for figure in figures)
    assert {one.name for one in (page.parent / f"{path.stem}_files").iterdir()} == {Path(one).name for one in figures}


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
