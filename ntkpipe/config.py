"""What a run is made of: one frozen dataclass per stage. Plain Python; the command line builds these from YAML.

Every check that needs no data is made on construction, so that a bad setting stops a run before anything starts.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from dataclasses import dataclass, field
from typing import Any

from ntkpipe.errors import ConfigError


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, allowed))}")


def _at_least(name: str, value: float | None, low: float, *, strict: bool = False) -> None:
    if value is None:
        return
    if math.isnan(value) or value < low or (strict and value == low):
        raise ConfigError(f"{name}={value} must be {'above' if strict else 'at least'} {low}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are prepared and which of them are used.

    Args:
        kind: `digits`, `npz`, `cifar10`, `cifar100`, `image_folder`, `mnist`, `synthetic`, or `labels` (without images, for
            `kernel=gram`; an npz of `y_train` and `y_test`, in the order of the kernel's rows).
        path: file or folder; not used by `digits` and `synthetic`.
        download: fetch `cifar10`, `cifar100` or `mnist` into `path` when absent there.
        source: where `download` fetches from; None is the data set's official address.
        image_size: `[height, width]` that images of `image_folder` are resized to; None requires equal sizes.
        train_size: the first so many images of the seeded order; None is all.
        test_size: likewise for test images.
        subset_seed: of the order in which images are stored; subsets are prefixes of it, hence nested.
        balanced: order the classes in turn, so that every subset is balanced.
        standardize: `channel` (zero mean, unit variance per channel) or `none` (pixels as they are; uint8 scaled to 0..1).
        unit_norm: scale every image to unit Euclidean norm (after standardisation).
        zca: strength of the regularised ZCA whitening relative to the mean eigenvalue of the covariance; None is off.
        downsample: edge of the block mean; 1 is off.
        statistics: `full` training set or the chosen `subset`.
        labels: `centered` (one-hot minus 1/classes), `half` (one-hot minus 1/2) or `regression` (targets as given).
        drop_invalid: drop images with NaN or infinite pixels instead of refusing them.
        n_train, n_test, shape, classes, noise: of `synthetic` images.
    """

    kind: str = "digits"
    path: str | None = None
    download: bool = False
    source: str | None = None
    image_size: tuple[int, ...] | None = None
    train_size: int | None = None
    test_size: int | None = None
    subset_seed: int = 0
    balanced: bool = False
    standardize: str = "channel"
    unit_norm: bool = False
    zca: float | None = None
    downsample: int = 1
    statistics: str = "full"
    labels: str = "centered"
    drop_invalid: bool = False
    n_train: int = 500
    n_test: int = 100
    shape: tuple[int, ...] = (8, 8, 1)
    classes: int = 10
    noise: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("digits", "npz", "cifar10", "cifar100", "image_folder", "mnist", "synthetic", "labels")
        _choice("data.kind", self.kind, kinds)
        _choice("data.standardize", self.standardize, ("channel", "none"))
        _choice("data.statistics", self.statistics, ("full", "subset"))
        _choice("data.labels", self.labels, ("centered", "half", "regression"))
        for name in ("train_size", "test_size", "downsample", "n_train", "n_test"):
            _at_least(f"data.{name}", getattr(self, name), 1)
        _at_least("data.classes", self.classes, 2)
        _at_least("data.zca", self.zca, 0.0)
        _at_least("data.noise", self.noise, 0.0)
        if self.path is None and self.kind not in ("digits", "synthetic"):
            raise ConfigError(f"data={self.kind} needs data.path=FILE_OR_FOLDER")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"data.shape={list(self.shape)} must be [height, width, channels], all positive")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ConfigError(f"data.image_size={list(self.image_size)} must be [height, width], both positive")
        if self.kind == "labels" and self.balanced:
            raise ConfigError("data.balanced orders images, and the rows of a given kernel have their order: leave it out")


