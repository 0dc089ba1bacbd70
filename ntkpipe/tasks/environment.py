"""Environment variables of a process that computes."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import ntkpipe


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
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(compilation_cache())),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def compilation_cache() -> Path:
    """Folder of compiled programs of this kind of processor: those of another may not run here."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    kind = hashlib.sha256(processor().encode()).hexdigest()[:12]
    return Path(home) / "ntkpipe" / "compiled" / kind


def processor() -> str:
    """Name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
