"""Environment variables of worker processes."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import sys
import tempfile
from pathlib import Path

import ntkpipe

COMPILED_ROOT = "NTKPIPE_COMPILED"
"""Environment variable with the root folder of a worker's compiled programs; each kind of processor has a subfolder."""

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_KEPT = {
    # Loading a program takes a tenth of a second, so faster compilations are not stored.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# Shares of a process's part of the GPU memory. Tasks that compute tiles need little, and pools hold tiles. The shares add
# up to less than 1, because JAX does not return memory to the GPU and idle task processes stay while a pool works.
TASK_SHARE, POOL_SHARE = 0.3, 0.6


def worker_environment(threads: int) -> dict[str, str]:
    """Environment variables that limit a process to `threads` threads, and let it import this ntkpipe and reuse compiled
    programs.
    """
    root = str(Path(ntkpipe.__file__).resolve().parents[1])
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    count = str(threads)
    return {
        # XLA's CPU client reads NPROC; XLA_FLAGS do not limit it (jax 0.10.2).
        "NPROC": count,
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join([root, *inherited]),
        # A Myrtle-10 tile compiles in 2 to 3 s; other workers and later runs load it in a tenth of that.
        _FOLDER: os.environ.get(_FOLDER, str(compilation_cache())),
        **{name: os.environ.get(name, value) for name, value in _KEPT.items()},
    }


def node_environment(threads: int, *, gpus: float, share: float, compiled: str | None) -> dict[str, str]:
    """`worker_environment` for a process on any node of a cluster; `settle` finishes it there.

    Args:
        threads: number of threads of the process.
        gpus: number of GPUs that it may use. 0 keeps it on the CPU, also on a node with GPUs; a fraction shares a GPU.
        share: largest share of its part of the GPU memory.
        compiled: shared folder for compiled programs; None stores them in the home folder of each node.
    """
    variables = worker_environment(threads)
    if not _chosen():
        del variables[_FOLDER]  # it is specific to the processor of this machine
        if compiled is not None:
            variables[COMPILED_ROOT] = compiled
    if gpus:
        # This is an upper limit of the process, also with PREALLOCATE=false.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{min(gpus, 1.0) * share:.3f}"
    else:
        variables["JAX_PLATFORMS"] = "cpu"
    return variables


def settle(gpu: int | None = None, gpus: float = 0.0) -> None:
    """Complete this process's environment with properties of its node. Call it before JAX is imported.

    Args:
        gpu: index of this process among the processes of its node, which selects its GPUs; None selects none.
        gpus: number of GPUs that it may use.
    """
    if not _chosen():
        os.environ[_FOLDER] = str(compilation_cache(os.environ.get(COMPILED_ROOT)))
    if gpu is not None and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_devices(gpu, gpus, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _devices(place: int, gpus: float, visible: str | None) -> list[str]:
    """The visible GPUs of process `place` of a node on which every process has `gpus` GPUs."""
    whole = max(1, int(gpus))
    first = int(place * gpus + 1e-9) if gpus < 1 else place * whole
    if not visible:
        return [str(first + k) for k in range(whole)]
    names = visible.split(",")
    return [names[(first + k) % len(names)] for k in range(whole)]


def keep_compiled() -> None:
    """Store the compiled programs of this process for later processes, unless the user configured JAX otherwise."""
    if _FOLDER in os.environ:
        return
    folder = compilation_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no writable home
        return
    jax = sys.modules.get("jax")
    if jax is None:
        for name, value in {_FOLDER: str(folder), **_KEPT}.items():
            os.environ.setdefault(name, value)
    elif jax.config.jax_compilation_cache_dir is None:
        if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # the default of JAX
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update(_FOLDER.lower(), str(folder))
        # JAX reads the folder only once, at the first compilation.
        importlib.import_module("jax.experimental.compilation_cache.compilation_cache").reset_cache()


def _chosen() -> bool:
    """Whether the user chose the folder, and not `keep_compiled` in this process or its parent."""
    return os.environ.get(_FOLDER, default := str(compilation_cache())) != default


def compilation_cache(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of compiled programs for this kind of processor. Programs for another kind may not run here.

    Args:
        root: the parent folder; None is the cache folder of the user.
    """
    # The name is not sufficient: virtual machines of several generations are all called "AMD EPYC".
    kind = hashlib.sha256(f"{processor()}\n{_line_of_cpuinfo('flags')}".encode()).hexdigest()[:12]
    if root is not None:
        return Path(root) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "ntkpipe" / "compiled" / kind


def _home() -> Path:
    """The user's home folder; a temporary folder in containers without one."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"ntkpipe-{os.getuid()}"


def processor() -> str:
    """Name of this machine's processor."""
    return _line_of_cpuinfo("model name") or platform.processor() or platform.machine()


def _line_of_cpuinfo(field: str) -> str:
    """The value of a field for the first processor in `/proc/cpuinfo`; empty on systems without this file."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
