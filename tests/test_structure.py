"""The rules of the house that no single room can test: who may import what, and what an import drags in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = """
import sys

class Block:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{{name}} is blocked")
        return None

sys.meta_path.insert(0, Block())
import importlib, pkgutil
for name in {modules!r}:
    module = importlib.import_module(name)
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), name + "."):
        if found.name not in ("ntkpipe.sklearn", "ntkpipe.stax"):  # asked for by name alone
            importlib.import_module(found.name)
"""

HEAVY = ("ray", "zarr", "hydra", "omegaconf", "obstore", "pandas", "pyarrow", "matplotlib", "sklearn", "xarray", "PIL")


@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (("ntkpipe",), (*HEAVY, "jax", "scipy", "numpy")),
        (
            ("ntkpipe.config", "ntkpipe.errors", "ntkpipe.tiles.grid", "ntkpipe.gram.plan", "ntkpipe.planning.tiles"),
            (*HEAVY, "jax", "scipy"),
        ),
        (("ntkpipe.tasks",), (*HEAVY, "jax", "scipy")),
        (("ntkpipe.kernels", "ntkpipe.gram.worker"), HEAVY),
        (("ntkpipe.propagation",), HEAVY),
        (("ntkpipe.finite",), HEAVY),
        (("ntkpipe.linalg",), HEAVY),
        (("ntkpipe.dynamics", "ntkpipe.stax"), HEAVY),
        (("ntkpipe.sklearn",), ("ray", "zarr", "hydra", "omegaconf", "obstore", "matplotlib", "xarray")),
        (("ntkpipe.storage",), (*HEAVY, "jax")),
        (("ntkpipe.predictions", "ntkpipe.report"), ("ray", "hydra", "omegaconf", "jax")),
        (("ntkpipe.solvers", "ntkpipe.uncertainty", "ntkpipe.run"), ("ray", "hydra", "omegaconf")),
    ],
)
def test_rooms_import_without_what_they_do_not_need(modules: tuple[str, ...], blocked: tuple[str, ...]) -> None:
    code = _BLOCK.format(names=set(blocked), modules=list(modules))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_imports_go_downward_only() -> None:
    # Not `lint-imports` by name: the script may not be on the PATH of a test run.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_launcher_has_its_template() -> None:
    from ntkpipe.cluster.templates import TEMPLATES
    from ntkpipe.config import LAUNCHERS

    assert set(TEMPLATES) == set(LAUNCHERS) - {"none"}
    found = {
        str(path.relative_to(ROOT / "jobs")) for path in (ROOT / "jobs").rglob("*.*") if "__pycache__" not in path.parts
    }
    assert found == {*TEMPLATES.values(), "ntkpipe_job.py"}


def test_no_command_imports_matplotlib_before_it_draws():
    """Its import fails where the environment names a back end that is not there, as notebooks do."""
    code = (
        "import sys, ntkpipe.cli.compose, ntkpipe.cli.stored, ntkpipe.cli.main; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
