"""A running Ray cluster, joined and left. Nothing of it is started or stopped; only our own tasks and actors are ended."""

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

# An autoscaler starts a machine in some minutes.
_SCALE_UP_SECONDS = 1200.0
# Of what Ray counts as a node's memory, when nothing is claimed: its own processes and the images need the rest.
_MEMORY_SHARE = 0.8

_CONNECT_SECONDS = 10.0

# A cluster that wants a token says so to Ray's log alone.
_ABOUT_TOKENS = " If the cluster was started with a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it."

_COMPILED = ".compiled"


class JoinedExecutor(RayExecutor):
    """A `RayExecutor` that knows what its cluster holds, for plans."""

    def __init__(self, capacity: LiveCapacity, config: ClusterConfig, **options: Any) -> None:
        super().__init__(capacity, **options)
        self._live = capacity
        self._config = config

    def complete_config(self) -> ClusterConfig:
        """The configuration with `workers` and `memory_gib` as the cluster has them now."""
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
        config: of kind `ray`.
        store: that every node must see.

    Raises:
        ResourceError: if there is no cluster, of other versions, without what a task claims, or without ntkpipe.
        ConfigError: if a node does not see the store.
        RequeueError: if the run is told to stop while it waits for nodes.
    """
    if isinstance(store, MemoryStore):
        raise ConfigError(f"store.url={store.url} is seen by this process alone: name one that all nodes see")
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
        # Ray itself would try for a minute or more.
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ResourceError(_why(address, str(error))) from error
    # Clusters with a token expect it; one without is asked as it is.
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
    except RequeueError:  # told to stop meanwhile
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
    """What to say of a cluster that could not be joined."""
    first = text.splitlines()[0] if text else "no reason given"
    lowered = text.lower()
    if "version mismatch" in lowered:
        return f"this process and the Ray cluster at {address} differ: {' '.join(text.split())}. Install one version everywhere."
    if "token" in lowered or "unauthenticated" in lowered:
        return (
            f"the Ray cluster at {address} refused this process ({first}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to "
            "the file that it was started with"
        )
    return (
        f"no Ray cluster could be joined at cluster.address={address} ({first}). Start one (ray start --head, then ray start "
        "--address=HOST:PORT on each node) and run this on one of its nodes, or let ntkpipe launch do both; cluster=local "
        "needs none." + ("" if _has_token() else _ABOUT_TOKENS)
    )


def _ask_for(bundles: list[dict[str, float]]) -> None:
    """Tell the autoscaler, if there is one, what is needed; an empty list takes it back."""
    try:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
    except Exception as error:  # of many kinds, and never a reason not to run
        _log.warning("the autoscaler was not asked for nodes: %s", error)


def _await_nodes(capacity: LiveCapacity, wanted: int | None) -> None:
    """Wait for the first node that holds a task, where an autoscaler may bring it."""
    deadline = time.monotonic() + _SCALE_UP_SECONDS
    told = False
    while not capacity.nodes(fresh=True):
        kinds = sorted({_resources(node) for node in alive_nodes()})
        text = (
            f"no node of the cluster holds a task ({capacity.demand}); there are nodes of {'; '.join(kinds) or 'none'}"
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
