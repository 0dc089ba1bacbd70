"""Bytes and seconds of the driver in a sum over workers, with all parts sent to it or with sums between the nodes.

    sudo python benchmarks/sums_between_nodes.py [--nodes 4] [--rows 250000] [--columns 9] [--mbit 200]

Every node is a network namespace of this machine with its own Ray. A bridge joins the nodes; each link passes `--mbit` in
each direction (`tc`). The driver is on a node that computes nothing. The bytes are those that the kernel counts on its
link. All nodes share this machine's cores. With slow links, the cores hardly matter; without a limit, the results say
nothing about a cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PORT = 6379


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def network(stack: contextlib.ExitStack, nodes: int, mbit: int) -> list[str]:
    """Create namespaces whose links to one bridge pass `mbit` in each direction, and return their names."""
    switch = f"ntks{os.getpid()}"
    names = [f"ntkn{k}p{os.getpid()}" for k in range(nodes + 1)]
    for name in (switch, *names):
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
    run("ip", "-netns", switch, "link", "add", "bridge", "type", "bridge")
    run("ip", "-netns", switch, "link", "set", "bridge", "up")
    for k, name in enumerate(names):
        port, inside = f"port{k}", ("ip", "-netns", name)
        run("ip", "link", "add", "cable", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
        run(*inside, "address", "add", f"10.99.8.{k + 1}/24", "dev", "cable")
        run("ip", "-netns", switch, "link", "set", port, "master", "bridge", "up")
        run(*inside, "link", "set", "cable", "up")
        run(*inside, "link", "set", "lo", "up")
        if mbit:
            limit = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms")
            run("tc", "-netns", name, "qdisc", "add", "dev", "cable", *limit)
            run("tc", "-netns", switch, "qdisc", "add", "dev", port, *limit)
    return names


def measure(options: argparse.Namespace) -> None:
    """Measure the driver's part, in its namespace."""
    import numpy as np
    import ray

    from ntkpipe.cluster.capacity import Demand, LiveCapacity
    from ntkpipe.cluster.ray_pool import RayPool
    from ntkpipe.tasks import faults
    from ntkpipe.tasks.environment import worker_environment

    ray.init(address=f"10.99.8.1:{PORT}", log_to_driver=False)
    capacity = LiveCapacity(Demand(cpus=1.0))
    workers = [(k + 1,) for k in range(options.nodes * options.workers)]
    pool = RayPool(faults.Counter, workers, capacity=capacity, retries=1, environment=worker_environment(1))
    x = np.random.default_rng(0).standard_normal((options.rows, options.columns))

    def counted() -> tuple[int, int]:
        folder = Path("/sys/class/net/cable/statistics")
        return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())

    results = {}
    for way, slices in (("at the driver", 0), ("between nodes", None)):
        pool._slices = slices
        pool.total("scaled", x[: len(x) // 8])
        seconds, received, sent = [], [], []
        for _ in range(options.rounds):
            before, began = counted(), time.perf_counter()
            results[way] = pool.total("scaled", x)
            seconds.append(time.perf_counter() - began)
            after = counted()
            received.append((after[0] - before[0]) / x.nbytes)
            sent.append((after[1] - before[1]) / x.nbytes)
        print(
            f"{options.nodes} nodes x {options.workers}, parts of {x.nbytes / 1e6:.0f} MB, {options.mbit} Mbit/s, summed {way}: "
            f"{np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), the driver received {np.median(received):.2f} "
            f"and sent {np.median(sent):.2f} parts",
            flush=True,
        )
    assert np.array_equal(results["at the driver"], results["between nodes"])
    pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="of each node")
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--columns", type=int, default=9)
    parser.add_argument("--mbit", type=int, default=200, help="of a link; 0 sets no limit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nodes and links go as well
    if options.inside:
        measure(argparse.Namespace(**json.loads(options.inside)))
        return
    folder = Path(tempfile.mkdtemp(prefix="ntks"))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=800000000"]
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        names = network(stack, options.nodes, options.mbit)

        def start(k: int, *words: str) -> None:
            command = ["ip", "netns", "exec", names[k], *ray, f"--node-ip-address=10.99.8.{k + 1}", *words]
            quiet = subprocess.DEVNULL
            processes.append(
                subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
            )

        def nodes() -> int:
            code = f"import ray; ray.init('10.99.8.1:{PORT}', log_to_driver=False); print(len(ray.nodes()))"
            asked = subprocess.run(
                ["ip", "netns", "exec", names[0], sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0

        try:
            head = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
            start(0, *head)
            while not nodes():
                time.sleep(0.5)
            for k in range(1, options.nodes + 1):
                # One after the other: those that start together on one machine time out over its shared folder.
                start(k, f"--address=10.99.8.1:{PORT}", f"--num-cpus={options.workers}")
                while nodes() <= k:
                    time.sleep(0.5)
            inside = ["--inside", json.dumps(vars(options))]
            subprocess.run(
                ["ip", "netns", "exec", names[0], sys.executable, __file__, *inside], env=environment, check=True
            )
        finally:
            for process in reversed(processes):
                process.terminate()  # with --block it stops what it has started
            for process in processes:
                process.wait(60)


if __name__ == "__main__":
    main()
