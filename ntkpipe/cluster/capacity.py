"""The current capacity of a cluster: its live nodes, the tasks that fit on each, and whether its head answers."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from ntkpipe.cluster.store_probe import StoreNotVisibleError
from ntkpipe.cluster.supervisor import refused
from ntkpipe.config import ClusterConfig
from ntkpipe.errors import RequeueError

_log = logging.getLogger(__name__)

# Seconds between two queries. A query takes a millisecond, and nodes join and leave within seconds.
_REFRESH_SECONDS = 2.0
# Ray ends this process abruptly when the head has been lost for this time. A head that keeps its state (in Redis)
# returns sooner. The run stops in an orderly way after half of this time.
_RAYS_PATIENCE = ("RAY_gcs_rpc_server_reconnect_timeout_s", "60")
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Demand:
    """Resources that one task claims of its node."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(config: ClusterConfig) -> Demand:
        """Return the claims of a configuration, per task."""
        return Demand(
            config.cpus_per_task or config.threads_per_worker,
            config.gpus_per_task,
            int((config.memory_per_task or 0) * 2**30),
            dict(config.resources),
        )

    def bundle(self) -> dict[str, float]:
        """Return the claims that are not zero, by their names in Ray."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, **self.custom}
        return {name: amount for name, amount in named.items() if amount}

    def options(self) -> dict[str, Any]:
        """Return the options of a remote function."""
        memory = {"memory": self.memory} if self.memory else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom), **memory}

    def slots(self, totals: Mapping[str, float]) -> int:
        """Return the number of tasks that fit at the same time on a node with these resources."""
        return min(int(totals.get(name, 0.0) / amount + 1e-9) for name, amount in self.bundle().items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.bundle().items())


class FixedCapacity:
    """A single machine with a fixed number of workers."""

    lost = False

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def workers(self) -> int:
        """Number of tasks that run at the same time."""
        return self._workers

    def nodes(self, *, fresh: bool = False) -> dict[str, int]:
        """Return an empty dictionary, because Ray places all tasks."""
        del fresh
        return {}

    def tick(self) -> None:
        """Do nothing, because the capacity is fixed."""

    def shun(self, error: StoreNotVisibleError) -> None:
        """Do nothing, because a single machine has no other node."""


class LiveCapacity:
    """The joined cluster, which is queried every two seconds while the driver waits.

    Args:
        demand: resources of a task.
        most: largest number of tasks at the same time.
    """

    def __init__(self, demand: Demand, most: int | None = None) -> None:
        self.demand = demand
        self._most = most
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        self._own = own_node()
        self._cut_off = False
        self._slots: dict[str, int] = {}
        self._blind: set[str] = set()
        self._looked = -_REFRESH_SECONDS
        self.tick()

    @property
    def lost(self) -> bool:
        """Whether the cluster is lost; calls to Ray would then wait for its head or end this process."""
        return self._head.given_up or self._cut_off

    def workers(self) -> int:
        """Number of tasks that can currently run at the same time, at least 1."""
        total = sum(self._slots.values())
        return max(1, total if self._most is None else min(total, self._most))

    def nodes(self, *, fresh: bool = False) -> dict[str, int]:
        """Return the number of tasks that fit on each live node with room for one; `fresh` queries the cluster now."""
        if fresh:
            self._look()
        return dict(self._slots)

    def tick(self) -> None:
        """Query the cluster if the interval is over.

        Raises:
            RequeueError: if the head of the cluster, or the process of Ray on this node, no longer answers.
        """
        if time.monotonic() - self._looked >= _REFRESH_SECONDS:
            self._look()

    def shun(self, error: StoreNotVisibleError) -> None:
        """Stop counting a node without access to the store. Ray may still use it."""
        if error.node not in self._blind:
            _log.warning("%s: this node is not used; mount the store there", error)
            self._blind.add(error.node)
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        if refused(self._own):
            self._cut_off = True
            raise RequeueError(
                f"Ray's process on this node, at {self._own}, no longer answers. Nothing stored is lost: start the "
                "cluster and repeat the same command."
            )
        if not self._head.answers():
            return  # Ray would wait for it here
        found = {
            node["NodeID"]: slots
            for node in alive_nodes()
            if node["NodeID"] not in self._blind and (slots := self.demand.slots(node.get("Resources", {})))
        }
        if self._slots and found != self._slots:
            _log.info(
                "cluster: %d nodes for %d tasks at once (before: %d for %d)",
                len(found),
                sum(found.values()),
                len(self._slots),
                sum(self._slots.values()),
            )
        self._slots = found


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of live nodes, without those of dead nodes."""
    return [node for node in ray.nodes() if node["Alive"]]


def own_node() -> str:
    """Return the address `host:port` of the Ray process through which this process has joined the cluster."""
    mine = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == mine]
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


class HeadWatch:
    """Checks whether the head's port answers. Ray's own calls would wait and then end the process.

    Args:
        address: `host:port` of the cluster's control service.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        host, _, port = address.rpartition(":")
        self._where = (host.strip("[]"), int(port))
        self.given_up = False
        self._silent_since: float | None = None
        self._patience = float(os.environ.get(*_RAYS_PATIENCE)) / 2

    def answers(self) -> bool:
        """Return whether the head currently answers.

        Raises:
            RequeueError: if it has not answered for some seconds.
        """
        try:
            socket.create_connection(self._where, timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since >= self._patience:
                self.given_up = True
                raise RequeueError(
                    f"the head of the Ray cluster at {self._address} no longer answers ({error}). Nothing stored is "
                    "lost: start the cluster and repeat the same command."
                ) from error
            return False
        self._silent_since = None
        return True
