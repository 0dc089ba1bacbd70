"""Where tasks run, and how a job is launched there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ntkpipe.config.checks import at_least, choice
from ntkpipe.errors import ConfigError
from ntkpipe.limits import processors

LAUNCHERS = ("none", "slurm", "ray", "kuberay", "cloud")
"""What `ntkpipe launch` writes files for."""


@dataclass(frozen=True)
class LaunchConfig:
    """The nodes that `ntkpipe launch` asks for; docs/cluster.md says what each kind uses. A run itself reads none of it.

    Args:
        kind: `slurm`, `ray` (Ray Jobs), `kuberay` or `cloud` (Ray's cluster launcher, on AWS).
        name: of the job.
        nodes: that compute; of `slurm` the head's included, of `kuberay` and `cloud` besides the head.
        cpus_per_node, gpus_per_node: of each.
        memory_per_node: of each, GiB.
        time_limit: `HH:MM:SS` or `D-HH:MM:SS`, after which the scheduler ends the job; None is the scheduler's own.
        workdir: folder, seen by all nodes, that relative paths start from; None is the folder of this command (`slurm`, `ray`).
        python: that has ntkpipe on the nodes; None is the one that runs this command (`slurm`, `ray`), or `python`.
        partition, account: of `slurm`.
        interface: of `slurm`: the network interface that nodes talk over, such as `ib0`; None is the first.
        address: of `ray`: the dashboard, such as `http://127.0.0.1:8265`.
        image: of `kuberay` and `cloud`: a container image with ntkpipe and Ray in it.
        namespace, service_account, claim: of `kuberay`; `claim` is the persistent volume claim that is mounted at `workdir`.
        region, head_type, worker_type, ssh_user: of `cloud`.
        filesystem: of `cloud`: NFS export `host:/path` that is mounted at `workdir`.
        retries: how often the scheduler starts the job again.

    Raises:
        ConfigError: also if a value could be more than a name to a shell or a scheduler.
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
"""What these settings may look like: they end up in scripts."""


@dataclass(frozen=True)
class ClusterConfig:
    """Where tasks run.

    Args:
        kind: `auto` (`serial` of up to 2,000 training points whose kernel one core computes in 20 s, else `local`), `local`
            (Ray on this machine, started and stopped by the run), `ray` (a running Ray cluster, joined and left) or `serial`
            (this process, no Ray).
        address: of `ray`: `auto` (the cluster that this machine is a node of, or RAY_ADDRESS) or `host:port` of its head.
        workers: processes that compute; None is one per core. Of `ray`, what its nodes hold when the run joins.
        max_workers: of `ray`: most tasks at once, and what an autoscaler is asked for; None is what the nodes hold.
        threads_per_worker: threads of each; 1 keeps workers from fighting.
        cpus_per_task: that a task claims of its node; None is `threads_per_worker`.
        gpus_per_task: likewise; fractions let several tasks share a GPU, each with its part of the memory.
        memory_per_task: GiB that a task claims of its node; None claims none.
        resources: custom resources that a task claims, by name.
        memory_gib: budget of all processes together; None is 60% of what is free for this process, on its
            machine or in its container. Of `ray` it follows from
            `memory_per_task`, or from what the nodes have.
        retries: attempts after a lost worker.
        speculate: of `ray`: start a second copy of a task that takes far longer than the others, once all have started.
        launch: nodes that `ntkpipe launch` asks for.
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
                f"cluster.address={self.address}: Ray Client keeps no tasks' results when the connection is lost. Run on a "
                "node of the cluster, or submit with ntkpipe launch cluster/launch=ray"
            )
        if self.address != "auto" and not re.fullmatch(r"\[?[\w.:-]+\]?:\d{1,5}", self.address):
            raise ConfigError(f"cluster.address={self.address} must be auto or host:port, such as 10.0.0.1:6379")

    def worker_count(self) -> int:
        """Processes that compute: as set, one for `serial`, or as many as the cores that it may use feed with threads.

        Of `ray`, before the cluster was asked, `max_workers` or one.
        """
        if self.workers is not None or self.kind == "serial":
            return self.workers or 1
        if self.kind == "ray":
            return self.max_workers or 1
        return max(1, processors() // self.threads_per_worker)
