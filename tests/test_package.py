"""What a package index gets: built, checked, installed somewhere else, and run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def _python(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel that is made of it alone."""
    folder = tmp_path_factory.mktemp("dist")
    _python("-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")
    _python("-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(source), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("elsewhere")
    (wheel,) = built.glob("*.whl")
    _python(
        "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target), str(wheel), cwd=target
    )
    return target


def test_an_index_takes_both_files(built):
    _python("-m", "twine", "check", "--strict", *map(str, sorted(built.iterdir())), cwd=built)


def test_the_description_has_no_link_that_leads_nowhere(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        description = archive.read(name).decode().partition("\n\n")[2]
    assert description.startswith("# ntkpipe")
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "(`docs/tutorial.md`)" in description


def test_the_wheel_runs_from_an_empty_folder(installed, tmp_path):
    environment = {"PYTHONPATH": str(installed)}
    where = _python("-c", "import ntkpipe; print(ntkpipe.__file__)", cwd=tmp_path, **environment)
    assert Path(where.strip()).parent == installed / "ntkpipe"
    words = ("run", "experiment=digits_fcn", "cluster=serial", "run_dir=run")
    assert "report" in _python("-m", "ntkpipe", *words, cwd=tmp_path, **environment)
    assert (tmp_path / "run" / "report" / "report.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_the_wheel_has_templates_of_jobs_and_texts_of_settings(installed, tmp_path):
    environment = {"PYTHONPATH": str(installed)}
    launch = ("launch", "experiment=digits_fcn", "cluster/launch=slurm", "cluster.launch.nodes=2", "run_dir=run")
    _python("-m", "ntkpipe", *launch, cwd=tmp_path, **environment)
    assert "ntkpipe" in (tmp_path / "run" / "launch" / "ntkpipe.sbatch").read_text()
    assert "hidden layers" in _python("-m", "ntkpipe", "help", "kernel.depth", cwd=tmp_path, **environment)
