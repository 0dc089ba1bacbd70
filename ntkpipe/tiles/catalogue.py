"""Lists the Gram stores of an object store with size and progress, and deletes them."""

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
    """Facts about one Gram store that are known without reading its tiles.

    Args:
        name: folder under `gram/`.
        identity: the store's identity; None if the manifest is missing or damaged, so that the store is unusable.
        nbytes: size of all its objects in bytes.
        tiles_done: number of tiles of the train and test blocks that have a receipt.
        tiles_total: number of tiles of the whole data set; 0 if the identity is unknown.
        last_used: time of the last use in UTC as ISO 8601; None if unknown.
    """

    name: str
    identity: GramIdentity | None
    nbytes: int
    tiles_done: int
    tiles_total: int
    last_used: str | None


def list_gram_stores(objects: ObjectStore) -> Iterator[GramStoreInfo]:
    """Yield every Gram store in `objects`, sorted by name. Other folders are skipped."""
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
    """Return the tile edge of a store with the values of `identity`, which may have another edge; None if none exists.

    If there are several such stores, the store with the most tiles is chosen.
    """
    found = [(gram.tiles_done("train"), gram.identity.edge) for gram in _cut_in_any_way(objects, identity)]
    return max(found)[1] if found else None


def stored_shares(objects: ObjectStore, identity: GramIdentity) -> dict[int, float]:
    """Return, by tile edge, the stored share of the training block in stores with the values of `identity`."""
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
    """Return the size of all objects of a Gram store in bytes."""
    return sum(size for _, size in objects.sizes(f"gram/{name}/"))


def delete_gram_store(objects: ObjectStore, name: str) -> int:
    """Delete a Gram store and leftovers in its folder.

    After an interruption the rest is a valid store with fewer tiles.

    Returns:
        Number of freed bytes.

    Raises:
        MissingObjectError: if there is no store of that name.
        HeldError: if a run is writing to the store.
    """
    folder = f"gram/{check_name(name)}/"
    if name not in objects.folders("gram"):
        raise MissingObjectError(f"there is no Gram store {objects.url}/gram/{name}")
    with objects.lease(f"gram/{name}", holder="deleting this Gram store"):
        freed = usage(objects, name)
        # Receipts are deleted first, so that no partly deleted tile counts. The marks that void receipts follow with
        # the other objects, and the manifest is deleted last.
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
