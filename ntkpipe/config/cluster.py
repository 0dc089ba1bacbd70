"""Settings of the place where tasks run, and of jobs for schedulers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError
from ntkpipe.limits import processors

LAUNCHERS = ("none", "slurm", "ray", "kuberay", "cloud")
"""Schedulers for which `ntkpipe launch` writes files."""


@dataclass(frozen=True)
class LaunchConfig:
    """The nodes that `ntkpipe launch` requests. docs/cluster.md says what each kind uses. A run itself uses none of these settings.

    Args:
        kind: the scheduler: `slurm`, `ray` (Ray Jobs), `kuberay`, or `cloud` (Ray's cluster launcher on AWS).
        name: name of the job.
        nodes: number of nodes that compute. `slurm` includes the head; `kuberay` and `cloud` add a head.
        cpus_per_node: processors of each node.
        gpus_per_node: GPUs of each node.
        memory_per_node: memory of each node, in GiB.
        time_limit: time after which the scheduler ends the job, `HH:MM:SS` or `D-HH:MM:SS`. By default the
            scheduler's own limit.
        workdir: folder that all nodes see; relative paths start from it. By default the current folder (`slurm`,
            `ray`).
        python: the Python on the nodes that has ntkpipe. By default the Python of this command (`slurm`, `ray`), or
            `python`.
        partition: for `slurm`: the partition.
        account: for `slurm`: the account.
        interface: for `slurm`: the network interface between the nodes, such as `ib0`. By default the first.
        address: for `ray`: address of the dashboard, such as `http://127.0.0.1:8265`.
        image: for `kuberay` and `cloud`: a container image with ntkpipe and Ray.
        namespace: for `kuberay`: the namespace.
        service_account: for `kuberay`: the service account.
        claim: for `kuberay`: the persistent volume claim to mount at `workdir`.
        region: for `cloud`: the region.
        head_type: for `cloud`: the machine type of the head.
        worker_type: for `cloud`: the machine type of the workers.
        ssh_user: for `cloud`: the user for SSH.
        filesystem: for `cloud`: the NFS export `host:/path` to mount at `workdir`.
        retries: how often the scheduler starts the job again.

    Raises:
        ConfigError: also if a value contains characters that a shell or a scheduler could interpret.
    """

    kind: str = "none"
    name: str = "ntkpipe"
    nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int = 0
    memory_per_node: int | None = None
    time_limit: str | None = None
    workdir: str | None = None
    python: str | None = None
    partition: str | None = None
    account: str | None = None
    interface: str | None = None
    address: str = "http://127.0.0.1:8265"
    image: str | None = None
    namespace: str = "default"
    service_account: str | None = None
    claim: str | None = None
    region: str | None = None
    head_type: str = "m7i.xlarge"
    worker_type: str | None = None
    ssh_user: str = "ubuntu"
    filesystem: str | None = None
    retries: int = 20

    def __post_init__(self) -> None:
        choice("cluster.launch.kind", self.kind, LAUNCHERS)
        at_least("cluster.launch.nodes", self.nodes, 1)
        for name in ("cpus_per_node", "memory_per_node"):
            at_least(f"cluster.launch.{name}", getattr(self, name), 1)
        for name in ("gpus_per_node", "retries"):
            at_least(f"cluster.launch.{name}", getattr(self, name), 0)
        for name, pattern in _LAUNCH_NAMES.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise ConfigError(f"cluster.launch.{name}={value!r} is not of the form {pattern}")


_LABEL = r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?"
_WORD = r"[A-Za-z0-9_][\w.+-]*"
_LAUNCH_NAMES = {
    "name": _LABEL,
    "time_limit": r"(\d+-)?\d{1,3}:\d{2}:\d{2}",
    "workdir": r"/[^\0\n]*",
    "python": r"[^\0\n-][^\0\n]*",
    "partition": rf"{_WORD}(,{_WORD})*",
    "account": _WORD,
    "interface": r"[\w.:-]{1,15}",
    "address": r"https?://[\w.:\[\]-]+",
    "image": r"\w[\w./:@+-]*",
    "namespace": _LABEL,
    "service_account": _LABEL,
    "claim": _LABEL,
    "region": _WORD,
    "head_type": _WORD,
    "worker_type": _WORD,
    "ssh_user": r"[a-z_][a-z0-9_-]*",
    "filesystem": r"[\w.-]+:/[\w./-]*",
}
"""Patterns of settings that are inserted into scripts."""


@dataclass(frozen=True)
class ClusterConfig:
    """Where tasks run.

    Args:
        kind: `serial` (this process, without Ray), `local` (Ray on this machine, which the run starts and stops),
            `ray` (a running Ray cluster, which the run joins and leaves) or `auto`. `auto` is `serial` for up to
            2,000 training points if one core computes their kernel in 20 s, else `local`.
        address: for `ray`: `auto` (the cluster of this machine, or RAY_ADDRESS) or `host:port` of the head.
        workers: number of processes that compute. By default one per core; for `ray`, as many as the nodes hold when
            the run joins.
        max_workers: for `ray`: the largest number of tasks at the same time, which is also requested from an
            autoscaler. By default as many as the nodes hold.
        threads_per_worker: threads of each worker. With 1, workers do not compete for cores.
        cpus_per_task: processors that a task reserves on its node. By default `threads_per_worker`.
        gpus_per_task: GPUs that a task reserves on its node. With a fraction, several tasks share a GPU and its
            memory.
        memory_per_task: memory in GiB that a task reserves on its node. By default none.
        resources: custom resources that a task reserves, by name.
        memory_gib: memory budget of all processes together, in GiB. By default 60% of the memory that is free for
            this process, on its machine or in its container. For `ray` it follows from `memory_per_task`, or from
            what the nodes have.
        retries: number of attempts after a lost worker.
        speculate: for `ray`: start a second copy of a task that takes much longer than the others, once all have
            started.
        launch: nodes that `ntkpipe launch` requests.
    """

    kind: str = "auto"
    address: str = "auto"
    workers: int | None = None
    max_workers: int | None = None
    threads_per_worker: int = 1
    cpus_per_task: float | None = None
    gpus_per_task: float = 0.0
    memory_per_task: float | None = None
    resources: dict[str, float] = field(default_factory=dict, hash=False)
    memory_gib: float | None = None
    retries: int = 3
    speculate: bool = True
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        choice("cluster.kind", self.kind, ("auto", "local", "ray", "serial"))
        at_least("cluster.workers", self.workers, 1)
        at_least("cluster.max_workers", self.max_workers, 1)
        at_least("cluster.threads_per_worker", self.threads_per_worker, 1)
        for name in ("cpus_per_task", "memory_per_task", "memory_gib"):
            at_least(f"cluster.{name}", getattr(self, name), 0.0, strict=True)
        at_least("cluster.gpus_per_task", self.gpus_per_task, 0.0)
        if self.gpus_per_task > 1 and self.gpus_per_task != int(self.gpus_per_task):
            raise ConfigError(f"cluster.gpus_per_task={self.gpus_per_task} must be whole, or below 1")
        for name, amount in self.resources.items():
            at_least(f"cluster.resources.{name}", amount, 0.0, strict=True)
        at_least("cluster.retries", self.retries, 0)
        if self.address.startswith("ray://"):
            raise ConfigError(
                f"cluster.address={self.address}: Ray Client is not supported, because it loses results with its "
                "connection. Run on a node of the cluster, or submit with ntkpipe launch cluster/launch=ray"
            )
        if self.address != "auto" and not re.fullmatch(r"\[?[\w.:-]+\]?:\d{1,5}", self.address):
            raise ConfigError(f"cluster.address={self.address} must be auto or host:port, such as 10.0.0.1:6379")

    def worker_count(self) -> int:
        """Number of processes that compute: the configured one, 1 for `serial`, or the available cores per `threads_per_worker`.

        For `ray`, before the cluster has been queried, it is `max_workers` or 1.
        """
        if self.workers is not None or self.kind == "serial":
            return self.workers or 1
        if self.kind == "ray":
            return self.max_workers or 1
        return max(1, processors() // self.threads_per_worker)
