"""A probe object that a run writes into its store. A process that can read it has access to the same store."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from ntkpipe.errors import NtkpipeError
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

# A node without access waits, so that it does not take the next task before other nodes.
_HOLD_SECONDS = 10.0

_seen: set[str] = set()


class StoreNotVisibleError(NtkpipeError, RuntimeError):
    """The error of a node without access to the run's store. The task can run on another node.

    Args:
        node: id of the node.
        where: address of the node.
        url: URL of the store.
    """

    def __init__(self, node: str, where: str, url: str) -> None:
        super().__init__(node, where, url)
        self.node = node

    def __str__(self) -> str:
        _, where, url = self.args
        return f"node {where} does not see the same store.url={url}"


@dataclass(frozen=True)
class StoreProbe:
    """A probe: its store, key and content."""

    store: ObjectStore
    key: str
    token: str

    def visible(self) -> bool:
        """Whether this process can read the probe."""
        try:
            return self.store.get(self.key).decode() == self.token
        except (MissingObjectError, NtkpipeError, OSError):
            return False

    def require(self) -> None:
        """Check the probe, once per worker process.

        Raises:
            StoreNotVisibleError: if this process cannot read it.
        """
        if self.key in _seen:
            return
        if not self.visible():
            time.sleep(_HOLD_SECONDS)
            raise StoreNotVisibleError(
                ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), self.store.url
            )
        _seen.add(self.key)


@contextlib.contextmanager
def store_probe(store: ObjectStore | None) -> Iterator[StoreProbe | None]:
    """Context manager that keeps a probe in the store; None without a store."""
    if store is None:
        yield None
        return
    probe = StoreProbe(store, f".probe/{uuid.uuid4().hex}", uuid.uuid4().hex)
    store.put(probe.key, probe.token.encode())
    try:
        yield probe
    finally:
        with contextlib.suppress(NtkpipeError):
            store.delete(probe.key)
