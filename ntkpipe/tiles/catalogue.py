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
    """Every Gram store in `objects`, by name; a folder in which there is nothing of one is passed over."""
    for name in objects.folders("gram"):
        folder = f"gram/{name}/"
        try:
            gram = GramStore.open(objects, name)
            identity, total = gram.identity, sum(len(gram.grid(block)) for block in gram.blocks)
            done = sum(gram.tiles_done(block) for block in gram.blocks)
        except NtkpipeError:
            identity, total, done = None, 0, 0
        try:
            last_used = objects.get(f"{folder}last_used").decode(errors="replace").strip()
        except MissingObjectError:
            last_used = None
        if identity is not None or next(iter(objects.list(folder)), None) is not None:
            yield GramStoreInfo(name, identity, usage(objects, name), done, total, last_used)


def stored_edge(objects: ObjectStore, identity: GramIdentity) -> int | None:
    """The tile edge of the store that has the values of `identity`, cut in whatever way; of several, that with most tiles."""
    found = [(gram.tiles_done("train"), gram.identity.edge) for gram in _cut_in_any_way(objects, identity)]
    return max(found)[1] if found else None


def stored_shares(objects: ObjectStore, identity: GramIdentity) -> dict[int, float]:
    """By tile edge, the share of the training block that is stored of the values of `identity`, cut in whatever way."""
    found = _cut_in_any_way(objects, identity)
    return {gram.identity.edge: gram.tiles_done("train") / len(gram.grid("train")) for gram in found}


def _cut_in_any_way(objects: ObjectStore, identity: GramIdentity) -> Iterator[GramStore]:
    for name in objects.folders("gram"):
        try:
            gram = GramStore.open(objects, name)
        except NtkpipeError:
            continue
        stored = gram.identity
        if replace(stored, edge=identity.edge) == identity and name == stored.key:
            yield gram


def usage(objects: ObjectStore, name: str) -> int:
    """Bytes of all objects of a Gram store."""
    return sum(size for _, size in objects.sizes(f"gram/{name}/"))


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
        # Receipts go first, so that no tile counts that is half gone, then the marks that void some of them, the manifest last.
        keys = list(objects.list(folder))
        manifest = f"{folder}manifest.json"
        receipts = [
            k for k in keys if k.startswith((f"{folder}receipts/", f"{folder}segments/")) and k.endswith(".json")
        ]
        objects.delete_all(receipts)
        objects.delete_all(sorted(set(keys) - set(receipts) - {manifest}))
        objects.delete(manifest)
        objects.sweep(folder, older_than=0.0)
    return freed