KERNELS = (
    "fcn",
    "cnn_vec",
    "cnn_gap",
    "cntk",
    "myrtle5",
    "myrtle7",
    "myrtle10",
    "resnet",
    "wide_resnet",
    "attention",
    "rbf",
    "laplace",
    "matern",
    "linear",
    "spec",
    "gram",
)
"""Families of architectures, `spec`, and `gram` (a matrix that was given)."""

PLAIN_KERNELS = ("fcn", "cnn_vec", "cnn_gap", "cntk")
"""Families whose deeper networks begin like the shallower ones: several depths come out of one evaluation."""


@dataclass(frozen=True)
class KernelConfig:
    """A declared architecture.

    Every family takes some of the fields below (docs/architectures.md lists them) and refuses the others, if they are set to
    anything but the default that stands here. `conf/kernel/` has the usual values of each family.

    Args:
        kind: a family of `KERNELS`, built from the fields below, `spec` (layers from a file), or `gram`: no network, but
            kernel matrices from files.
        depth: hidden layers of `fcn`, convolutional layers of `cnn_vec`, `cnn_gap` and `attention`; layers of `cntk` and
            `wide_resnet` as their papers count them.
        readout_depths: of `PLAIN_KERNELS`: several values for `depth`, each a run of its own in `run_dir/depth=...`; their
            kernels come out of one evaluation, that of the deepest.
        width: hidden features or channels; matters in the `standard` parameterisation only.
        w_std, b_std: of every layer, the readout included; `b_std` None has no bias.
        activation: name of a nonlinearity (`relu`, `erf`, `gelu`, `swish`, ...; docs/architectures.md has them all).
        activation_args: its parameters, such as `{alpha: 0.1}`.
        parameterization: `ntk` or `standard`.
        filter: height and width of convolutions.
        padding: of convolutions, `SAME`, `VALID` or `CIRCULAR`.
        pool: before the readout, `gap` (global average pooling), `vec` (none), or `lap` (local average pooling, of `cntk`).
        pool_radius: of `lap`: squares of `2 pool_radius + 1` pixels.
        blocks: of `resnet` and `attention`.
        widen: of `wide_resnet`: channels are `width * widen`, twice and four times that.
        mechanism: of `attention`, `SOFTMAX`, `IDENTITY` or `RELU`.
        length_scale: of `rbf`, `laplace` and `matern`, in units of a pixel as prepared.
        nu: smoothness of `matern`: 0.5, 1.5 or 2.5.
        path: JSON or YAML list of layers, for `kind: spec`.
        train: of `gram`: the kernel among training points (n, n), `.npy` or a Zarr array, float32 or float64.
        test: of `gram`: test points by training points (p, n), likewise.
        test_diagonal: of `gram`: `k(x, x)` of the test points (p,), `.npy`; variances need it, and error bounds are estimates
            without it.
        dtype: `float32` or `float64`, of the computation; not used by `gram`.
    """

    kind: str = "fcn"
    depth: int = 3
    readout_depths: tuple[int, ...] = ()
    width: int = 512
    w_std: float = 1.4142135623730951
    b_std: float | None = 0.1
    activation: str = "relu"
    activation_args: dict[str, Any] = field(default_factory=dict)
    parameterization: str = "ntk"
    filter: tuple[int, ...] = (3, 3)
    padding: str = "SAME"
    pool: str = "gap"
    pool_radius: int = 4
    blocks: int = 3
    widen: int = 1
    mechanism: str = "SOFTMAX"
    length_scale: float = 1.0
    nu: float | None = None
    path: str | None = None
    train: str | None = None
    test: str | None = None
    test_diagonal: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _choice("kernel.kind", self.kind, KERNELS)
        _choice("kernel.dtype", self.dtype, ("float32", "float64"))
        _choice("kernel.parameterization", self.parameterization, ("ntk", "standard"))
        _choice("kernel.padding", self.padding, ("SAME", "VALID", "CIRCULAR"))
        _choice("kernel.pool", self.pool, ("gap", "vec", "lap"))
        _choice("kernel.mechanism", self.mechanism, ("SOFTMAX", "IDENTITY", "RELU"))
        _choice("kernel.nu", self.nu, (None, 0.5, 1.5, 2.5))
        for depth in (self.depth, *self.readout_depths):
            _at_least("kernel.depth", depth, 0)
        if len(set(self.readout_depths)) != len(self.readout_depths):
            raise ConfigError(f"kernel.readout_depths={list(self.readout_depths)} must hold each depth once")
        if self.readout_depths and self.kind not in PLAIN_KERNELS:
            raise ConfigError(
                f"kernel.readout_depths is for {', '.join(PLAIN_KERNELS)}, whose deeper networks begin like the shallower "
                f"ones; for kernel={self.kind} sweep instead, if it has a depth: --multirun kernel.depth=1,3"
            )
        _at_least("kernel.pool_radius", self.pool_radius, 0)
        for name in ("width", "blocks", "widen"):
            _at_least(f"kernel.{name}", getattr(self, name), 1)
        _at_least("kernel.w_std", self.w_std, 0.0, strict=True)
        _at_least("kernel.b_std", self.b_std, 0.0)
        _at_least("kernel.length_scale", self.length_scale, 0.0, strict=True)
        if len(self.filter) != 2 or min(self.filter) < 1:
            raise ConfigError(f"kernel.filter={list(self.filter)} must be [height, width], both positive")
        if self.kind == "spec" and self.path is None:
            raise ConfigError("kernel=spec needs kernel.path=FILE.json or FILE.yaml, a list of layers")
        if self.kind == "gram" and None in (self.train, self.test):
            raise ConfigError(
                "kernel=gram needs kernel.train=FILE (training points by training points) and kernel.test=FILE (test points "
                "by training points), each a .npy file or a Zarr array"
            )


