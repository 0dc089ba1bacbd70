"""A Ray Job on a head of our own with a token: launched, finished, and refused to whom has none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("opencensus") is None, reason='no dashboard here: pip install "ntkpipe[cluster]"'),
]


@dataclass
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path("/tmp") / f"ntj{os.getpid()}"  # sockets want short names
    folder.mkdir()
    (folder / "token").write_text("a token of this test, thirty-two characters or more")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.2", 0))
        two.bind(("127.0.0.1", 0))
        port, dashboard = one.getsockname()[1], two.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {
        **clean,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    options = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={folder}/ray",
    ]
    # Ray's fixed port of the agent may be taken, by another cluster say. The agent would then never take a job.
    options += ["--dashboard-agent-listen-port=0"]
    options += ["--node-ip-address=127.0.0.2", "--num-cpus=2", "--object-store-memory=100000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", dashboard), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield Head(f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.terminate()  # with --block it stops what it has started
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def ntkpipe(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ntkpipe", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_a_launched_job_runs_to_its_end(head: Head, tmp_path: Path) -> None:
    words = ("data=digits", "data.train_size=200", "data.test_size=50", "store.url=store", "run_dir=run")
    launched = ("cluster/launch=ray", f"cluster.launch.address={head.dashboard}", "submit=true")
    done = ntkpipe(tmp_path, head.environment, "launch", *words, *launched)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "submitted: ntkpipe"
    deadline = time.monotonic() + PATIENCE
    while ntkpipe(tmp_path, head.environment, "status", "run_dir=run").returncode:
        assert time.monotonic() < deadline
        time.sleep(1.0)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["cluster"]["kind"] == "ray"
    # A second job of the same name is not a second run of the same folder.
    again = ntkpipe(tmp_path, head.environment, "launch", *words, *launched)
    assert again.returncode == 8
    assert "ntkpipe" in again.stderr


def test_without_a_token_nothing_is_joined_and_nothing_submitted(head: Head, tmp_path: Path) -> None:
    bare = {k: v for k, v in head.environment.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = ntkpipe(tmp_path, bare, "run", "data=digits", "cluster=ray", f"cluster.address={head.address}")
    assert done.returncode == 8, done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    launched = ("cluster/launch=ray", f"cluster.launch.address={head.dashboard}", "submit=true")
    assert ntkpipe(tmp_path, bare, "launch", "data=digits", *launched).returncode == 8
