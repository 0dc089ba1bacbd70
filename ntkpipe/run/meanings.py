"""Table of the settings that each choice reads. All settings that a user gives are checked against it.

Comparing values is not enough: `kernel.depth=3` equals the default, and a run that ignores the depth is still not the
run that its user meant.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from ntkpipe.config import KERNELS, FiniteConfig, KernelConfig, RunConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.from_config import kernel_takes


@dataclass(frozen=True)
class Need:
    """A condition of a setting: another setting must have one of these values.

    Args:
        setting: the other setting.
        values: its accepted values.
        where: values of further settings, by dotted name; the condition applies only if all of them match.
    """

    setting: str
    values: tuple[Any, ...]
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, hash=False)


Needs = tuple[Need, ...]


def _need(setting: str, *values: Any, where: Mapping[str, tuple[Any, ...]] | None = None) -> Needs:
    return (Need(setting, values, where or {}),)


_ALWAYS: Needs = ()
_FETCHED = _need("data.kind", "cifar10", "cifar100", "mnist")
_IMAGES = _need("data.kind", "digits", "npz", "cifar10", "cifar100", "image_folder", "mnist", "synthetic")
_POINTS = _need("data.kind", "digits", "npz", "table", "cifar10", "cifar100", "image_folder", "mnist", "synthetic")
_TABLE = _need("data.kind", "table")
_SYNTHETIC = _need("data.kind", "synthetic")
_KRYLOV = _need("solver.kind", "krylov", "auto")
_CG, _CHOLESKY = (_need("solver.kind", kind) for kind in ("cg", "cholesky"))
_STEPS = _need("solver.kind", "krylov", "cg", "flow", "auto")
_BLOCK_STEPS = _need("solver.kind", "krylov", "cg", "auto")
# Means of cg use `residual`. Its solves for variances use the tolerance instead.
_VARIANCES_OF_CG = _need(
    "predict.covariance", "diagonal", "full", where={"solver.kind": ("cg",), "predict.selection": ("none", "held_out")}
)
_JOINED = _need("cluster.kind", "ray")
_COMPUTED = _need("kernel.kind", *(kind for kind in KERNELS if kind != "gram"))
_ANY_LAUNCH = _need("cluster.launch.kind", "slurm", "ray", "kuberay", "cloud")
_SLURM, _KUBERAY, _CLOUD = (_need("cluster.launch.kind", kind) for kind in ("slurm", "kuberay", "cloud"))
_BATCH = _need("cluster.launch.kind", "slurm", "kuberay")


def _kernel_needs() -> dict[str, Needs]:
    """Return the conditions of the kernel's settings, from the parameters of each family."""
    needs = {}
    for one in dataclasses.fields(KernelConfig):
        kinds = tuple(kind for kind in KERNELS if one.name in kernel_takes(kind))
        needs[f"kernel.{one.name}"] = _need("kernel.kind", *kinds) if kinds != KERNELS else _ALWAYS
    needs["kernel.pool_radius"] += _need("kernel.pool", "lap")
    return needs


_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