@dataclass(frozen=True)
class GridConfig:
    """Tiling of the Gram matrix.

    Args:
        edge: rows of a tile; None takes that of a store which has the same values already, or chooses one from the size of
            the data set and the time of a pair.
        pairs_per_step: columns of a tile that go through the layers of a convolutional network together; None takes the
            fastest of a few. With both given, nothing is measured.
    """

    edge: int | None = None
    pairs_per_step: int | None = None

    def __post_init__(self) -> None:
        _at_least("grid.edge", self.edge, 1)
        _at_least("grid.pairs_per_step", self.pairs_per_step, 1)


@dataclass(frozen=True)
class StoreConfig:
    """Where Gram stores live and in which precision.

    Args:
        url: folder that all runs share; a store inside it is addressed by its identity.
        dtype: of the stored tiles, `float32` or `float64`; None follows `kernel.dtype`.
        name: of one store under `url` that must be used; its identity has to agree. None addresses by identity.
        gram: `stored` (every tile is computed once and kept), `recompute` (only diagonals are stored, and a tile is computed
            whenever it is read and not in memory), or `auto` (recompute where the disk lacks the space, or where that is
            clearly faster by the plan's estimate).
    """

    url: str = "./store"
    dtype: str | None = None
    name: str | None = None
    gram: str = "stored"

    def __post_init__(self) -> None:
        _choice("store.gram", self.gram, ("stored", "recompute", "auto"))
        _choice("store.dtype", self.dtype, (None, "float32", "float64"))


