"""Fills in and submits the job files of `ntkpipe launch`, for one configuration."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ntkpipe.cluster.templates import TEMPLATES, Raw, fill, read_template
from ntkpipe.config import ClusterConfig, LaunchConfig
from ntkpipe.errors import ConfigError, RequeueError, ResourceError

_SUBMIT_SECONDS = 1800.0  # `ray up` waits for a machine


@dataclass(frozen=True)
class Launch:
    """A job file and the commands that submit it.

    Args:
        text: content of the file.
        path: path of the file.
        commands: commands for submission by hand, as lists of words.
    """

    text: str
    path: Path
    commands: tuple[tuple[str, ...], ...]

    def write(self) -> None:
        """Write the file with the permissions that its scheduler needs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text, encoding="utf-8")


def prepare(cluster: ClusterConfig, run_dir: str, overrides: Sequence[str]) -> Launch:
    """Return the job file for a launcher.

    Args:
        cluster: configuration of the cluster, with the launcher's settings.
        run_dir: folder of the run, as configured.
        overrides: settings of the run, as `key=value`. Settings of the launcher are left out.

    Raises:
        ConfigError: if a setting is missing or cannot be passed on safely.
    """
    launch = cluster.launch
    if launch.kind == "none":
        raise ConfigError(f"ntkpipe launch needs cluster/launch={'|'.join(TEMPLATES)}")
    values = _FILLERS[launch.kind](launch, run_dir, _command(cluster, overrides))
    text = fill(read_template(launch.kind), values, shell=launch.kind == "slurm")
    path = Path(run_dir) / "launch" / Path(TEMPLATES[launch.kind]).name
    return Launch(text, path, tuple(_submissions(launch, path, str(values.get("remote", "")))))


def submit(launch: Launch, config: LaunchConfig) -> str:
    """Submit the file to its scheduler, and return the output of the scheduler.

    Raises:
        ResourceError: if the scheduler is missing or refuses the job.
    """
    if config.kind == "ray":
        from ntkpipe.cluster.ray_jobs import submit_job

        return submit_job(launch.path, config.address)
    said = []
    for words in launch.commands:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_SUBMIT_SECONDS, check=False)  # noqa: S603 - a list of words, no shell
        except FileNotFoundError as error:
            raise ResourceError(
                f"{words[0]} is not installed on this machine: run `{shlex.join(words)}` on a machine that has it"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"`{shlex.join(words)}` took more than {_SUBMIT_SECONDS:.0f} s") from error
        if done.returncode:
            raise ResourceError(f"`{shlex.join(words)}` failed: {(done.stderr or done.stdout).strip()}")
        said.append(done.stdout.strip())
    return "\n".join(filter(None, said))


def _command(cluster: ClusterConfig, overrides: Sequence[str]) -> list[str]:
    """Return the words after `python` that start the same run on the job's cluster."""
    kept = []
    for word in overrides:
        if "\n" in word or "\0" in word:
            raise ConfigError(f"{word!r} has a line break, which cannot be passed to a job: remove it")
        key = word.partition("=")[0].lstrip("+~")
        if not key.startswith(("cluster/launch", "cluster.launch", "cluster.address")) and key not in (
            "cluster",
            "cluster.kind",
        ):
            kept.append(word)
    claimed = any(word.startswith("cluster.gpus_per_task=") for word in kept)
    gpus = ["cluster.gpus_per_task=1"] if cluster.launch.gpus_per_node and not claimed else []
    return ["-m", "ntkpipe", "run", *kept, "cluster=ray", *gpus]


def _needed(launch: LaunchConfig, *names: str) -> None:
    if missing := [f"cluster.launch.{name}" for name in names if getattr(launch, name) is None]:
        raise ConfigError(f"cluster/launch={launch.kind} needs {', '.join(missing)}")


def _slurm(launch: LaunchConfig, run_dir: str, command: list[str]) -> dict[str, object]:
    workdir = launch.workdir or str(Path.cwd())
    python = launch.python or sys.executable
    folder = str(Path(workdir) / run_dir)
    return {
        **{
            n: getattr(launch, n)
            for n in ("name", "nodes", "cpus_per_node", "time_limit", "partition", "account", "retries")
        },
        "gpus_per_node": launch.gpus_per_node or None,
        "gpus_on_node": launch.gpus_per_node,
        "memory_per_node": f"{launch.memory_per_node}G" if launch.memory_per_node else None,
        "workdir": workdir,
        "python": python,
        "pythonpath": os.environ.get("PYTHONPATH", ""),
        "interface": launch.interface or "",
        "run_dir": folder,
        "log": str(Path(folder) / "launch" / "slurm-%j.log"),
        "command": Raw(shlex.join([python, *command])),
    }


