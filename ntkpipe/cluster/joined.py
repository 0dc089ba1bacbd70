"""Joins and leaves a running Ray cluster, without starting or stopping it.

Leaving ends only the tasks and actors of this run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as rx

from ntkpipe.cluster import supervisor
from ntkpipe.cluster.capacity import Demand, LiveCapacity, alive_nodes, own_node
from ntkpipe.cluster.imports import job_config
from ntkpipe.cluster.probe import check_nodes
from ntkpipe.cluster.ray_executor import RayExecutor
from ntkpipe.cluster.store_probe import store_probe
from ntkpipe.config import ClusterConfig
from ntkpipe.errors import ConfigError, RequeueError, ResourceError
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks import stopping
from ntkpipe.tasks.environment import POOL_SHARE, TASK_SHARE, node_environment

_log = logging.getLogger(__name__)

# An autoscaler takes a few minutes to start a machine.
_SCALE_UP_SECONDS = 1200.0
# Share of the node's memory that tasks may use if they claim none. Processes of Ray and images need the rest.
_MEMORY_SHARE = 0.8

_CONNECT_SECONDS = 10.0

# A cluster that requires a token reports that only in Ray's log.
_ABOUT_TOKENS = " If the cluster was started with a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it."

_COMPILED = ".compiled"


class JoinedExecutor(RayExecutor):
    """A `RayExecutor` that reports its cluster's capacity for plans."""

    def __init__(self, capacity: LiveCapacity, config: ClusterConfig, **options: Any) -> None:
        super().__init__(capacity, **options)
        self._live = capacity
        self._config = config

    def complete_config(self) -> ClusterConfig:
        """Return the configuration with the cluster's current `workers` and `memory_gib`."""
        workers = self.workers
        each = self._config.memory_per_task
        if each is None:
            each = min(
                (
                    _MEMORY_SHARE * node["Resources"].get("memory", 0.0) / slots / 2**30
                    for node in alive_nodes()
                    if (slots := self._live.nodes().get(str(node["NodeID"])))
                ),
                default=0.0,
            )
        return replace(self._config, workers=workers, memory_gib=each * workers or self._config.memory_gib)


@contextmanager
def joined_session(config: ClusterConfig, store: ObjectStore | None) -> Iterator[JoinedExecutor]:
    """Join the cluster at `config.address`, check its nodes, yield an executor, and leave.

    A connection that this process already has is used and kept.

    Args:
        config: configuration of kind `ray`.
        store: store that every node must be able to read; None skips this check.

    Raises:
        ResourceError: if there is no cluster, its versions differ, it has no node with the claims of a task, or a node
            has no ntkpipe.
        ConfigError: if a node cannot read the store.
        RequeueError: if a stop is requested while the run waits for nodes.
    """
    if isinstance(store, MemoryStore):
        raise ConfigError(f"store.url={store.url} is visible only to this process: choose a store that all nodes see")
    demand = Demand.of(config)
    capacity: LiveCapacity | None = None

    def lost() -> bool:
        return capacity is not None and capacity.lost

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(lambda: lost() or ray.shutdown())
            _connect(config.address)
            supervisor.note(own_node(), ray.get_runtime_context().gcs_address)
        if config.max_workers is not None:
            stack.callback(lambda: lost() or _ask_for([]))
            _ask_for([demand.bundle()] * config.max_workers)
        capacity = LiveCapacity(demand, config.max_workers)
        _await_nodes(capacity, config.max_workers)
        environments = [
            node_environment(
                config.threads_per_worker, gpus=config.gpus_per_task, share=share, compiled=_compiled(store)
            )
            for share in (TASK_SHARE, POOL_SHARE)
        ]
        probe = stack.enter_context(store_probe(store))
        names = {str(node["NodeID"]): str(node["NodeManagerAddress"]) for node in alive_nodes()}
        check_nodes({node: names[node] for node in capacity.nodes() if node in names}, environments[0], probe)
        _log.info("cluster: joined, %d nodes for %d tasks at once", len(capacity.nodes()), capacity.workers())
        executor = JoinedExecutor(
            capacity,
            config,
            demand=demand,
            retries=config.retries,
            environment=environments[0],
            pool_environment=environments[1],
            speculate=config.speculate,
            probe=probe,
        )
        stack.callback(executor.close)
        yield executor


def _compiled(store: ObjectStore | None) -> str | None:
    return str(Path(store.url) / _COMPILED) if isinstance(store, LocalStore) else None


def _connect(address: str) -> None:
    if address != "auto":
        # Ray itself would retry for a minute or more.
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ResourceError(_why(address, str(error))) from error
    # Send the token only to clusters that use one.
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        with stopping.keeping_handlers():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="ntkpipe",
                job_config=job_config(),
            )
    except RequeueError:  # the run was told to stop while it joined
        raise
    except (RuntimeError, OSError, ValueError, rx.RayError) as error:
        raise ResourceError(_why(address, str(error).strip())) from error


def _has_token() -> bool:
    return bool(
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or (Path.home() / ".ray" / "auth_token").exists()
    )


def _why(address: str, text: str) -> str:
    """Return the message about a cluster that could not be joined."""
    first = text.splitlines()[0] if text else "no reason given"
    lowered = text.lower()
    if "version mismatch" in lowered:
        return (
            f"this process and the Ray cluster at {address} have different versions: {' '.join(text.split())}. "
            "Install one version everywhere."
        )
    if "token" in lowered or "unauthenticated" in lowered:
        return (
            f"the Ray cluster at {address} refused this process ({first}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to "
            "the file that it was started with"
        )
    return (
        f"there is no Ray cluster at cluster.address={address} ({first}). Start one (ray start --head, then ray start "
        "--address=HOST:PORT on each node) and run this command on one of its nodes, or use ntkpipe launch, which "
        "does both. cluster=local needs no cluster." + ("" if _has_token() else _ABOUT_TOKENS)
    )


def _ask_for(bundles: list[dict[str, float]]) -> None:
    """Send a request to the autoscaler, if there is one; an empty list withdraws it."""
    try:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
    except Exception as error:  # errors of many kinds, which must not prevent the run
        _log.warning("the autoscaler was not asked for nodes: %s", error)


def _await_nodes(capacity: LiveCapacity, wanted: int | None) -> None:
    """Wait for the first node with room for a task, which an autoscaler may start."""
    deadline = time.monotonic() + _SCALE_UP_SECONDS
    told = False
    while not capacity.nodes(fresh=True):
        kinds = sorted({_resources(node) for node in alive_nodes()})
        text = (
            f"no node of the cluster has room for a task ({capacity.demand}); the nodes have "
            f"{'; '.join(kinds) or 'nothing'}"
        )
        if wanted is None or time.monotonic() > deadline:
            raise ResourceError(
                f"{text}. Lower cluster.gpus_per_task, cpus_per_task, memory_per_task or resources, or on a cluster that "
                "grows set cluster.max_workers."
            )
        if not told:
            _log.info("cluster: %s; waiting for the autoscaler", text)
            told = True
        stopping.check()
        time.sleep(1.0)


def _resources(node: dict[str, Any]) -> str:
    shown = {k: v for k, v in node.get("Resources", {}).items() if ":" not in k and k != "object_store_memory"}
    return ", ".join(f"{k} {v:g}" for k, v in sorted(shown.items()))
