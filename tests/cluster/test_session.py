from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import ntkpipe
from ntkpipe.cluster import session
from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.environment import worker_environment
from ntkpipe.tasks.serial import SerialExecutor


def test_workers_import_this_package_and_keep_the_users_path(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    variables = worker_environment(2)
    assert variables["NPROC"] == "2"
    root, rest = variables["PYTHONPATH"].split(":", 1)
    assert Path(root) == Path(ntkpipe.__file__).resolve().parents[1]
    assert rest == "/somewhere/else"


def test_serial_needs_no_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from ntkpipe.cluster.session import open_executor\n"
        "from ntkpipe.config import ClusterConfig\n"
        "from ntkpipe.tasks import faults\n"
        "from ntkpipe.tasks.graph import Task\n"
        "with open_executor(ClusterConfig(kind='serial')) as executor:\n"
        "    print([r.value for r in executor.run([Task(0, faults.echo, (5,))])])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[5]"


def test_a_serial_executor_reports_the_workers_of_its_configuration() -> None:
    with session.open_executor(ClusterConfig(kind="serial", workers=3)) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.workers == 3


def test_folders_of_killed_sessions_are_removed_and_others_stay(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(tmp_path))
    for name, age in (("ntk-ray-dead", 7200), ("ntk-ray-living", 7200), ("ntk-ray-young", 0), ("other", 7200)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "alive").touch()
        (folder / "log").touch()
        os.utime(folder, (time.time() - age, time.time() - age))
    (tmp_path / "ntk-ray-empty").mkdir()
    os.utime(tmp_path / "ntk-ray-empty", (0, 0))  # not ours to judge: it has no lock
    with (tmp_path / "ntk-ray-living" / "alive").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        session._sweep()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ntk-ray-empty", "ntk-ray-living", "ntk-ray-young", "other"]
