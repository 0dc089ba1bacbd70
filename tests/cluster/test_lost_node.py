"""Ray's own processes on the driver's node are killed: the run asks for another start, whoever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": 100 << 20, "include_dashboard": False, "num_cpus": 2}
# 4,000 points: the vectors of a pass, 290 kB, travel through Ray's shared memory, which is what ends a driver; and the solve goes on
# for many seconds, so that it is at work when that is seen.
RUN = (
    "data=synthetic",
    "data.n_train=4000",
    "data.n_test=50",
    "grid.edge=128",
    "kernel.dtype=float64",
    "solver=krylov",
)
RUN += (
    "predict.times=[10,inf]",
    "solver.tolerance=1e-12",
    "store.url=store",
    "run_dir=run",
    "cluster=ray",
    "watch.every=0.1",
)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One node, which does not outlive its test."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield made
    finally:
        made.shutdown()


def at_work(folder: Path, stage: str) -> bool:
    """Whether the run is in the middle of the stage."""
    if stage == "gram":
        return len(list(folder.glob("store/gram/*/receipts/train/*"))) >= 20
    progress = folder / "run" / "progress.json"
    if not progress.exists():
        return False
    said = json.loads(progress.read_text())
    return said["stage"] == "solve" and said.get("steps", 0) >= 1


def started(cluster: Any, folder: Path, stage: str) -> subprocess.Popen[str]:
    """A run in the middle of the stage."""
    run = subprocess.Popen(
        [sys.executable, "-m", "ntkpipe", "run", *RUN, f"cluster.address={cluster.address}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "10"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not at_work(folder, stage):
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            pytest.fail(f"the run was not seen in the middle of {stage}: {run.communicate()[1]}")
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(("stage", "with_head"), [("gram", True), ("solve", True), ("solve", False)])
def test_a_driver_whose_own_node_is_gone_asks_for_another_start(
    cluster: Any, tmp_path: Path, stage: str, with_head: bool
) -> None:
    run = started(cluster, tmp_path, stage)
    cluster.head_node.kill_raylet(check_alive=False)
    if with_head:
        cluster.head_node.kill_gcs_server(check_alive=False)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 75, err
    assert "stopped: " in err
    assert "no longer answers" in err
    assert "repeat the same command" in err


def test_a_driver_that_is_told_to_end_or_killed_leaves_nobody(cluster: Any, tmp_path: Path) -> None:
    """What is told is the process that waits for the driver."""
    run = started(cluster, tmp_path, "gram")
    (driver,) = psutil.Process(run.pid).children()
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 75, err
    assert "this run received SIGTERM" in err
    assert not driver.is_running()
    run = started(cluster, tmp_path, "solve")
    (driver,) = psutil.Process(run.pid).children()
    run.kill()
    run.communicate(timeout=120)
    psutil.wait_procs([driver], timeout=30)
    assert not driver.is_running()