@dataclass(frozen=True)
class SolverConfig:
    """How the linear algebra is done.

    Args:
        kind: `krylov` (block Lanczos, every time and ridge), `eigh` (dense, the reference), `cholesky` (tiled factors, t =
            inf) or `cg` (conjugate gradients, t = inf, in little memory).
        tolerance: of krylov, largest acceptable error bound of a prediction, absolute, before rounding terms.
        residual: of cg, largest acceptable `|y - A u| / |y|` of any output, in float64.
        preconditioner: of cg: `nystrom` (randomised, from products), `cholesky` (pivoted, from rows), `float32_factor` (of
            the whole matrix, in tiles, as for `solver=cholesky solver.precision=mixed`) or `none`.
        rank: of `nystrom` and `cholesky`; None looks for what the smallest ridge calls for, at most 256.
        max_steps: block steps after which krylov and cg stop and say that they have not converged.
        products: `float64` (exact on the stored tiles) or `float32` (about 1.6 times faster, accurate to 1e-7 of the matrix).
        checkpoint_every: block steps between checkpoints of the basis, or of the vectors of cg.
        basis_gib: of krylov, memory for its basis in the driver; a basis that outgrows it is restarted, and answers the times
            and ridges of this run alone. None is half of what the processes leave of the memory budget.
        sample_rows: rows of the matrix recomputed in float64 to measure rounding and storage errors; None is 64, or fewer
            where they would take more than 2% of the time of the tiles.
        precision: of cholesky: `float64`, `mixed` (float32 factors, refined: as accurate, in half the time and memory; float64
            ones where that does not converge) or `float32` (accurate to a residual of about 1e-5 times the condition's root).
        factor_edge: rows of a tile of a factor; None is chosen from the rows, the workers and the memory.
        leave_one_out: of cholesky: exact leave-one-out errors, for as much arithmetic again as a factor.
    """

    kind: str = "krylov"
    tolerance: float = 1e-4
    residual: float = 1e-8
    preconditioner: str = "nystrom"
    rank: int | None = None
    max_steps: int = 1000
    products: str = "float64"
    checkpoint_every: int = 10
    basis_gib: float | None = None
    sample_rows: int | None = None
    precision: str = "float64"
    factor_edge: int | None = None
    leave_one_out: bool = True

    def __post_init__(self) -> None:
        _choice("solver.kind", self.kind, ("krylov", "eigh", "cholesky", "cg"))
        _choice("solver.preconditioner", self.preconditioner, ("nystrom", "cholesky", "float32_factor", "none"))
        _choice("solver.products", self.products, ("float32", "float64"))
        _at_least("solver.tolerance", self.tolerance, 0.0, strict=True)
        _at_least("solver.residual", self.residual, 0.0, strict=True)
        _at_least("solver.rank", self.rank, 1)
        if self.rank is not None and self.preconditioner not in ("nystrom", "cholesky"):
            raise ConfigError(
                f"solver.rank is for nystrom and cholesky: solver.preconditioner={self.preconditioner} has none"
            )
        _at_least("solver.max_steps", self.max_steps, 1)
        _at_least("solver.checkpoint_every", self.checkpoint_every, 1)
        _at_least("solver.basis_gib", self.basis_gib, 0.0, strict=True)
        _at_least("solver.sample_rows", self.sample_rows, 1)
        _choice("solver.precision", self.precision, ("float64", "mixed", "float32"))
        _at_least("solver.factor_edge", self.factor_edge, 1)