def _ray(launch: LaunchConfig, run_dir: str, command: list[str]) -> dict[str, object]:
    workdir = launch.workdir or str(Path.cwd())
    line = shlex.join([launch.python or sys.executable, *command, "cluster.address=auto"])
    return {
        "submission_id": launch.name,
        "entrypoint": f"cd {shlex.quote(workdir)} && exec {line}",
        "run_dir": run_dir,
    }


def _kuberay(launch: LaunchConfig, run_dir: str, command: list[str]) -> dict[str, object]:
    _needed(launch, "image", "claim", "workdir", "cpus_per_node", "memory_per_node")
    _relative("run_dir", run_dir, launch)
    memory = f"{launch.memory_per_node}Gi"
    gpus = {"nvidia.com/gpu": launch.gpus_per_node} if launch.gpus_per_node else {}
    line = shlex.join([launch.python or "python", *command, "cluster.address=auto"])
    return {
        **{
            n: getattr(launch, n)
            for n in ("name", "namespace", "service_account", "image", "claim", "workdir", "nodes", "retries")
        },
        "entrypoint": line,
        "time_limit_seconds": _seconds(launch.time_limit),
        "ray_version": version("ray"),
        "head_memory": "8Gi",
        "requests": {"cpu": str(launch.cpus_per_node), "memory": memory, **gpus},
        "limits": {"memory": memory, **gpus},
    }


def _cloud(launch: LaunchConfig, run_dir: str, command: list[str]) -> dict[str, object]:
    _needed(launch, "image", "region", "worker_type", "filesystem", "workdir")
    _relative("run_dir", run_dir, launch)
    workdir = str(launch.workdir)
    line = shlex.join([launch.python or "python", *command, "cluster.address=auto"])
    again = RequeueError.exit_code
    mount = f"mountpoint -q {shlex.quote(workdir)} || sudo mount -t nfs4 {shlex.quote(str(launch.filesystem))} {shlex.quote(workdir)}"
    return {
        **{n: getattr(launch, n) for n in ("name", "nodes", "region", "ssh_user", "image", "head_type", "worker_type")},
        "mount_option": f"--volume={shlex.quote(f'{workdir}:{workdir}')}",
        "mount_command": f"sudo mkdir -p {shlex.quote(workdir)} && {{ {mount}; }}",
        # One shell line for `ray exec`, which repeats the run while its exit code asks for that.
        "remote": f"cd {shlex.quote(workdir)} && export RAY_AUTH_MODE=token && until {line}; do [ $? -eq {again} ] || exit 1; done",
    }


_FILLERS: Mapping[str, Callable[[LaunchConfig, str, list[str]], dict[str, Any]]] = {
    "slurm": _slurm,
    "ray": _ray,
    "kuberay": _kuberay,
    "cloud": _cloud,
}


def _submissions(launch: LaunchConfig, path: Path, remote: str) -> list[tuple[str, ...]]:
    """Return the commands that submit the file."""
    if launch.kind == "slurm":
        return [("sbatch", "--parsable", str(path))]
    if launch.kind == "kuberay":
        return [("kubectl", "apply", "-f", str(path))]
    if launch.kind == "cloud":
        up = ("ray", "up", "--yes", "--no-config-cache", str(path))
        return [up, ("ray", "exec", "--tmux", "--stop", str(path), remote)]
    return []  # Ray's command line takes no file, but its Python client does


def _relative(name: str, path: str, launch: LaunchConfig) -> None:
    """Refuse a path that is not inside the folder that the nodes share."""
    inside = (Path(str(launch.workdir)) / path).resolve()
    if not inside.is_relative_to(Path(str(launch.workdir)).resolve()):
        raise ConfigError(
            f"{name}={path} is not inside cluster.launch.workdir={launch.workdir}, the only folder that the nodes "
            "share: move it there"
        )


def _seconds(limit: str | None) -> int | None:
    if limit is None:
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
