"""The status of a run as one small object in the store. Any machine with access can read it with one GET."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from ntkpipe.errors import NtkpipeError
from ntkpipe.storage.clock import now
from ntkpipe.storage.plain import json_ready
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

FOLDER = "runs"


def run_key(run_dir: str | os.PathLike[str]) -> str:
    """Return the key of the status of the run in the folder `run_dir`: the folder's name and a hash of its path.

    The key does not depend on the host, so a run that continues on another machine with the same shared folder keeps
    its object.
    """
    path = os.path.abspath(os.fspath(run_dir))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(path))[:40] or "run"
    return f"{FOLDER}/{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.json"


class Board:
    """Writes the status of one run from a thread, at most every few seconds, so that a slow store never delays the run.

    Use it as a context manager. The last status is always written at the end, unless the store cannot be reached.

    Args:
        store: the store that the run writes to.
        run_dir: folder of the run.
        every: seconds between two writes.
    """

    def __init__(self, store: ObjectStore, run_dir: str | os.PathLike[str], *, every: float = 5.0) -> None:
        self.store = store
        self.key = run_key(run_dir)
        self._where = {"run_dir": os.path.abspath(os.fspath(run_dir)), "host": socket.gethostname(), "pid": os.getpid()}
        self._every = every
        self._news: dict[str, Any] | None = None
        self._written = 0
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="status board", daemon=True)

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join(timeout=30.0)

    def tell(self, **facts: Any) -> None:
        """Publish the progress as JSON-ready facts (stage, line, done, total, eta, ...). Returns at once."""
        with self._wake:
            self._news = facts
            self._wake.notify()

    def _run(self) -> None:
        last: dict[str, Any] | None = None
        while True:
            with self._wake:
                # Without news the last status is written again; its growing count shows that the run is alive.
                self._wake.wait_for(
                    lambda: self._news is not None or self._ended, timeout=self._every if last else None
                )
                facts, self._news, ended = self._news, None, self._ended
            last = facts or last
            if last is not None and (facts is not None or not ended):
                self._write(last)
            with self._wake:
                if ended and self._news is None:
                    return
                self._wake.wait_for(lambda: self._ended, timeout=self._every)

    def _write(self, facts: dict[str, Any]) -> None:
        self._written += 1
        content = {**facts, **self._where, "time": now(), "every": self._every, "count": self._written}
        with contextlib.suppress(NtkpipeError):  # only the status is lost; the run itself notices an unavailable store
            self.store.put(self.key, (json.dumps(json_ready(content), allow_nan=False) + "\n").encode(), overwrite=True)


def read_board(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """Read the latest status of a run with one GET; None if there is none.

    `time` comes from the clock of the run's machine. `count` grows with every write, so a run whose count stays the
    same for several times `every` seconds is not running.
    """
    try:
        found = json.loads(store.get(key))
    except (MissingObjectError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_boards(store: ObjectStore) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and latest status of every run that wrote to the store."""
    for key in store.list(f"{FOLDER}/"):
        if (found := read_board(store, key)) is not None:
            yield key, found


def is_running(store: ObjectStore, key: str, *, patience: float = 3.0) -> bool:
    """Wait for at most `patience` times the interval of writes, and return whether the status was written again.

    No clocks are compared. A process that is suspended for that long counts as not running.
    """
    first = read_board(store, key)
    if first is None or first.get("final"):
        return False
    every = first.get("every")
    pause = float(every) if isinstance(every, (int, float)) else 5.0
    deadline = time.monotonic() + patience * pause
    while time.monotonic() < deadline:
        time.sleep(min(pause, 1.0))
        found = read_board(store, key)
        if found is None or found.get("count") != first.get("count"):
            return found is not None
    return False
