"""Executors from configuration; the life of a local Ray that belongs to this process."""

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

# Tasks return small records and pools exchange vectors (60,000 x 10 float64 is 4.8 MB), so little is enough; Ray's own
# default is 30% of the machine's memory.
OBJECT_STORE_BYTES = 400 << 20
# Ray takes no less than 75 MiB.
_LEAST_OBJECT_STORE, _STORE_SHARE = 80 << 20, 0.2

_PREFIX = "ntk-ray-"
_ALIVE = "alive"  # locked while the session lives
_SWEEP_SECONDS = 3600.0
_STOP_SECONDS = 10.0  # Ray's processes were seen to write for up to 2 s after their driver was gone

# Unix socket paths end at 107 bytes and Ray appends about 75 to its folder's name.
_LONGEST_FOLDER = 30


@contextmanager
def open_executor(config: ClusterConfig, store: ObjectStore | None = None) -> Iterator[Executor]:
    """The executor that `config` asks for, stopped on leaving. `serial` does not import Ray.

    Args:
        config: of the cluster.
        store: that all workers of a joined cluster must see; None skips that check.
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
    """Set what Ray reads once, on import."""
    # Unset, its workers warn about a change of default in the future. Pools choose their GPUs themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def local_session(config: ClusterConfig) -> Iterator[RayExecutor]:
    """Start Ray on loopback, yield its executor and stop what was started; nested sessions share one Ray.

    A Ray that this process has already initialised (an outer session, or the user's own) is used and left running.
    No other cluster is ever joined, whatever `RAY_ADDRESS` says, and no process of another Ray is touched.

    Args:
        config: `workers`, `threads_per_worker` and `retries` are used.

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
    """Initialise Ray in a folder of its own, and leave the undoing of it in `stack`."""
    from ntkpipe.cluster.imports import job_config

    _sweep()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    stack.callback(_remove, Path(folder))
    alive = stack.enter_context((Path(folder) / _ALIVE).open("w", encoding="utf-8"))
    fcntl.flock(alive, fcntl.LOCK_EX)
    options = {"_temp_dir": folder} if len(folder) <= _LONGEST_FOLDER else {}
    # Registered before the start: it also cleans up after a start that was interrupted half way.
    stack.callback(ray.shutdown)
    try:
        with warnings.catch_warnings(), stopping.keeping_handlers():
            # JAX warns of every fork once it has computed in this process. Ray's forks exec another program at once and
            # take no lock of JAX's in between.
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
    except RequeueError:  # told to stop meanwhile
        raise
    except (RuntimeError, OSError, ConnectionError, TimeoutError, ValueError) as error:
        raise ResourceError(f"Ray did not start on this machine ({error}). cluster=serial runs without it.") from error


def _object_store() -> int:
    """Bytes for Ray's object store: of a small container's memory a part."""
    return min(OBJECT_STORE_BYTES, max(_LEAST_OBJECT_STORE, int(_STORE_SHARE * free_memory())))


def _remove(folder: Path) -> None:
    """Remove a session's folder; Ray's processes, which have been told to stop, may still write into it."""
    deadline = time.monotonic() + _STOP_SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:  # what is left then, a later session sweeps
            return
        time.sleep(0.1)


def _sweep() -> None:
    """Remove the folders of sessions that were killed: theirs are the only ones with an unlocked file."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            # A young one may be between its creation and its lock, or have Ray processes that are still ending.
            if time.time() - folder.stat().st_mtime > _SWEEP_SECONDS:
                with (folder / _ALIVE).open("r+", encoding="utf-8") as alive:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