@dataclass(frozen=True)
class PredictConfig:
    """Which predictions are made.

    Args:
        kernels: any of `ntk` (all layers trained), `nngp` (the readout trained) and `ntkgp` (posterior with T for K); of
            `kernel=gram` it is `gram`, whatever the default.
        times: training times in gradient steps, `inf` allowed; None is a logarithmic grid over all of training and inf.
        ridges: added to the diagonal.
        ridge_scale: `relative` (to the mean of the diagonal) or `absolute`.
        learning_rate: rate of gradient descent on ||f - y||^2 / (2 n c).
        dynamics: `gradient_flow`, `gradient_descent` (discrete steps), or `momentum`.
        momentum: of heavy-ball momentum, between 0 and 1.
        train_sizes: several training sizes, each a run of its own in `run_dir/train_size=...` on a leading block of one Gram
            matrix, and a learning curve of them all in `run_dir`.
        covariance: `none`, `diagonal` (variances) or `full`, over networks, of every test image; docs/uncertainty.md says
            what it takes with each solver.
        covariance_batch: test images that are solved for together; None is chosen from the memory.
        selection: how the ridge and the time that a report recommends are chosen, from training images alone: `held_out`
            (the last of them are predicted from the others), `loo` (leave-one-out, t = inf) or `none`.
        held_out: of `held_out`: a share of the training images, or from 1 on a number of them.
    """

    kernels: tuple[str, ...] = ("ntk", "nngp")
    times: tuple[float, ...] | None = None
    ridges: tuple[float, ...] = (0.0,)
    ridge_scale: str = "relative"
    learning_rate: float = 1.0
    dynamics: str = "gradient_flow"
    momentum: float = 0.9
    train_sizes: tuple[int, ...] = ()
    covariance: str = "none"
    covariance_batch: int | None = None
    selection: str = "none"
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not self.kernels or len(set(self.kernels)) != len(self.kernels):
            raise ConfigError(f"predict.kernels={list(self.kernels)} must name at least one kernel, each once")
        for kernel in self.kernels:
            _choice("predict.kernels", kernel, ("ntk", "nngp", "ntkgp", "gram"))
        _choice("predict.ridge_scale", self.ridge_scale, ("relative", "absolute"))
        _choice("predict.dynamics", self.dynamics, ("gradient_flow", "gradient_descent", "momentum"))
        _choice("predict.covariance", self.covariance, ("none", "diagonal", "full"))
        _at_least("predict.covariance_batch", self.covariance_batch, 1)
        _choice("predict.selection", self.selection, ("none", "held_out", "loo"))
        _at_least("predict.held_out", self.held_out, 0.0, strict=True)
        if self.held_out >= 1 and self.held_out != int(self.held_out):
            raise ConfigError(f"predict.held_out={self.held_out} must be a share below 1, or a whole number of images")
        _at_least("predict.learning_rate", self.learning_rate, 0.0, strict=True)
        for name in ("times", "ridges"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"predict.{name}={list(values)} must hold at least one value, each once")
            for value in values:
                _at_least(f"predict.{name}", value, 0.0)
        if any(math.isinf(ridge) for ridge in self.ridges):
            raise ConfigError("predict.ridges must be finite")
        for size in self.train_sizes:
            _at_least("predict.train_sizes", size, 2)
        if len(set(self.train_sizes)) != len(self.train_sizes):
            raise ConfigError(f"predict.train_sizes={list(self.train_sizes)} must hold each size once")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"predict.momentum={self.momentum} must be at least 0 and below 1")
        if self.dynamics == "gradient_descent" and self.times is not None:
            for t in self.times:
                if math.isfinite(t) and t != int(t):
                    raise ConfigError(f"predict.times={t}: discrete gradient descent takes whole steps")


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
        _choice("cluster.launch.kind", self.kind, LAUNCHERS)
        _at_least("cluster.launch.nodes", self.nodes, 1)
        for name in ("cpus_per_node", "memory_per_node"):
            _at_least(f"cluster.launch.{name}", getattr(self, name), 1)
        for name in ("gpus_per_node", "retries"):
            _at_least(f"cluster.launch.{name}", getattr(self, name), 0)
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
        kind: `local` (Ray on this machine, started and stopped by the run), `ray` (a running Ray cluster, joined and left)
            or `serial` (this process, no Ray).
        address: of `ray`: `auto` (the cluster that this machine is a node of, or RAY_ADDRESS) or `host:port` of its head.
        workers: processes that compute; None is one per core. Of `ray`, what its nodes hold when the run joins.
        max_workers: of `ray`: most tasks at once, and what an autoscaler is asked for; None is what the nodes hold.
        threads_per_worker: threads of each; 1 keeps workers from fighting.
        cpus_per_task: that a task claims of its node; None is `threads_per_worker`.
        gpus_per_task: likewise; fractions let several tasks share a GPU, each with its part of the memory.
        memory_per_task: GiB that a task claims of its node; None claims none.
        resources: custom resources that a task claims, by name.
        memory_gib: budget of all processes together; None is 60% of what the machine has free. Of `ray` it follows from
            `memory_per_task`, or from what the nodes have.
        retries: attempts after a lost worker.
        speculate: of `ray`: start a second copy of a task that takes far longer than the others, once all have started.
        launch: nodes that `ntkpipe launch` asks for.
    """

    kind: str = "local"
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
        _choice("cluster.kind", self.kind, ("local", "ray", "serial"))
        _at_least("cluster.workers", self.workers, 1)
        _at_least("cluster.max_workers", self.max_workers, 1)
        _at_least("cluster.threads_per_worker", self.threads_per_worker, 1)
        for name in ("cpus_per_task", "memory_per_task", "memory_gib"):
            _at_least(f"cluster.{name}", getattr(self, name), 0.0, strict=True)
        _at_least("cluster.gpus_per_task", self.gpus_per_task, 0.0)
        if self.gpus_per_task > 1 and self.gpus_per_task != int(self.gpus_per_task):
            raise ConfigError(f"cluster.gpus_per_task={self.gpus_per_task} must be whole, or below 1")
        for name, amount in self.resources.items():
            _at_least(f"cluster.resources.{name}", amount, 0.0, strict=True)
        _at_least("cluster.retries", self.retries, 0)
        if self.address.startswith("ray://"):
            raise ConfigError(
                f"cluster.address={self.address}: Ray Client keeps no tasks' results when the connection is lost. Run on a "
                "node of the cluster, or submit with ntkpipe launch cluster/launch=ray"
            )
        if self.address != "auto" and not re.fullmatch(r"\[?[\w.:-]+\]?:\d{1,5}", self.address):
            raise ConfigError(f"cluster.address={self.address} must be auto or host:port, such as 10.0.0.1:6379")

    def worker_count(self) -> int:
        """Processes that compute: as set, one for `serial`, or as many as the available cores feed with threads.

        Of `ray`, before the cluster was asked, `max_workers` or one.
        """
        if self.workers is not None or self.kind == "serial":
            return self.workers or 1
        if self.kind == "ray":
            return self.max_workers or 1
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, available // self.threads_per_worker)


@dataclass(frozen=True)
class WatchConfig:
    """Who follows a run from elsewhere, besides the terminal and the run's own log.

    Args:
        reporters: experiment trackers: any of `mlflow`, `wandb` and `tensorboard`; where to is said in the way of each.
        every: seconds between two writes of the run's object in the store.
    """

    reporters: tuple[str, ...] = ()
    every: float = 5.0

    def __post_init__(self) -> None:
        for name in self.reporters:
            _choice("watch.reporters", name, ("mlflow", "wandb", "tensorboard"))
        _at_least("watch.every", self.every, 0.1)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run needs. `run_dir` holds its results; the Gram tiles live in `store.url`.

    Args:
        augment: `hflip` trains on every prepared image and its mirror image, exactly; `none` on the images alone.
    """

    data: DataConfig = field(default_factory=DataConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    augment: str = "none"
    run_dir: str = "./runs/default"

    def __post_init__(self) -> None:
        _choice("augment", self.augment, ("none", "hflip"))
        self._check_given()
        if self.predict.train_sizes:
            self._check_sizes()
        if self.augment == "hflip" and self.data.zca is not None:
            raise ConfigError(
                "augment=hflip flips prepared images, and whitening (data.zca) does not commute with flips"
            )
        converged_only = self.predict.times is not None and all(math.isinf(t) for t in self.predict.times)
        if self.solver.kind in ("cholesky", "cg") and not converged_only:
            raise ConfigError(
                f"solver={self.solver.kind} answers t = inf only: set predict.times=[inf] or solver=krylov"
            )
        self._check_selection()
        if self.kernel.readout_depths and self.store.name is not None:
            raise ConfigError("store.name names one Gram store, and each of kernel.readout_depths has one of its own")
        if self.kernel.dtype == "float32" and self.store.dtype == "float64":
            raise ConfigError("store.dtype=float64 would store float32 values: set kernel.dtype=float64 as well")

    def _check_selection(self) -> None:
        p = self.predict
        if p.selection == "none":
            return
        one_ridge, one_time = len(p.ridges) == 1, p.times is not None and len(p.times) == 1
        if p.selection == "loo" and p.times is not None and not any(math.isinf(t) for t in p.times):
            raise ConfigError("predict.selection=loo answers t = inf alone: add inf to predict.times, or use held_out")
        if one_ridge and (one_time or p.selection == "loo"):
            raise ConfigError(
                f"predict.selection={p.selection} has one ridge{' and one time' if one_time else ''} to choose from: give "
                "several, such as predict.ridges=[0,1e-5,1e-4,1e-3,1e-2,1e-1]"
                + (" or predict.times=null" if p.selection == "held_out" else "")
            )

    def _check_sizes(self) -> None:
        sizes = f"predict.train_sizes={list(self.predict.train_sizes)}"
        if self.kernel.readout_depths:
            raise ConfigError(
                f"{sizes} and kernel.readout_depths are two sweeps: --multirun kernel.depth=1,3 with train_sizes makes both"
            )
        if self.data.train_size is not None:
            raise ConfigError(f"{sizes} sets the training size: leave data.train_size out")
        if self.data.statistics == "subset":
            raise ConfigError(
                f"{sizes} reads leading blocks of one matrix, and with data.statistics=subset every size would prepare the "
                "images in another way: use data.statistics=full"
            )

    def _check_given(self) -> None:
        """A given matrix comes with labels alone, and what needs images or layers has no meaning for it."""
        if (self.kernel.kind == "gram") != (self.data.kind == "labels"):
            raise ConfigError(
                f"kernel={self.kernel.kind} data={self.data.kind}: a given matrix (kernel=gram) takes its labels from "
                "data=labels data.path=FILE.npz, and data=labels has no images for any other kernel"
            )
        if self.kernel.kind != "gram":
            if "gram" in self.predict.kernels:
                raise ConfigError("predict.kernels=[gram] is for kernel=gram")
            return
        if self.predict.kernels == PredictConfig().kernels:
            object.__setattr__(self, "predict", dataclasses.replace(self.predict, kernels=("gram",)))
        if self.predict.kernels != ("gram",):
            raise ConfigError(f"predict.kernels={list(self.predict.kernels)}: a given matrix is called gram")
        if self.augment != "none":
            raise ConfigError("augment=hflip flips images, and kernel=gram has none: give the matrix of the doubled set")
        if self.store.gram != "stored" or self.store.name is not None:
            raise ConfigError("store.gram and store.name are for tiles that ntkpipe computes: kernel=gram is read in place")
        if self.predict.covariance == "full":
            raise ConfigError(
                "predict.covariance=full needs the kernel among test points, which kernel=gram does not have: use diagonal"
            )
        if self.predict.covariance == "diagonal" and self.kernel.test_diagonal is None:
            raise ConfigError("predict.covariance=diagonal needs k(x, x) of the test points: kernel.test_diagonal=FILE.npy")

    @property
    def copies(self) -> int:
        """How often every training image counts: once, or with its flip twice."""
        return 1 if self.augment == "none" else 2

    @property
    def store_dtype(self) -> str:
        """Of the stored tiles."""
        return self.store.dtype or self.kernel.dtype


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain JSON-ready values; infinity becomes the string `inf`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        return value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A frozen dataclass from plain values, nested ones included; lists become tuples, `"inf"` becomes infinity.

    Raises:
        ConfigError: on an unknown field, or a value that the dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)} in {cls.__name__}; known: {', '.join(hints)}")
    made = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            made[name] = from_dict(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            made[name] = tuple(float("inf") if v == "inf" else v for v in value)
        else:
            made[name] = float("inf") if value == "inf" and hint is float else value
    try:
        return cls(**made)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error
