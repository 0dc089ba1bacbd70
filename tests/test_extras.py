"""Without optional packages: what works all the same, and the errors of what does not."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from lab import QUICK

from ntkpipe.errors import ConfigError, MissingExtraError
from ntkpipe.extras import EXTRAS, install, is_installed, require

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = f"""
import contextlib, importlib, importlib.abc, io, json, pkgutil, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(EXTRAS)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""

_MODULES = """
import ntkpipe
for name in ntkpipe.__all__:
    getattr(ntkpipe, name)
failed = []
for found in pkgutil.walk_packages(ntkpipe.__path__, "ntkpipe."):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            failed.append([found.name, str(error)])
print(json.dumps(failed))
"""

_COMMANDS = """
from ntkpipe.cli.main import main
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    said.append([code, out.getvalue() + err.getvalue()])
print(json.dumps(said))
"""

_PYTHON = """
import numpy as np
import ntkpipe as nk
from ntkpipe.errors import ConfigError

class Frame:
    columns, shape = ["a"], (3, 1)

predictions = nk.open_run(sys.argv[1]).predictions()
said = []
for use in (predictions.to_pandas, predictions.to_xarray, predictions.metrics, predictions.plot, nk.compare(sys.argv[1]).to_pandas,
            nk.compare(sys.argv[1]).plot, lambda: nk.Dataset(Frame(), np.zeros(3))):
    try:
        use()
        said.append("")
    except ConfigError as error:
        said.append(str(error))
print(json.dumps(said))
"""

RUN = ("experiment=digits_fcn", *QUICK, "predict.times=[1,inf]", "predict.kernels=[ntk]")

REFUSED = [
    (("run", "data=table", "data.path=numbers.csv", "data.target=y", "run_dir=a"), "tables"),
    (("plan", "data=image_folder", "data.path=pictures", "run_dir=a"), "images"),
    (("run", *RUN, "run_dir=a", "store.url=s3://nowhere/store"), "cloud"),
    (("export", "run_dir=run", "format=csv", "path=out.csv"), "tables"),
    (("export", "run_dir=run", "format=parquet", "path=out.parquet"), "tables"),
    (("predict", "run_dir=run", "data.new=new.npy"), "tables"),
    (("tune", *QUICK, "tune.w_std=[1,2]", "tune.size=20", "tune.by=held_out", "kernel=fcn"), "tune"),
]
DRAWN = [
    ("compare", "run", "path=compared"),
    ("phase", "kernel=fcn", "phase.w_std=[0.5,2,4]", "phase.b_std=[0,0.5,3]", "path=phase"),
    ("spectrum", "run_dir=run"),
]


def _python(code: str, *words: str, cwd: Path) -> list:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BLOCK + code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run that was made without any extra, and what the commands after it said."""
    path = tmp_path_factory.mktemp("bare")
    (path / "numbers.csv").write_text("x,y\n1,2\n3,4\n")
    (path / "pictures").mkdir()
    np.save(path / "new.npy", np.zeros((2, 8, 8, 1)))
    words = [("run", *RUN, "run_dir=run"), *(words for words, _ in REFUSED), *DRAWN]
    return path, _python(_COMMANDS, json.dumps(words), cwd=path)


def test_every_module_is_imported_without_extras_but_those_that_draw_and_decode(tmp_path):
    failed = dict(_python(_MODULES, cwd=tmp_path))
    drawing = {f"ntkpipe.report.{name}" for name in ("curves", "figures", "learning_page", "outcomes", "selecting")}
    drawing |= {name for name in failed if name.startswith("ntkpipe.report.") and name.endswith("_figure")}
    others = {"ntkpipe.data.image_decoding", "ntkpipe.linalg.fused", "ntkpipe.predictions.shown", "ntkpipe.sklearn"}
    assert set(failed) == drawing | others
    assert (
        failed["ntkpipe.sklearn"] == f"ntkpipe.sklearn needs scikit-learn, which is not installed: {install('sklearn')}"
    )


def test_a_run_without_extras_has_all_but_figures(folder):
    path, ((code, said), *_) = folder
    assert code == 0, said
    told = [line for line in said.splitlines() if "no figures are drawn" in line]
    assert len(told) == 1
    assert f"{install('report')}, then ntkpipe report run_dir=" in told[0]
    page = (path / "run/report/report.html").read_text()
    assert "Test accuracy" in page
    assert "pip install &quot;ntkpipe[report]&quot;" in page
    assert "<img" not in page
    assert not (path / "run/report/figures").exists()


@pytest.mark.parametrize(("words", "extra"), REFUSED)
def test_commands_that_need_an_extra_name_it(folder, words, extra):
    _, (_, *said) = folder
    code, text = said[[words for words, _ in REFUSED].index(words)]
    assert code == ConfigError.exit_code, text
    (error,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert "which is not installed: " + install(extra) in error
    assert "Traceback" not in text


@pytest.mark.parametrize("words", DRAWN)
def test_commands_that_draw_write_their_numbers(folder, words):
    path, said = folder
    code, text = said[1 + len(REFUSED) + DRAWN.index(words)]
    assert code == 0, text
    assert install("report") in text
    assert not list(path.rglob("*.png"))


def test_python_functions_that_need_an_extra_name_it(folder):
    path, _ = folder
    said = _python(_PYTHON, "run", cwd=path)
    extras = ["tables", "tables", "tables", "report", "tables", "report", "tables"]
    for text, extra in zip(said, extras, strict=True):
        assert "which is not installed: " + install(extra) in text


def test_the_error_is_one_of_imports_too():
    """Programs that try an import, pydoc among them, catch it."""
    with pytest.raises(ImportError, match=r'pip install "ntkpipe\[tune\]". Lists need nothing more$') as caught:
        _required_where_it_is_not()
    assert isinstance(caught.value, MissingExtraError)
    assert caught.value.exit_code == ConfigError.exit_code


def _required_where_it_is_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "optuna", None)
        assert not is_installed("optuna")
        require("optuna", "searching", "Lists need nothing more")


def test_every_extra_is_in_the_project_file_and_in_all():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) == set(extras) - {"all"}
    (everything,) = extras["all"]
    assert everything == f"ntkpipe[{','.join(name for name in extras if name != 'all')}]"


def test_importing_the_package_loads_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import ntkpipe; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ntkpipe"]


def test_the_public_names_are_shown():
    """By dir, help and completion in editors."""
    code = "import ntkpipe, pydoc; print(*dir(ntkpipe)); print('---'); print(pydoc.plain(pydoc.render_doc(ntkpipe)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, _, shown = done.stdout.partition("---")
    import ntkpipe

    assert set(ntkpipe.__all__) <= set(names.split())
    assert not [name for name in ntkpipe.__all__ if name not in shown and name != "__version__"]
