"""Checks before a run, with one small task per node, that the nodes of a cluster can do its work."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray import exceptions as rx
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import ntkpipe
from ntkpipe.cluster.store_probe import StoreProbe
from ntkpipe.errors import ConfigError, ResourceError

# A worker process starts in one or two seconds, or in ten times as much on a cold network file system.
_PROBE_SECONDS = 120.0
_LISTED = 5


@dataclass(frozen=True)
class Found:
    """The answer of one node.

    Args:
        ntkpipe: version on the node.
        jax: version on the node.
        machine: kind of processor.
        sees: whether it could read the probe in the store; None if it was not asked.
    """

    ntkpipe: str
    jax: str
    machine: str
    sees: bool | None


def look(probe: StoreProbe | None) -> Found:
    """Describe the node of this process."""
    try:
        jax = version("jax")
    except PackageNotFoundError:
        jax = "none"
    return Found(ntkpipe.__version__, jax, platform.machine(), None if probe is None else probe.visible())


def check_nodes(nodes: Mapping[str, str], environment: Mapping[str, str], probe: StoreProbe | None) -> dict[str, Found]:
    """Query all nodes at once, and refuse a cluster that cannot finish the run.

    Args:
        nodes: ids, and names for messages.
        environment: variables of workers.
        probe: probe in the run's store; None skips this check.

    Returns:
        The answers by node id, without nodes that were lost meanwhile.

    Raises:
        ConfigError: if a node cannot read the store.
        ResourceError: if a node has no ntkpipe or another version.
    """
    remote = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": dict(environment)})(look)
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe): node
        for node in nodes
    }
    _, late = ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_SECONDS)
    if late:
        raise ResourceError(
            f"{_named(nodes, [asked[r] for r in late])} did not start a process within {_PROBE_SECONDS:.0f} s: check "
            "its logs under /tmp/ray/session_latest/logs"
        )
    said = {node: _answer(reference, nodes[node]) for reference, node in asked.items()}
    found = {node: answer for node, answer in said.items() if answer is not None}
    if blind := [node for node, answer in found.items() if answer.sees is False]:
        assert probe is not None
        raise ConfigError(
            f"store.url={probe.store.url} is not the same folder on {_named(nodes, blind)}: put the store on a file system that "
            "every node mounts at the same path"
        )
    if other := [node for node, answer in found.items() if answer.ntkpipe != ntkpipe.__version__]:
        raise ResourceError(
            f"{_named(nodes, other)} has ntkpipe {found[other[0]].ntkpipe}, this process {ntkpipe.__version__}: install one "
            "version everywhere"
        )
    if bare := [node for node, answer in found.items() if answer.jax == "none"]:
        raise ResourceError(f"{_named(nodes, bare)} has no jax: install ntkpipe with its requirements everywhere")
    return found


def _answer(reference: Any, name: str) -> Found | None:
    try:
        return ray.get(reference)
    except (rx.RayTaskError, rx.RuntimeEnvSetupError) as error:
        text = str(error)
        if "No module named" in text:
            raise ResourceError(
                f"node {name} cannot import ntkpipe ({text.strip().splitlines()[-1]}): install it there, for the "
                "Python that runs Ray"
            ) from error
        raise ResourceError(f"node {name} cannot run a task: {text}") from error
    except rx.RayError:
        return None  # the node has left the cluster


def _named(nodes: Mapping[str, str], which: list[str]) -> str:
    names = sorted(nodes[node] for node in which)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"node{'s' if len(names) > 1 else ''} {', '.join(names[:_LISTED])}{more}"
