"""Files of the working directory that are called like libraries, and modules that end the process which imports them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ntkpipe.cluster.outcome import given_up, staying
from ntkpipe.errors import ResourceError
from ntkpipe.tasks.graph import Task

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMANDS = {
    "script": ["-P", "-c", "from ntkpipe.cli.main import entry; entry()"],
    "module": ["-m", "ntkpipe"],
}


@pytest.mark.parametrize(("start", "cluster"), [("script", "local"), ("module", "serial")])
def test_files_called_like_libraries_are_not_imported(tmp_path, start, cluster):
    x = np.random.default_rng(0).normal(size=(30, 4))
    np.savez(tmp_path / "d.npz", x_train=x[:20], y_train=np.arange(20) % 2, x_test=x[20:], y_test=np.arange(10) % 2)
    for name in ("numpy", "zarr", "jax", "scipy", *(("ntkpipe", "ray") if start == "script" else ())):
        (tmp_path / f"{name}.py").write_text("import sys; sys.exit('a script of mine')")
    words = ["run", f"cluster={cluster}", "cluster.workers=1", "data=npz", "data.path=d.npz", "predict.times=[inf]"]
    done = subprocess.run([sys.executable, *COMMANDS[start], *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_workers_import_what_their_driver_does_and_nothing_else(session, tmp_path, monkeypatch):
    from ntkpipe.cluster.imports import job_config

    here, elsewhere = str(tmp_path / "here"), str(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [here, *sys.path])
    config = job_config()
    config._py_driver_sys_path.extend([here, elsewhere])
    assert config._py_driver_sys_path == [here]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # of a notebook: the working directory, on purpose
    config._py_driver_sys_path.extend([os.getcwd()])
    assert config._py_driver_sys_path == [here, os.getcwd()]


def test_a_module_that_ends_its_process_is_named_and_not_called_a_lack_of_memory(session, tmp_path):
    (tmp_path / "leaving.py").write_text("import sys\n\nsys.exit('a script of mine')\n")
    path = str(tmp_path)

    def imports_it():
        sys.path.insert(0, path)
        import leaving  # noqa: F401

    (result,) = session.run([Task("leaves", imports_it)])
    assert isinstance(result.error, ResourceError)
    assert str(tmp_path / "leaving.py") in str(result.error)
    assert "a script of mine" in str(result.error)
    assert "memory" not in str(result.error)


def test_staying_passes_on_what_is_returned_and_raised():
    with pytest.raises(ValueError, match="as it is"), staying():
        raise ValueError("as it is")


def test_a_worker_that_died_without_a_word_is_not_said_to_have_had_no_memory():
    from ray import exceptions as rx

    assert "without an error message" in str(given_up("w", 3, rx.WorkerCrashedError()))
    assert "killed by Ray for lack of memory" in str(given_up("w", 3, rx.OutOfMemoryError("x")))
    assert "more stable nodes" in str(given_up("w", 3, rx.LocalRayletDiedError()))
