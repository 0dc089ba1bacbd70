from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ntkpipe
from ntkpipe.cluster import session
from ntkpipe.config import ClusterConfig
from ntkpipe.tasks.serial import SerialExecutor


def test_workers_fill_the_cores_with_their_threads(monkeypatch) -> None:
    monkeypatch.setattr(session, "available_cores", lambda: 8)
    assert session.worker_count(ClusterConfig()) == 8
    assert session.worker_count(ClusterConfig(threads_per_worker=3)) == 2
    assert session.worker_count(ClusterConfig(threads_per_worker=16)) == 1
    assert session.worker_count(ClusterConfig(workers=5, threads_per_worker=2)) == 5


def test_workers_import_this_package_and_keep_the_users_path(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    variables = session.worker_environment(2)
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
