"""A cluster of several nodes on this machine: joined, changed while it works, and lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkpipe.predictions.read import read_predictions

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for another name of the outward interface
NODE = {"node_ip_address": LOOPBACK, "object_store_memory": 100 << 20, "include_dashboard": False}
# Some 130 tiles, and some 400 passes over them.
RUN = ("data=digits", "data.train_size=1000", "data.test_size=20", "grid.edge=64", "kernel.dtype=float64")
RUN += ("predict.times=[10,inf]", "solver.tolerance=1e-9", "store.url=store")
PATIENCE = 180.0  # half a minute on an idle machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that holds one task; tests add nodes. Everything listens on loopback."""
    from ray.cluster_utils import Cluster

    # A dead node is found in a second instead of ten.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 1, "_system_config": health})
    try:
        yield made
    finally:
        made.shutdown()


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ntkpipe", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for its end and exit code; what it said."""
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    return err


def joined(cluster: Any) -> tuple[str, str]:
    return "cluster=ray", f"cluster.address={cluster.address}"


def refused(folder: Path, *words: str) -> str:
    process = start(folder, "run", "data=digits", *words)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (2, 8), err
    return err


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def receipts(folder: Path) -> int:
    return len(list(folder.glob("store/gram/*/receipts/train/*")))


def test_a_task_that_fits_on_no_node_is_refused_before_anything_starts(cluster: Any, tmp_path: Path) -> None:
    err = refused(tmp_path, *joined(cluster), "cluster.gpus_per_task=0.5")
    assert "GPU 0.5" in err
    assert "CPU 1" in err
    assert "cluster.max_workers" in err
    assert not (tmp_path / "store").exists()


def test_nodes_that_come_and_go_cost_tasks_in_flight_alone(cluster: Any, tmp_path: Path) -> None:
    """A node is killed and another added in the middle of the Gram stage, of the solve, and of the predictions."""
    first = cluster.add_node(**NODE, num_cpus=2)
    words = (*RUN, "predict.kernels=[ntk]", "predict.covariance=diagonal", "predict.covariance_batch=5")
    run = start(tmp_path, "run", *words, "run_dir=run", *joined(cluster))
    wait_for(lambda: receipts(tmp_path) >= 20, run)
    cluster.remove_node(first, allow_graceful=False)
    second = cluster.add_node(**NODE, num_cpus=2)

    def solving() -> bool:
        progress = tmp_path / "run" / "progress.json"
        if not progress.exists():
            return False
        said = json.loads(progress.read_text())
        return said["stage"] == "solve" and said.get("steps", 0) >= 1

    wait_for(solving, run)
    cluster.remove_node(second, allow_graceful=False)
    third = cluster.add_node(**NODE, num_cpus=2)
    # Batches of variances are solved for, one after the other.
    wait_for(lambda: any(tmp_path.glob("store/uncertainty/*/*/*.npz")), run)
    assert not (tmp_path / "run" / "stages" / "predict.json").exists()
    cluster.remove_node(third, allow_graceful=False)
    fourth = cluster.add_node(**NODE, num_cpus=2)
    err = finish(run)
    cluster.remove_node(fourth, allow_graceful=False)
    assert "pool worker" in err  # one that the second node held
    alone = start(tmp_path, "run", *words, "run_dir=alone", "store.url=other", "cluster=serial")
    finish(alone)
    a, b = (read_predictions(tmp_path / name / "predictions.zarr") for name in ("run", "alone"))
    # Float64 throughout: sums over other shares of the tiles differ by rounding, which t = inf amplifies by the condition.
    np.testing.assert_allclose(np.asarray(a.mean), np.asarray(b.mean), atol=1e-8)
    np.testing.assert_allclose(np.asarray(a.variance), np.asarray(b.variance), atol=1e-8)


def test_a_lost_head_asks_for_another_start_which_goes_on(cluster: Any, tmp_path: Path) -> None:
    """Last of this file: the cluster does not outlive it."""
    # 7,875 tiles: half a minute for one process.
    run = start(tmp_path, "gram", *RUN, "grid.edge=8", "run_dir=run", *joined(cluster))
    wait_for(lambda: receipts(tmp_path) >= 100, run)
    address = joined(cluster)
    cluster.head_node.kill_gcs_server(check_alive=False)
    err = finish(run, 75)
    assert "no longer answers" in err
    assert "no Ray cluster" in refused(tmp_path, *RUN, "run_dir=run", *address)
    finish(start(tmp_path, "gram", *RUN, "grid.edge=8", "run_dir=small", "data.train_size=100", "cluster=serial"))
    receipt = json.loads((tmp_path / "small" / "stages" / "gram.json").read_text())
    assert receipt["reused"] >= 91  # the lower triangle of 13 rows of tiles comes first
