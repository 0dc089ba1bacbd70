"""A probe that a run leaves in its store: who can read it sees the same store."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from ntkpipe.errors import NtkpipeError
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

# A node that cannot do any task must not be the first to ask for the next one.
_HOLD_SECONDS = 10.0

_seen: set[str] = set()


class StoreNotVisibleError(NtkpipeError, RuntimeError):
    """A node that does not see the run's store; says nothing about the task.

    Args:
        node: its id.
        where: its address.
        url: of the store.
    """

    def __init__(self, node: str, where: str, url: str) -> None:
        super().__init__(node, where, url)
        self.node = node

    def __str__(self) -> str:
        _, where, url = self.args
        return f"node {where} does not see the same store.url={url}"


@dataclass(frozen=True)
class StoreProbe:
    """What was written, and where."""

    store: ObjectStore
    key: str
    token: str

    def visible(self) -> bool:
        """Whether this process can read it."""
        try:
            return self.store.get(self.key).decode() == self.token
        except (MissingObjectError, NtkpipeError, OSError):
            return False

    def require(self) -> None:
        """Look for it, once in a worker's life.

        Raises:
            StoreNotVisibleError: if it is not there.
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
    """Leave a probe for as long as the block lasts; None without a store."""
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
