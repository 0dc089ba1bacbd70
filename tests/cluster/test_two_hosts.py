"""Two hosts, as far as one machine can be two: network namespaces joined by a cable, with file systems that may differ."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0


GRAM = ("data=digits", "data.train_size=1000", "data.test_size=50", "cluster=ray")


@dataclass
class Hosts:
    """A Ray cluster of one host, which a second may `join`.

    Args:
        first: name of the host.
        address: of the head.
        folder: `shared` in it is one folder on both hosts, `local` another on each.
        environment: of commands.
        join: starts Ray on the second host.
    """

    first: str
    address: str
    folder: Path
    environment: dict[str, str]
    join: Callable[[], object]

    def ntkpipe(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.first,
                sys.executable,
                "-m",
                "ntkpipe",
                *words,
                f"cluster.address={self.address}",
            ],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def _possible() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    name = f"ntkx{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made


pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        not _possible(), reason="making network namespaces takes root, iproute2 and a kernel that lets it"
    ),
]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    first, second = names = [f"ntk{k}{os.getpid()}" for k in (1, 2)]
    folder = Path("/tmp") / f"nth{os.getpid()}"
    for name in ("shared", "local"):
        (folder / name).mkdir(parents=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--num-cpus=1",
        "--object-store-memory=100000000",
    ]
    other_disk = f'mount -t tmpfs none {folder}/local && exec "$@"'
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in names:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for number, name in enumerate(names, start=1):
            inside = ("ip", "-netns", name)
            run(*inside, "address", "add", f"10.99.7.{number}/24", "dev", "cable")
            run(*inside, "link", "set", "cable", "up")
            run(*inside, "link", "set", "lo", "up")

        def start(*words: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            processes.append(process)
            return process

        try:
            options = ["--head", "--port=6379", "--node-ip-address=10.99.7.1", f"--temp-dir={folder}/a"]
            head = start("ip", "netns", "exec", first, *ray, *options, "--include-dashboard=false")
            ask = ["ip", "netns", "exec", first, sys.executable, "-m", "ray.scripts.scripts", "health-check"]
            deadline = time.monotonic() + PATIENCE
            while subprocess.run(
                [*ask, "--address=10.99.7.1:6379"], env=environment, capture_output=True, check=False
            ).returncode:
                assert head.poll() is None
                assert time.monotonic() < deadline
            own = ["unshare", "--mount", "bash", "-c", other_disk, "bash"]
            joining = (
                "ip",
                "netns",
                "exec",
                second,
                *own,
                *ray,
                "--address=10.99.7.1:6379",
                "--node-ip-address=10.99.7.2",
            )
            yield Hosts(first, "10.99.7.1:6379", folder, environment, lambda: start(*joining))
        finally:
            for process in reversed(processes):
                process.terminate()  # with --block it stops what it has started
            for process in processes:
                process.wait(60)


def test_a_host_that_does_not_see_the_store(hosts: Hosts) -> None:
    """One that joins late is node is not used; one that is there at the start is named. Where both see it, both compute."""
    local = (f"store.url={hosts.folder}/local/store", f"run_dir={hosts.folder}/shared/late")
    late = hosts.ntkpipe("gram", *GRAM, "grid.edge=8", *local)
    deadline = time.monotonic() + PATIENCE
    while len(list(hosts.folder.glob("local/store/gram/*/receipts/train/*"))) < 10:
        assert late.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hosts.join()
    _, err = late.communicate(timeout=PATIENCE)
    assert late.returncode == 0, err
    assert "node 10.99.7.2 does not see the same store.url" in err
    there = hosts.ntkpipe("gram", *GRAM, "grid.edge=32", *local[:1], f"run_dir={hosts.folder}/shared/there")
    _, err = there.communicate(timeout=PATIENCE)
    assert there.returncode == 2, err
    assert "is not the same folder on node 10.99.7.2" in err
    both = hosts.ntkpipe(
        "gram", *GRAM, "grid.edge=32", f"store.url={hosts.folder}/shared/store", f"run_dir={hosts.folder}/shared/run"
    )
    _, err = both.communicate(timeout=PATIENCE)
    assert both.returncode == 0, err
    assert "joined, 2 nodes for 2 tasks at once" in err
