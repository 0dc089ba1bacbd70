"""A Ray cluster of several nodes on this machine, on loopback, whose nodes can be lost like machines: all at once.

Every node is a separate `ray start --block` with its descendants. Processes are ended by their ids, never by their names,
so other clusters on this machine are not affected. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.core.generated import gcs_pb2

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for another name of the outward interface
_PATIENCE = 90.0
# A dead node is found in three seconds instead of ten.
_HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}


class RayNodes:
    """A head without places for tasks, and nodes with one place each.

    Args:
        folder: folder for Ray's files; its path must be short because it contains sockets.
        environment: environment variables of every process.
        count: number of nodes without the head.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], count: int) -> None:
        self._folder = folder
        self._environment = {**environment, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self._count = count
        self._heads = 0
        self._head: subprocess.Popen[bytes] | None = None
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}  # by a resource that each has alone
        self._named = 0
        self.address = ""

    @property
    def generation(self) -> int:
        """Number of heads that were started."""
        return self._heads

    def start(self) -> None:
        """Start a new head on a new port and its nodes, and return when all have joined."""
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
        self._heads += 1
        self.address = f"{LOOPBACK}:{port}"
        folder = self._folder / str(self._heads)
        options = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--system-config={json.dumps(_HEALTH)}"]
        self._head = self._ray(*options, "--include-dashboard=false", "--num-cpus=0")
        while not _listens(port):
            assert self._head.poll() is None, "the head ended; see its log"
            time.sleep(0.1)
        for _ in range(self._count):
            self.add()
            time.sleep(1.0)
        self.settle()

    def add(self) -> None:
        """Start one more node without waiting for it."""
        self._named += 1
        name = f"node{self._named}"
        own = f"--resources={json.dumps({name: 1})}"
        self._nodes[name] = self._ray(f"--address={self.address}", "--num-cpus=1", own)

    def settle(self) -> None:
        """Wait until the cluster has all its nodes; nodes that could not start are started again."""
        end, once = time.monotonic() + _PATIENCE, time.monotonic() + _PATIENCE / 3
        while not set(self._nodes) <= (alive := self._alive()):
            late = time.monotonic() > once
            for name in [
                name for name, node in self._nodes.items() if node.poll() is not None or (late and name not in alive)
            ]:
                self.kill_node(name)  # two that start at once may have chosen the same port, and one of them hangs
                self.add()
            once = float("inf") if late else once
            if time.monotonic() > end:
                log = (self._folder / "starts.log").read_text()
                raise RuntimeError(f"{sorted(alive)} came up, not {sorted(self._nodes)}:\n{log[-3000:]}")
            time.sleep(0.2)

    def _alive(self) -> set[str]:
        """Return the resources of live nodes, as the head sees them."""
        try:
            nodes = GcsClient(address=self.address).get_all_node_info(timeout=5).values()
        except Exception:  # of many kinds, while the head starts
            return set()
        alive = gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE  # pyright: ignore[reportAttributeAccessIssue]
        return {name for node in nodes if node.state == alive for name in node.resources_total}

    def workers(self) -> list[psutil.Process]:
        """Return the processes that currently run a task or hold a pool's state."""
        found = []
        for node in self._nodes.values():
            for process in tree(node.pid):
                with contextlib.suppress(psutil.Error, IndexError):
                    name = process.cmdline()[0]
                    if name.startswith("ray::") and "IDLE" not in name:
                        found.append(process)
        return found

    @property
    def names(self) -> list[str]:
        """Return the names of the nodes without the head."""
        return list(self._nodes)

    def kill_node(self, name: str) -> list[int]:
        """Kill a node with all its processes, and return their ids."""
        return _kill(self._nodes.pop(name))

    def kill_head(self) -> list[int]:
        """Kill the head and the cluster, because nodes without a head end seconds later anyway."""
        assert self._head is not None
        gone = _kill(self._head, *self._nodes.values())
        self._head, self._nodes = None, {}
        return gone

    def close(self) -> None:
        """End all processes of the cluster, and remove Ray's files."""
        _kill(*self._nodes.values(), *filter(None, [self._head]))
        self._nodes, self._head = {}, None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ray(self, *options: str) -> subprocess.Popen[bytes]:
        # Port 0: nodes of one address must not hand out the same numbers.
        common = ["--block", f"--node-ip-address={LOOPBACK}", "--object-store-memory=100000000"]
        common += ["--min-worker-port=0", "--max-worker-port=0"]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "starts.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *options],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


def _kill(*tops: subprocess.Popen[bytes]) -> list[int]:
    found = [one for top in tops for one in tree(top.pid)]
    for one in found:
        with contextlib.suppress(psutil.Error):
            one.kill()
    for top in tops:
        top.wait()
    psutil.wait_procs(found, timeout=30)
    return [one.pid for one in found]


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