MEANINGS: dict[str, Needs] = {
    "augment": _ALWAYS,
    "report": _ALWAYS,
    "run_dir": _ALWAYS,
    "data.kind": _ALWAYS,
    "data.path": _need("data.kind", "npz", "table", "cifar10", "cifar100", "image_folder", "mnist", "labels"),
    **{f"data.{name}": _TABLE for name in ("target", "features", "missing", "split", "test_path")},
    "data.test_fraction": _need("data.kind", "npz", "table", "image_folder"),
    "data.download": _FETCHED,
    "data.source": _FETCHED + _need("data.download", True),
    "data.image_size": _need("data.kind", "image_folder"),
    "data.layout": _need("data.kind", "npz"),
    "data.train_size": _ALWAYS,
    "data.test_size": _ALWAYS,
    "data.folds": _ALWAYS,
    "data.subset_seed": _POINTS,
    "data.balanced": _POINTS,
    "data.standardize": _POINTS,
    "data.unit_norm": _POINTS,
    "data.zca": _POINTS,
    "data.downsample": _IMAGES,
    "data.statistics": _POINTS,
    "data.labels": _ALWAYS,
    "data.targets": _need("data.kind", "npz", "table", "labels"),
    "data.drop_invalid": _need("data.kind", "npz"),
    **{f"data.{name}": _SYNTHETIC for name in ("n_train", "n_test", "shape", "classes", "noise")},
    **_kernel_needs(),
    "grid.edge": _ALWAYS,
    "grid.pairs_per_step": _COMPUTED,
    "store.url": _ALWAYS,
    "store.dtype": _COMPUTED,
    "store.name": _COMPUTED,
    "store.gram": _COMPUTED,
    "solver.kind": _ALWAYS,
    "solver.tolerance": _STEPS + _VARIANCES_OF_CG,
    "solver.stop": _need("solver.kind", "krylov", "cg", "auto"),
    "solver.residual": _CG,
    "solver.preconditioner": _CG,
    "solver.rank": _CG + _need("solver.preconditioner", "nystrom", "cholesky"),
    "solver.max_steps": _BLOCK_STEPS,
    "solver.products": _ALWAYS,
    "solver.checkpoint_every": _STEPS,
    "solver.basis": _KRYLOV,
    "solver.basis_gib": _KRYLOV,
    "solver.basis_dtype": _KRYLOV,
    "solver.sample_rows": _ALWAYS,
    "solver.precision": _CHOLESKY,
    "solver.factor_edge": _need("solver.kind", "cholesky", "cg")
    + _need("solver.preconditioner", "float32_factor", where={"solver.kind": ("cg",)}),
    "solver.leave_one_out": _CHOLESKY,
    "solver.refine": _COMPUTED,
    "predict.kernels": _ALWAYS,
    "predict.times": _ALWAYS,
    "predict.ridges": _ALWAYS,
    "predict.ridge_scale": _ALWAYS,
    "predict.learning_rate": _ALWAYS,
    "predict.dynamics": _ALWAYS,
    "predict.momentum": _need("predict.dynamics", "momentum"),
    "predict.loss": _ALWAYS,
    "predict.huber_delta": _need("predict.loss", "huber"),
    "predict.train_sizes": _ALWAYS,
    "predict.theory": _ALWAYS,
    "predict.covariance": _ALWAYS,
    "predict.covariance_batch": _need("predict.covariance", "diagonal", "full"),
    "predict.selection": _ALWAYS,
    "predict.held_out": _need("predict.selection", "held_out", where={"predict.noise": (None, "likelihood")}),
    "predict.initial": _ALWAYS,
    "predict.error_estimate": _ALWAYS,
    "predict.noise": _need("predict.covariance", "diagonal", "full"),
    **{f"finite.{one.name}": _ALWAYS for one in dataclasses.fields(FiniteConfig)},
    "finite.batch_size": _need("finite.training", "sgd"),
    "cluster.kind": _ALWAYS,
    "cluster.address": _JOINED,
    "cluster.workers": _need("cluster.kind", "local", "serial", "auto"),
    "cluster.max_workers": _JOINED,
    "cluster.threads_per_worker": _ALWAYS,
    "cluster.cpus_per_task": _JOINED,
    "cluster.gpus_per_task": _JOINED,
    "cluster.memory_per_task": _JOINED,
    "cluster.resources": _JOINED,
    "cluster.memory_gib": _ALWAYS,
    "cluster.retries": _need("cluster.kind", "local", "ray", "auto"),
    "cluster.speculate": _JOINED,
    "cluster.launch.kind": _ALWAYS,
    "cluster.launch.name": _ANY_LAUNCH,
    "cluster.launch.nodes": _need("cluster.launch.kind", "slurm", "kuberay", "cloud"),
    "cluster.launch.cpus_per_node": _BATCH,
    "cluster.launch.gpus_per_node": _ANY_LAUNCH,
    "cluster.launch.memory_per_node": _BATCH,
    "cluster.launch.time_limit": _BATCH,
    "cluster.launch.workdir": _ANY_LAUNCH,
    "cluster.launch.python": _ANY_LAUNCH,
    **{f"cluster.launch.{name}": _SLURM for name in ("partition", "account", "interface")},
    "cluster.launch.address": _need("cluster.launch.kind", "ray"),
    "cluster.launch.image": _need("cluster.launch.kind", "kuberay", "cloud"),
    **{f"cluster.launch.{name}": _KUBERAY for name in ("namespace", "service_account", "claim")},
    **{f"cluster.launch.{name}": _CLOUD for name in ("region", "head_type", "worker_type", "ssh_user", "filesystem")},
    "cluster.launch.retries": _BATCH,
    "watch.reporters": _ALWAYS,
    "watch.every": _ALWAYS,
}
"""Conditions of every setting of a run, by dotted name. A setting that is missing here fails a test."""


