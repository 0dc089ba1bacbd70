"""What a cluster holds now: nodes that are alive, tasks that fit on each, and whether its head answers."""

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

# Nodes come and go in seconds at best; asking for them takes a millisecond.
_REFRESH_SECONDS = 2.0
# Ray ends this process, in its own way, so long after the head was lost. A head that keeps its state (in Redis) is back in
# less; we give up half way, and in good order.
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
        """What a configuration asks for, per task."""
        return Demand(
            config.cpus_per_task or config.threads_per_worker,
            config.gpus_per_task,
            int((config.memory_per_task or 0) * 2**30),
            dict(config.resources),
        )

    def bundle(self) -> dict[str, float]:
        """By Ray's names; nothing that is zero."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory, **self.custom}
        return {name: amount for name, amount in named.items() if amount}

    def options(self) -> dict[str, Any]:
        """Options of a remote function."""
        memory = {"memory": self.memory} if self.memory else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom), **memory}

    def slots(self, totals: Mapping[str, float]) -> int:
        """Tasks that fit on a node with these resources at the same time."""
        return min(int(totals.get(name, 0.0) / amount + 1e-9) for name, amount in self.bundle().items())

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.bundle().items())


class FixedCapacity:
    """A machine of one's own, whose number of workers is settled."""

    lost = False

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def workers(self) -> int:
        """Tasks that run at the same time."""
        return self._workers

    def nodes(self, *, fresh: bool = False) -> dict[str, int]:
        """No names: Ray places everything."""
        del fresh
        return {}

    def tick(self) -> None:
        """Nothing to look after."""

    def shun(self, error: StoreNotVisibleError) -> None:
        """Nothing to avoid."""


class LiveCapacity:
    """The joined cluster, looked at again every other second while there is something to wait for.

    Args:
        demand: of a task.
        most: tasks at the same time, whatever there is.
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
        """Whether the cluster is given up: calls to Ray would only wait for its head, or end this process."""
        return self._head.given_up or self._cut_off

    def workers(self) -> int:
        """Tasks that run at the same time now; at least one, for which Ray then waits."""
        total = sum(self._slots.values())
        return max(1, total if self._most is None else min(total, self._most))

    def nodes(self, *, fresh: bool = False) -> dict[str, int]:
        """Alive nodes that hold a task, and how many each; `fresh` asks now."""
        if fresh:
            self._look()
        return dict(self._slots)

    def tick(self) -> None:
        """Look again, if it is time to.

        Raises:
            RequeueError: if the cluster's head, or Ray's process on this node, does not answer any more.
        """
        if time.monotonic() - self._looked >= _REFRESH_SECONDS:
            self._look()

    def shun(self, error: StoreNotVisibleError) -> None:
        """Count no more on a node that does not see the store. Ray may still try it, for as long as it is there."""
        if error.node not in self._blind:
            _log.warning("%s: it is not counted on; mount the store there", error)
            self._blind.add(error.node)
            self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        if refused(self._own):
            self._cut_off = True
            raise RequeueError(
                f"Ray's process on this node, at {self._own}, does not answer any more: nothing stored is lost. Start the "
                "cluster and the same command again."
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
    """Ray's records of the nodes that are alive; it keeps those of the dead."""
    return [node for node in ray.nodes() if node["Alive"]]


def own_node() -> str:
    """`host:port` of Ray's process on the node that this process has joined the cluster through."""
    mine = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == mine]
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


class HeadWatch:
    """Asks the head's port whether anybody answers: Ray's own calls would wait, then end the process.

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
        """Whether it does now.

        Raises:
            RequeueError: if it has not for some seconds.
        """
        try:
            socket.create_connection(self._where, timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since >= self._patience:
                self.given_up = True
                raise RequeueError(
                    f"the head of the Ray cluster at {self._address} does not answer any more ({error}): nothing stored is "
                    "lost. Start the cluster and the same command again."
                ) from error
            return False
        self._silent_since = None
        return True
