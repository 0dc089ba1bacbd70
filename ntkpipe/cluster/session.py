"""Creates executors from a configuration, and starts and stops the local Ray of this process."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ntkpipe.config import ClusterConfig
from ntkpipe.errors import RequeueError, ResourceError
from ntkpipe.limits import free_memory
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks import stopping
from ntkpipe.tasks.environment import worker_environment
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor

if TYPE_CHECKING:
    from ntkpipe.cluster.ray_executor import RayExecutor

# Tasks return small records and pools exchange vectors (60,000 x 10 float64 is 4.8 MB), so a small object store is
# enough. Ray's default is 30% of the machine's memory.
OBJECT_STORE_BYTES = 400 << 20
# Ray requires at least 75 MiB.
_LEAST_OBJECT_STORE, _STORE_SHARE = 80 << 20, 0.2

_PREFIX = "ntk-ray-"
_ALIVE = "alive"  # locked while the session lives
_SWEEP_SECONDS = 3600.0
_STOP_SECONDS = 10.0  # Ray's processes wrote for up to 2 s after their driver had ended

# Unix socket paths end at 107 bytes and Ray appends about 75 to its folder's name.
_LONGEST_FOLDER = 30


@contextmanager
def open_executor(config: ClusterConfig, store: ObjectStore | None = None) -> Iterator[Executor]:
    """Context manager with the configured executor, which is stopped at the end. `serial` does not import Ray.

    Args:
        config: configuration of the cluster.
        store: store that all workers of a joined cluster must be able to read; None skips this check.
    """
    if config.kind == "serial":
        executor = SerialExecutor(config.workers or 1)
        try:
            yield executor
        finally:
            executor.close()
    elif config.kind == "ray":
        _before_import()
        from ntkpipe.cluster.joined import joined_session

        with joined_session(config, store) as executor:
            yield executor
    else:
        with local_session(config) as executor:
            yield executor


def _before_import() -> None:
    """Set the environment variables that Ray reads on import."""
    # Without this variable, Ray's workers warn about a future change of a default. Pools choose their GPUs themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def local_session(config: ClusterConfig) -> Iterator[RayExecutor]:
    """Context manager that starts Ray on loopback, yields its executor, and stops Ray at the end.

    If this process has already initialised Ray (by an outer session or the user), that Ray is used and left running. The
    session never joins another cluster, also with `RAY_ADDRESS`, and never stops processes of another Ray.

    Args:
        config: configuration of the cluster, whose `workers`, `threads_per_worker` and `retries` are used.

    Yields:
        The executor; its pools are closed on leaving.

    Raises:
        ResourceError: if Ray does not start.
    """
    _before_import()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # right on loopback, where no other host can connect
    import ray

    from ntkpipe.cluster.capacity import FixedCapacity
    from ntkpipe.cluster.ray_executor import RayExecutor

    workers = config.worker_count()
    environment = worker_environment(config.threads_per_worker)
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            _start(ray, workers, environment, stack)
        executor = RayExecutor(FixedCapacity(workers), retries=config.retries, environment=environment)
        stack.callback(executor.close)
        yield executor


def _start(ray, workers: int, environment: dict[str, str], stack: contextlib.ExitStack) -> None:
    """Initialise Ray in a separate folder, and register its clean-up in `stack`."""
    from ntkpipe.cluster.imports import job_config

    _sweep()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    stack.callback(_remove, Path(folder))
    alive = stack.enter_context((Path(folder) / _ALIVE).open("w", encoding="utf-8"))
    fcntl.flock(alive, fcntl.LOCK_EX)
    options = {"_temp_dir": folder} if len(folder) <= _LONGEST_FOLDER else {}
    # Register this before the start, so that it also cleans up after an interrupted start.
    stack.callback(ray.shutdown)
    try:
        with warnings.catch_warnings(), stopping.keeping_handlers():
            # JAX warns of every fork after it has computed in this process. Ray's forks execute another program at once,
            # and take no lock of JAX before that.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_object_store(),
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment},
                job_config=job_config(),
                _node_ip_address="127.0.0.1",
                **options,
            )
    except RequeueError:  # the run was told to stop during the start
        raise
    except (RuntimeError, OSError, ConnectionError, TimeoutError, ValueError) as error:
        raise ResourceError(
            f"Ray did not start on this machine ({error}): set cluster=serial to run without it."
        ) from error


def _object_store() -> int:
    """Return the bytes for Ray's object store, which is a share of the memory in a small container."""
    return min(OBJECT_STORE_BYTES, max(_LEAST_OBJECT_STORE, int(_STORE_SHARE * free_memory())))


def _remove(folder: Path) -> None:
    """Remove a session's folder, while Ray's stopping processes may still write into it."""
    deadline = time.monotonic() + _STOP_SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:  # a later session removes what is left
            return
        time.sleep(0.1)


def _sweep() -> None:
    """Remove the folders of killed sessions, which are the only ones with an unlocked file."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it belongs to another user, or was removed meanwhile
            # A new folder may not be locked yet, or its Ray processes may still be ending.
            if time.time() - folder.stat().st_mtime > _SWEEP_SECONDS:
                with (folder / _ALIVE).open("r+", encoding="utf-8") as alive:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
