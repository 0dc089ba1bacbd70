"""Environment of a process that computes."""

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
"""Names the folder that a worker keeps compiled programs in, below a folder for its kind of processor."""

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_KEPT = {
    # Programs of a tenth of a second are loaded no faster than they are compiled.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# Of its part of a GPU's memory, what a process of either kind may take: tasks that compute tiles need little, pools hold them.
# JAX returns nothing to the GPU, and idle processes of tasks stay while a pool works.
TASK_SHARE, POOL_SHARE = 0.3, 0.6


def worker_environment(threads: int) -> dict[str, str]:
    """What holds a process to `threads` threads, lets it import this very ntkpipe, and saves it compiling again."""
    root = str(Path(ntkpipe.__file__).resolve().parents[1])
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    count = str(threads)
    return {
        # XLA's CPU client counts NPROC; XLA_FLAGS do not hold it back (jax 0.10.2).
        "NPROC": count,
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join([root, *inherited]),
        # A Myrtle-10 tile compiles in 2 to 3 s, and is loaded in a tenth of that: by the other workers, and by later runs.
        _FOLDER: os.environ.get(_FOLDER, str(compilation_cache())),
        **{name: os.environ.get(name, value) for name, value in _KEPT.items()},
    }


def node_environment(threads: int, *, gpus: float, share: float, compiled: str | None) -> dict[str, str]:
    """`worker_environment` for a process on any node of a cluster; `settle` finishes it there.

    Args:
        threads: of the process.
        gpus: that it may use: 0 keeps it on the CPU, also on a node that has some; a fraction shares one.
        share: of its part of the memory of a GPU that it may take.
        compiled: folder that all nodes see, for compiled programs; None keeps them at home on each node.
    """
    variables = worker_environment(threads)
    if not _chosen():
        del variables[_FOLDER]  # it names this machine's processor
        if compiled is not None:
            variables[COMPILED_ROOT] = compiled
    if gpus:
        # With PREALLOCATE=false still the most that the process takes.
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{min(gpus, 1.0) * share:.3f}"
    else:
        variables["JAX_PLATFORMS"] = "cpu"
    return variables


def settle(gpu: int | None = None, gpus: float = 0.0) -> None:
    """Finish this process's environment by what its node alone knows. Call it before JAX is imported.

    Args:
        gpu: place of this process among those of its node, to choose its GPUs by; None leaves them as they are.
        gpus: that it may use.
    """
    if not _chosen():
        os.environ[_FOLDER] = str(compilation_cache(os.environ.get(COMPILED_ROOT)))
    if gpu is not None and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_devices(gpu, gpus, os.environ.get("CUDA_VISIBLE_DEVICES")))


def _devices(place: int, gpus: float, visible: str | None) -> list[str]:
    """The GPUs of process `place` of a node, each with `gpus`, among those that are visible."""
    whole = max(1, int(gpus))
    first = int(place * gpus + 1e-9) if gpus < 1 else place * whole
    if not visible:
        return [str(first + k) for k in range(whole)]
    names = visible.split(",")
    return [names[(first + k) % len(names)] for k in range(whole)]


def keep_compiled() -> None:
    """Let this process keep what it compiles for later ones, as workers do, unless its user has said otherwise to JAX."""
    if _FOLDER in os.environ:
        return
    folder = compilation_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home to write to
        return
    jax = sys.modules.get("jax")
    if jax is None:
        for name, value in {_FOLDER: str(folder), **_KEPT}.items():
            os.environ.setdefault(name, value)
    elif jax.config.jax_compilation_cache_dir is None:
        if jax.config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's own
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update(_FOLDER.lower(), str(folder))
        # JAX asks once, at the first compilation, whether there is a folder.
        importlib.import_module("jax.experimental.compilation_cache.compilation_cache").reset_cache()


def _chosen() -> bool:
    """Whether the user has named a folder, and not `keep_compiled` in this process or the one that started it."""
    return os.environ.get(_FOLDER, default := str(compilation_cache())) != default


def compilation_cache(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of compiled programs of this kind of processor: those of another may not run here.

    Args:
        root: that it lies in; None is this user's cache.
    """
    # A name alone does not tell: virtual machines of several generations are all called "AMD EPYC".
    kind = hashlib.sha256(f"{processor()}\n{_line_of_cpuinfo('flags')}".encode()).hexdigest()[:12]
    if root is not None:
        return Path(root) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "ntkpipe" / "compiled" / kind


def _home() -> Path:
    """The user's home; where there is none, as in a container whose user has no name, a folder of temporary files."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"ntkpipe-{os.getuid()}"


def processor() -> str:
    """Name of this machine's processor."""
    return _line_of_cpuinfo("model name") or platform.processor() or platform.machine()


def _line_of_cpuinfo(field: str) -> str:
    """What Linux says of the first processor under this name; nothing elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
