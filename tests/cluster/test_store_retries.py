"""What workers ask of a store reaches the driver: every repeated request once, and the status of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ntkpipe.storage.statistics import PROCESS
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.graph import Task
from tests import faulty_proxy, s3_server

pytestmark = [pytest.mark.ray, pytest.mark.network]

SECRETS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server.running() as url:
        yield url


def write(environment: dict[str, str], url: str, key: str) -> str:
    """Store an object, in a worker; a worker's environment says where a bucket is when it first asks."""
    os.environ.update(environment)
    open_store(url).put(key, b"1234")
    return key


class Writer:
    """State of a pool that writes."""

    def __init__(self, environment: dict[str, str], url: str, name: str) -> None:
        self._where, self._name = (environment, url), name
        write(*self._where, f"{name}/made")

    def write(self, key: str) -> str:
        return write(*self._where, f"{self._name}/{key}")

    def scaled(self, x: np.ndarray) -> np.ndarray:
        self.write("scaled")
        return 2.0 * x


def test_every_repetition_counts_once_in_tasks_calls_and_sums(session, server: str) -> None:
    url = f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"
    with faulty_proxy.running(server, share=0.4, seed=3, faults=("503",)) as proxy:
        environment = {**SECRETS, "AWS_ENDPOINT_URL": proxy.url}
        before = PROCESS.heard()

        def new() -> tuple[int, int]:
            return PROCESS.heard().retries - before.retries, PROCESS.heard().bytes_written - before.bytes_written

        results = list(session.run(Task(k, write, (environment, url, f"task-{k}")) for k in range(20)))
        assert sorted(r.value for r in results) == sorted(f"task-{k}" for k in range(20))
        assert new() == (proxy.injected["503"], 4 * 20)
        tasks = proxy.injected["503"]
        pool = session.pool(Writer, [(environment, url, name) for name in "ab"])
        try:
            for k in range(6):
                assert pool.broadcast("write", str(k)) == [f"a/{k}", f"b/{k}"]
            assert pool.call(1, "write", "alone") == "b/alone"
            assert new() == (proxy.injected["503"], 4 * (20 + 2 + 12 + 1))
            # Summed between workers: what they say comes with the receipts.
            pool._slices, pool._places = 2, [("a", 0), ("b", 0)]
            for rows in (10, 1 << 20):
                np.testing.assert_array_equal(pool.total("scaled", np.ones(rows)), np.full(rows, 4.0))
        finally:
            pool.close()
        assert new()[0] == proxy.injected["503"] > tasks > 0


@pytest.mark.slow
def test_the_status_of_a_run_counts_what_its_workers_did(server: str, tmp_path: Path) -> None:
    url = f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"
    direct = {**os.environ, **SECRETS, "AWS_ENDPOINT_URL": server}

    def ntkpipe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ntkpipe", *words]
        return subprocess.run(command, cwd=tmp_path, env={**direct, **environment}, capture_output=True, text=True)

    with faulty_proxy.running(server, share=0.1, seed=5, faults=faulty_proxy.BEFORE) as proxy:
        words = (
            "data=digits",
            "data.train_size=200",
            "data.test_size=40",
            "grid.edge=32",
            "cluster=local",
            "cluster.workers=1",
        )
        done = ntkpipe("gram", *words, f"store.url={url}", "run_dir=run", AWS_ENDPOINT_URL=proxy.url)
        assert done.returncode == 0, done.stderr
        spoilt = sum(proxy.injected.values())
    for where in (f"store.url={url}", "run_dir=run"):
        told = ntkpipe("status", where).stdout
        repeated = int(told.partition(" repeated requests to the store")[0].rpartition(" ")[2].replace(",", ""))
        # After the last report the driver packs receipts, and lets go of leases.
        assert spoilt / 2 < repeated <= spoilt, told
    receipt = json.loads((tmp_path / "run" / "stages" / "gram.json").read_text())
    assert receipt["computed"] == 28 + 14