def settings(cls: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a dataclass."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from settings(typing.cast("type", hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_meanings(config: RunConfig, told: Collection[str], *, assuming: Mapping[str, Any] | None = None) -> None:
    """Refuse settings that the user gave and that this run would ignore.

    Args:
        config: configuration of the run.
        told: dotted names of the settings that the user gave, on the command line or in a file.
        assuming: values that replace those of the configuration, by dotted name.

    Raises:
        ConfigError: naming the setting, the choice that ignores it, and the choice that was probably meant.
    """
    assumed = dict(assuming or {})

    def value(setting: str) -> Any:
        return assumed[setting] if setting in assumed else _value(config, setting)

    # The table lists the most decisive settings first.
    for setting in (name for name in MEANINGS if name in told):
        if value(setting) is None:
            continue  # `setting=null` leaves it out
        for need in MEANINGS[setting]:
            applies = all(value(other) in values for other, values in need.where.items())
            if applies and value(need.setting) not in need.values:
                raise ConfigError(_refusal(setting, value(setting), need, value(need.setting), told))


def _value(config: RunConfig, setting: str) -> Any:
    return reduce(getattr, setting.split("."), config)


def _refusal(setting: str, value: Any, need: Need, present: Any, told: Collection[str]) -> str:
    group, _, name = need.setting.rpartition(".")
    chooser = group.replace(".", "/") if name == "kind" else need.setting
    by_default = need.setting not in told and present == _value(RunConfig(), need.setting)
    # For an explicit choice, list the settings of the group that it reads.
    siblings = {name: needs for name, needs in MEANINGS.items() if name.startswith(setting[: setting.index(".") + 1])}
    takes = ", ".join(name for name, needs in siblings.items() if any(_names(n, need.setting, present) for n in needs))
    aside = ", which is the default" if by_default else f", which takes {takes}" if takes else ""
    likely = [_shown(one) for one in (likely_data(value) if setting == "data.path" else need.values) if one != "auto"]
    wanted = f"{', '.join(likely[:-1])} or {likely[-1]}" if len(likely) > 1 else likely[0]
    what = f"{setting}={_shown(value)}"
    return (
        f"{what} has no meaning for {chooser}={_shown(present)}{aside}: set {chooser}={wanted} as well, or leave "
        f"{setting} out"
    )


def _names(need: Need, setting: str, value: Any) -> bool:
    return need.setting == setting and value in need.values


def likely_data(path: str) -> tuple[str, ...]:
    """Return the kinds of data that fit a path, judged by its name and its content."""
    file = Path(path).expanduser()
    name = file.name.lower()
    if name.endswith(".npz"):
        return ("npz",)
    if name.endswith((".csv", ".tsv", ".parquet", ".pq")):
        return ("table",)
    if name.endswith(".zip") or (file / "train").is_dir():
        return ("image_folder",)
    for kind, start in (("cifar100", "cifar-100"), ("cifar10", "cifar-10")):
        if name.startswith((start, start.replace("-", ""))):
            return (kind,)
    if any(file.glob("train-images*")) or name in ("mnist", "fashion-mnist"):
        return ("mnist",)
    if file.is_dir() and next((one for one in file.glob("*/*") if one.suffix.lower() in _PICTURES), None):
        return ("image_folder",)
    return ("npz", "table", "image_folder", "cifar10", "cifar100", "mnist")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)
