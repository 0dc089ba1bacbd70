"""The memory and processors of this process, as control groups, affinity and resource limits allow.

A container has a part of its machine, but most system calls describe the whole machine. Linux reports the limits of a
process's control groups (both versions). Every group up to the root counts, and the narrowest limit holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
# Version 1 writes a number of this size if there is no limit.
_NO_LIMIT = 1 << 60
# Read by BLAS, OpenMP and XLA when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")


def processors() -> int:
    """Number of processors that this process may use: at least one, rounded down."""
    own, quota = _affinity(), _quota(_PROC)
    return own if quota >= own else max(1, math.floor(quota + 1e-9))


def give_back_memory() -> None:
    """Return freed memory to the system.

    The C library keeps what threads have freed for their next requests, and new threads may be given other parts of it. Without this a
    process that has dropped a factor's tiles still held their size, once more for every factor (49 of 37 MiB at n = 3,000). Only
    glibc has such a call; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory() -> int:
    """Total bytes for this process and its children, including what is used."""
    import psutil  # missing if only kernels are installed

    return int(min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_groups())]))


def free_memory() -> int:
    """Free bytes for this process and its children, including memory that the system can reclaim."""
    import psutil

    room = [psutil.virtual_memory().available, *(limit - used for limit, used in _memory_groups())]
    return max(0, int(min([*room, _address_space()])))


def hold_threads() -> None:
    """Limit the threads of libraries loaded from now on to the control groups' processors, because libraries count all
    processors.

    Keeps existing environment variables. Does nothing if no group limits the processors.
    """
    if processors() < _affinity():
        for name in _THREADS:
            os.environ.setdefault(name, str(processors()))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _quota(proc: Path) -> float:
    """Processors that the control groups of a process allow, which may be a fraction; inf without a limit. Asked for every tile."""
    found = [math.inf]
    for folder in _groups("cpu", proc):
        if (both := _words(folder / "cpu.max")) is not None:
            quota, period = both[0], both[1] if len(both) > 1 else "100000"
        else:
            one, other = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
            quota, period = (one or ["-1"])[0], (other or ["0"])[0]
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found)


def _memory_groups() -> Iterator[tuple[float, float]]:
    """Limit of every control group that has one, and what its processes use, less what the system would give back."""
    for folder in _groups("memory", _PROC):
        facts = {name: value for name, _, value in (line.partition(" ") for line in _lines(folder / "memory.stat"))}

        def fact(*names: str, facts: dict[str, str] = facts) -> float:
            return next((float(facts[name]) for name in names if facts.get(name, "").isdecimal()), 0.0)

        limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        # Version 1: also the limits of groups above that this process does not see.
        limits.append(fact("hierarchical_memory_limit") or math.inf)
        used = min(_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes"))
        limit = min(limits)
        if limit < _NO_LIMIT and math.isfinite(used):
            cache = fact("total_inactive_file", "inactive_file") + fact("total_active_file", "active_file")
            yield limit, max(0.0, used - cache)


def _address_space() -> float:
    """Bytes that the limit of this process's address space (`ulimit -v`) leaves; inf without one."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, AttributeError, OSError):
        return math.inf
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = _words(_PROC / "statm")
    return limit - (int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages and pages[0].isdecimal() else 0)


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Folders of the control groups that limit a process by `controller`, its own first, up to the root that it sees."""
    paths = {}
    for line in _lines(proc / "cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(",") if names else ["" if number == "0" else None]:
            paths[name] = path
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _, options = (*after.split(maxsplit=2), "", "", "")[:3]
        if kind not in ("cgroup", "cgroup2") or len(fields) < 5:
            continue
        name = "" if kind == "cgroup2" else controller
        if name not in paths or (name and controller not in options.split(",")):
            continue
        root, mount = (_unescaped(field) for field in fields[3:5])
        below = PurePosixPath(paths[name])
        # A container sees its own group as the root, and its path may lead outside of the visible tree.
        inner = below.relative_to(root) if below.is_relative_to(root) and ".." not in below.parts else PurePosixPath()
        folder = Path(mount) / inner
        yield from [folder, *(folder.parents[k] for k in range(len(inner.parts)))]


def _unescaped(field: str) -> str:
    """A path of mountinfo, which writes spaces and the like in octal."""
    for code in ("040", "011", "012", "134"):
        field = field.replace(f"\\{code}", chr(int(code, 8)))
    return field


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str] | None:
    """Of the first line; None where there is no such file."""
    return next((line.split() for line in _lines(path) if line.strip()), None)


def _number(path: Path) -> float:
    """The number in a file; inf where there is none, or `max`."""
    words = _words(path)
    return float(words[0]) if words and words[0].isdecimal() else math.inf
