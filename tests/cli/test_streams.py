"""What surrounds a command: standard streams that are closed, full or read no more, narrow encodings, somebody else's matplotlib."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lab import Lab

from ntkpipe.cli.help import EXIT_CODES
from ntkpipe.errors import ReportError

RUN = (
    sys.executable, "-m", "ntkpipe", "run", "cluster=serial", "data=npz", "data.path=d.npz", "predict.times=[inf]",
    "predict.kernels=[ntk]", "data.standardize=none",
)  # fmt: skip
STAGES = {"data", "gram", "solve", "predict", "report"}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Images of two classes, and a run of which the report alone is left, to be copied."""
    lab = Lab(tmp_path_factory.mktemp("predicted"))
    x = np.random.default_rng(3).normal(size=(24, 5))
    y = (x[:, 0] > 0).astype(int)
    np.savez(lab.path / "d.npz", x_train=x[:16], y_train=y[:16], x_test=x[16:], y_test=y[16:])
    for stage in ("gram", "solve", "predict"):
        assert lab.command(stage, *RUN[4:], "run_dir=r") == 0
    return lab.path


@pytest.fixture
def folder(tmp_path, predicted):
    """That run, with a style that nobody here could draw in."""
    shutil.copytree(predicted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nonsense\nfont.family: No Such Font\n")
    return tmp_path


def run(folder, redirection="", *words, **environment):
    line = " ".join([*RUN, *words])
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {redirection}"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def finished(folder):
    return {path.stem for path in folder.glob("*/stages/*.json")}


@pytest.mark.parametrize(
    "back_end", [pytest.param("module://matplotlib_inline.backend_inline", marks=pytest.mark.slow), "nonsense"]
)
def test_neither_a_back_end_nor_a_style_nor_a_home_that_is_not_there_changes_a_report(folder, back_end):
    nowhere = {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    done = run(folder, "", "run_dir=r", MPLBACKEND=back_end, **nowhere)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (folder / "r" / "report" / "figures" / "training_curves.svg").exists()


@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param("<&- >&-", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
        pytest.param(">/dev/full 2>&1", marks=pytest.mark.slow),
    ],
)
def test_nobody_has_to_listen(folder, redirection):
    done = run(folder, redirection, "run_dir=r")
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (0, "", False), done.stderr
    assert finished(folder) == STAGES


def test_a_run_goes_on_when_its_reader_has_seen_enough(folder):
    shutil.rmtree(folder / "r")  # from its first stage on
    done = run(folder, "2>&1 | head -1", "run_dir=r")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert finished(folder) == STAGES


@pytest.mark.slow
def test_any_locale_will_do(folder):
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(folder, "", "run_dir=r", **ascii_only)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "∞" in (folder / "r" / "report" / "report.html").read_text(encoding="utf-8")
    code = "from ntkpipe.cli import streams; streams.settle(); print('0.1 \\u00b1 0.2')"
    printed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **ascii_only}, capture_output=True)
    assert (printed.returncode, printed.stdout) == (0, rb"0.1 \xb1 0.2" + b"\n")


def test_what_cannot_be_drawn_spoils_no_prediction_and_is_drawn_later(folder):
    # A matplotlib that fails on import, and in a sweep a run that comes after.
    broken = folder / "broken"
    broken.mkdir()
    (broken / "matplotlib.py").write_text("raise OSError('no libfreetype')")
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    shutil.rmtree(folder / "r")
    done = run(folder, "", "predict.train_sizes=[8,12]", "run_dir=r", PYTHONPATH=path)
    assert (done.returncode, "Traceback" in done.stderr) == (ReportError.exit_code, False), done.stderr
    for run_dir in ("r/train_size=8", "r/train_size=12"):
        assert (folder / run_dir / "predictions.zarr").exists()
        assert json.loads((folder / run_dir / "metrics.json").read_text())["entries"]
        assert f"ntkpipe report run_dir={run_dir}" in done.stderr
        assert not (folder / run_dir / "report").exists()
    assert "no libfreetype" in done.stderr
    assert (folder / "r" / "learning_curve.csv").exists()
    words = [sys.executable, "-m", "ntkpipe", "report", "run_dir=r"]
    mended = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert mended.returncode == 0, mended.stderr
    assert len(list(folder.glob("r/*/report/report.html"))) == 2
    assert (folder / "r" / "learning_curve.html").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named_and_no_traceback(folder):
    (folder / "r" / "report").write_text("in the way")
    done = run(folder, "", "run_dir=r")
    assert (done.returncode, "Traceback" in done.stderr) == (ReportError.exit_code, False), done.stderr
    assert ReportError.exit_code in EXIT_CODES
    (folder / "r" / "report").unlink()
    assert run(folder, "", "run_dir=r").returncode == 0
    assert finished(folder) == STAGES


def test_the_package_draws_without_the_back_end_of_the_environment_and_leaves_it_there():
    code = (
        "import os, sys, ntkpipe.run.stages; assert 'matplotlib' not in sys.modules\n"
        "from ntkpipe.report.drawing import drawing\n"
        "with drawing('again'):\n    from ntkpipe.report import page\n"
        "import matplotlib; assert matplotlib.rcParams['backend'] == 'svg' == os.environ['MPLBACKEND']"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "svg"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
