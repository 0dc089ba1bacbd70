"""The Gram stores that share one place: what they are, how large, how complete; and how to be rid of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ntkpipe.errors import NtkpipeError
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import check_name
from ntkpipe.tiles.store import GramStore


@dataclass(frozen=True)
class GramStoreInfo:
    """What is known of one Gram store without reading its tiles.

    Args:
        name: folder under `gram/`.
        identity: None if the manifest is missing or damaged: the store is of no use.
        nbytes: of all its objects.
        tiles_done: tiles of the train and test blocks with a receipt.
        tiles_total: of the whole data set; 0 if the identity is unknown.
        last_used: ISO 8601, in UTC; None if unknown.
    """

    name: str
    identity: GramIdentity | None
    nbytes: int
    tiles_done: int
    tiles_total: int
    last_used: str | None


def list_gram_stores(objects: ObjectStore) -> Iterator[GramStoreInfo]:
    """Every Gram store in `objects`, by name."""
    for name in objects.folders("gram"):
        folder = f"gram/{name}/"
        done = sum(1 for block in ("train", "test") for _ in objects.list(f"{folder}receipts/{block}/"))
        try:
            gram = GramStore.open(objects, name)
            identity, total = gram.identity, sum(len(gram.grid(block)) for block in gram.blocks)
        except NtkpipeError:
            identity, total = None, 0
        try:
            last_used = objects.get(f"{folder}last_used").decode(errors="replace").strip()
        except MissingObjectError:
            last_used = None
        yield GramStoreInfo(name, identity, usage(objects, name), done, total, last_used)


def stored_edge(objects: ObjectStore, identity: GramIdentity) -> int | None:
    """The tile edge of the store that has the values of `identity`, cut in whatever way; of several, that with most tiles."""
    found: list[tuple[int, int]] = []
    for name in objects.folders("gram"):
        try:
            stored = GramStore.open(objects, name).identity
        except NtkpipeError:
            continue
        if replace(stored, edge=identity.edge) == identity and name == stored.key:
            done = sum(1 for _ in objects.list(f"gram/{name}/receipts/train/"))
            found.append((done, stored.edge))
    return max(found)[1] if found else None


def usage(objects: ObjectStore, name: str) -> int:
    """Bytes of all objects of a Gram store."""
    total = 0
    for key in objects.list(f"gram/{name}/"):
        try:
            total += objects.size(key)
        except MissingObjectError:
            continue  # deleted since the listing
    return total


def delete_gram_store(objects: ObjectStore, name: str) -> int:
    """Delete a Gram store, and litter in its folder. If interrupted, what remains is a valid store with fewer tiles.

    Returns:
        Bytes freed.

    Raises:
        MissingObjectError: if there is none of that name.
        HeldError: if a run is writing to it.
    """
    folder = f"gram/{check_name(name)}/"
    if name not in objects.folders("gram"):
        raise MissingObjectError(f"there is no Gram store {objects.url}/gram/{name}")
    with objects.lease(f"gram/{name}", holder="deleting this Gram store"):
        freed = usage(objects, name)
        # Receipts go first, so that no tile counts that is half gone, and the manifest last.
        keys = list(objects.list(folder))
        for key in sorted(keys, key=lambda k: (k == f"{folder}manifest.json", not k.startswith(f"{folder}receipts/"))):
            objects.delete(key)
        objects.sweep(folder, older_than=0.0)
    return freed
