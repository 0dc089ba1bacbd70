"""Memory of a process and its descendants as proportional set sizes, which count shared pages once (Linux only)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil


def family(root: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants, including Ray's daemons (they leave the process group, not the tree)."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Sampler(threading.Thread):
    """Samples the summed proportional set size of a process tree, without page cache.

    Args:
        pid: process id of the root.
        every: seconds between samples.
    """

    def __init__(self, pid: int, every: float = 1.0) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.every = every
        self.known: dict[int, psutil.Process] = {}
        self.samples: list[tuple[float, int]] = []  # (seconds since the start, bytes)
        self.stopped = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self.stopped.wait(self.every):
            # A daemon whose parent died is adopted by init: remember whom we have seen.
            self.known.update({p.pid: p for p in family(self.root)})
            total = 0
            for pid in list(self.known):
                try:
                    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
                except (OSError, ValueError):
                    self.known.pop(pid, None)
            self.samples.append((time.monotonic() - began, total))

    def peak(self, start: float = 0.0, stop: float = float("inf")) -> int:
        """Return the largest sample between two times, in bytes."""
        return max((size for at, size in self.samples if start <= at <= stop), default=0)
