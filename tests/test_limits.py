"""Memory and processors under control groups of both versions, in a tree of files like the system's."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ntkpipe import limits
from ntkpipe.config import ClusterConfig
from ntkpipe.kernels.evaluation import spatial
from ntkpipe.planning.memory import free_share

GIB = 1 << 30


class Machine:
    """A machine of 64 GiB, all free, and 16 processors; its files lie in a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.mounts = path, []
        (path / "self").mkdir()
        self.write("self/cgroup", "")
        self.write("self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw\n")

    def write(self, name: str, text: str | int) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def mount(self, kind: str, name: str, root: str = "/", options: str = "rw") -> None:
        self.mounts.append(f"30 22 0:26 {root} {self.path / name} rw,nosuid shared:4 - {kind} {kind} {options}")
        self.write("self/mountinfo", "\n".join(self.mounts))


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    monkeypatch.setattr(limits, "_PROC", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    memory = psutil.virtual_memory()._replace(total=64 * GIB, available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return Machine(tmp_path)


def test_without_groups_the_machine_is_all_there_is(machine):
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (64 * GIB, 64 * GIB, 16)


def test_version_2_counts_what_is_used_less_what_would_be_given_back(machine):
    machine.mount("cgroup2", "sys")
    machine.write("self/cgroup", "0::/pod/container")
    machine.write("sys/pod/container/memory.max", 4 * GIB)
    machine.write("sys/pod/container/memory.current", 3 * GIB)
    machine.write("sys/pod/container/memory.stat", f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}")
    machine.write("sys/pod/container/cpu.max", "250000 100000")
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (4 * GIB, 2.5 * GIB, 2)
    assert free_share(limits.free_memory()) == pytest.approx(0.6 * 2.5 * GIB, abs=1)
    assert ClusterConfig().worker_count() == 2
    assert ClusterConfig(threads_per_worker=4).worker_count() == 1


def test_the_narrowest_group_on_the_path_holds(machine):
    machine.mount("cgroup2", "sys")
    machine.write("self/cgroup", "0::/pod/container/inner")
    machine.write("sys/pod/container/inner/memory.max", "max")
    machine.write("sys/pod/container/inner/memory.current", GIB)
    machine.write("sys/pod/container/inner/cpu.max", "max 100000")
    machine.write("sys/pod/container/memory.max", 8 * GIB)
    machine.write("sys/pod/container/memory.high", 6 * GIB)
    machine.write("sys/pod/container/memory.current", GIB)
    machine.write("sys/pod/cpu.max", "350000 50000")
    machine.write("sys/pod/memory.max", 10 * GIB)
    machine.write("sys/pod/memory.current", 9 * GIB)  # of other containers
    machine.write("sys/memory.max", 2 * GIB)
    machine.write("sys/other/memory.max", 1)  # not on the path
    machine.write("sys/memory.current", 0)
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (2 * GIB, GIB, 7)


def test_version_1_has_a_tree_for_each_controller(machine):
    machine.mount("cgroup", "sys/memory", options="rw,memory")
    machine.mount("cgroup", "sys/cpu,cpuacct", options="rw,cpu,cpuacct")
    machine.mount("cgroup2", "sys/unified")
    machine.write("self/cgroup", "9:name=systemd:/\n4:memory:/docker/a\n3:cpu,cpuacct:/docker/b\n0::/")
    machine.write("sys/memory/docker/a/memory.limit_in_bytes", GIB)
    machine.write("sys/memory/docker/a/memory.usage_in_bytes", GIB // 2)
    machine.write("sys/memory/docker/a/memory.stat", f"inactive_file 0\ntotal_inactive_file {GIB // 4}")
    machine.write("sys/memory/memory.limit_in_bytes", 9223372036854771712)  # none
    machine.write("sys/memory/memory.usage_in_bytes", 60 * GIB)
    machine.write("sys/cpu,cpuacct/docker/b/cpu.cfs_quota_us", 50000)  # half a processor
    machine.write("sys/cpu,cpuacct/docker/b/cpu.cfs_period_us", 100000)
    machine.write("sys/cpu,cpuacct/cpu.cfs_quota_us", -1)
    machine.write("sys/cpu,cpuacct/cpu.cfs_period_us", 100000)
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (GIB, 0.75 * GIB, 1)


def test_a_container_sees_its_own_group_as_the_root(machine):
    # Bound below its own folder, as Docker does for version 1; and told of a path outside of what it sees.
    machine.mount("cgroup", "sys/memory", root="/docker/a", options="rw,memory")
    machine.mount("cgroup2", "sys/my\\040groups")
    machine.write("self/cgroup", "4:memory:/docker/a/b\n0::/../other")
    machine.write("sys/memory/b/memory.limit_in_bytes", 3 * GIB)
    machine.write("sys/memory/b/memory.usage_in_bytes", GIB)
    machine.write("sys/memory/b/memory.stat", f"hierarchical_memory_limit {2 * GIB}")  # of a group that is not seen
    machine.write("sys/my groups/cpu.max", "400000 100000")
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (2 * GIB, GIB, 4)


def test_more_than_there_is_and_less_than_nothing(machine):
    machine.mount("cgroup2", "sys")
    machine.write("self/cgroup", "0::/")
    machine.write("sys/memory.max", 100 * GIB)
    machine.write("sys/memory.current", 101 * GIB)
    machine.write("sys/cpu.max", "9900000 100000")
    assert (limits.memory(), limits.free_memory(), limits.processors()) == (64 * GIB, 0, 16)


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "a:b", "0::/x\n\x00"])
def test_files_of_another_form_limit_nothing(machine, text):
    machine.mount("cgroup2", "sys")
    machine.write("self/cgroup", text)
    machine.write("sys/memory.max", text)
    machine.write("sys/cpu.max", text)
    assert (limits.memory(), limits.processors()) == (64 * GIB, 16)


def test_affinity_counts_and_so_does_a_limit_of_the_address_space(machine, monkeypatch):
    import resource

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5 * GIB, 8 * GIB))
    machine.write("self/statm", f"{GIB // os.sysconf('SC_PAGE_SIZE')} 1 1 1 0 1 0")
    assert (limits.processors(), limits.free_memory()) == (2, 4 * GIB)


def test_libraries_are_held_to_what_the_groups_feed(machine, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        monkeypatch.setenv(name, "to be removed")
        monkeypatch.delenv(name)
    limits.hold_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    assert spatial.threads() == 16
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setattr(limits, "_quota", lambda proc: 2.6)
    limits.hold_threads()
    found = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")]
    assert found == ["2", "2", "1", "2"]
    assert spatial.threads() == 2


def test_an_address_space_that_is_limited_for_real():
    code = (
        "import resource, sys; from ntkpipe import limits; free = limits.free_memory()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY)); less = limits.free_memory()\n"
        "print(0 < less < min(free, 1 << 30))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    assert math.isfinite(limits.free_memory())


def test_freed_memory_goes_back_to_the_system():
    """Blocks that lie between others in use stay with the C library; a call returns what they occupy."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library has no malloc_trim")
    script = (
        "import numpy as np; from ntkpipe.limits import give_back_memory\n"
        "def used(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "del (a := [np.ones(1 << 21)])[:]\n"  # a freed block of 16 MiB: smaller ones come from the heap from now on
        "blocks = [np.ones(1 << 15) for _ in range(400)]\n"  # 100 MiB
        "kept, last = blocks[::40], blocks[-1]; full = used(); del blocks; left = used(); give_back_memory()\n"
        "print(full, left, used())"
    )
    full, left, after = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert left > full - (20 << 20)  # nothing came back by itself
    assert after < full - (80 << 20)
