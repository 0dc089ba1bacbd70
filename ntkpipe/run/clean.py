"""Reclaim space: list what a store holds, and delete parts of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from ntkpipe.data.prepared import prepared_prefixes
from ntkpipe.errors import ConfigError
from ntkpipe.run.networks import stored_weights
from ntkpipe.run.places import SOLVES, is_store
from ntkpipe.storage.board import is_running, read_boards
from ntkpipe.storage.store import ObjectStore, local_folder
from ntkpipe.tiles.catalogue import delete_gram_store, list_gram_stores
from ntkpipe.units import human_bytes

# Programs that workers of a cluster compiled (`cluster/joined.py`), and marks by which nodes show that they see the
# store (`cluster/store_probe.py`). A run removes both at its end; a killed run leaves them.
_COMPILED, _MARKS = ".compiled/", ".probe/"
_WORDS = "unfinished, solves, networks, compiled, litter"


def clean(store: ObjectStore, delete: str | None, tell: Callable[[str], None]) -> None:
    """List the contents of a store, or delete one kind of them.

    Args:
        store: the store.
        delete: None lists the contents. A Gram store's key deletes that Gram store, and `unfinished` all unfinished
            ones. `solves` deletes solver states, `networks` weights that no Gram store refers to, `compiled` compiled
            programs, and `litter` leftovers of killed processes.
        tell: receives lines for the user.

    Raises:
        ConfigError: if there is no such Gram store, or no store at all.
        HeldError: if an active run writes to it.
    """
    if not is_store(store):
        raise ConfigError(
            f"there is no store of ntkpipe at {store.url}: {_lies(store)}. Set store.url to the folder or bucket of a "
            "store"
        )
    if delete is None:
        _list(store, tell)
        return
    if delete == "litter":
        gone = store.sweep(older_than=60.0)
        tell(f"removed {len(gone)} leftovers of killed writers")
        _forget_marks(store, tell)
        return
    if delete == "compiled":
        tell(
            f"removed compiled programs, {human_bytes(_remove(store, _COMPILED))} freed; the next run compiles them "
            "again"
        )
        return
    if delete == "networks":
        _forget_networks(store, tell)
        return
    if delete == "solves":
        for prefix in SOLVES:
            for key in list(store.list(prefix)):
                store.delete(key)
        tell("removed bases, eigenvectors and vectors of cg; the predictions made from them are kept")
        return
    infos = list(list_gram_stores(store))
    chosen = [i for i in infos if i.name == delete or (delete == "unfinished" and i.tiles_done < i.tiles_total)]
    if not chosen and delete != "unfinished":
        known = ", ".join(i.name for i in infos) or "none"
        raise ConfigError(f"delete={delete}: no such Gram store in {store.url}; it has {known} (or: {_WORDS})")
    for info in chosen:
        freed = delete_gram_store(store, info.name)
        tell(f"Gram store {info.name} deleted, {human_bytes(freed)} freed")


def _lies(store: ObjectStore) -> str:
    """Return a description of what is at an address without a store."""
    folder = local_folder(store.url)
    if folder is None:
        names = store.folders()
    elif not os.path.isdir(folder):
        return "nothing is there"
    else:
        names = sorted(os.listdir(folder))
    return f"it holds {', '.join(names[:4])}{', ...' * (len(names) > 4)}" if names else "it is empty"


def _remove(store: ObjectStore, prefix: str) -> int:
    """Delete all objects below a prefix, and return their size in bytes."""
    found = dict(store.sizes(prefix))
    store.delete_all(found)
    return sum(found.values())


def _forget_marks(store: ObjectStore, tell: Callable[[str], None]) -> None:
    """Remove the marks of killed runs.

    Nodes look for the mark of an active run, so all marks are kept while a run is active.
    """
    marks = list(store.list(_MARKS))
    if not marks:
        return
    if any(is_running(store, key) for key, _ in read_boards(store)):
        tell(f"kept {len(marks)} marks of runs on clusters, because a run is active")
        return
    store.delete_all(marks)
    tell(f"removed {len(marks)} marks of killed runs on clusters")


def _forget_networks(store: ObjectStore, tell: Callable[[str], None]) -> None:
    """Remove the weights of finite networks whose tiles have been deleted.

    A run writes weights shortly before its Gram store, so all weights are kept while a run is active.
    """
    unused = [one for one in stored_weights(store) if not one.users]
    if unused and any(is_running(store, key) for key, _ in read_boards(store)):
        tell(f"kept weights of {len(unused)} networks, because a run is active")
        return
    store.delete_all([one.key for one in unused])
    freed = human_bytes(sum(one.nbytes for one in unused))
    tell(f"removed weights of {len(unused)} networks that no Gram store refers to, {freed} freed")


def _list(store: ObjectStore, tell: Callable[[str], None]) -> None:
    tell(f"Gram stores in {store.url}")
    for info in list_gram_stores(store):
        what = "damaged manifest"
        if info.identity is not None:
            i = info.identity
            layers = json.dumps(i.spec)
            part = "" if i.symmetry == "none" else f", {i.symmetry} part under flips"
            what = f"{i.n_train:,} + {i.n_test:,} points{part}, {i.stored_dtype}, tile {i.edge}, "
            what += layers[:60] + "..." * (len(layers) > 60)
        tell(
            f"  {info.name}  {human_bytes(info.nbytes):>8}  {info.tiles_done:,} of {info.tiles_total:,} tiles  last used "
            f"{info.last_used or 'unknown'}  {what}"
        )
    sizes = {
        "prepared data": sum(size for p in prepared_prefixes(store) for _, size in store.sizes(p + "/")),
        "solver states": sum(size for prefix in SOLVES for _, size in store.sizes(prefix)),
        "compiled programs": sum(size for _, size in store.sizes(_COMPILED)),
    }
    for name, size in sizes.items():
        tell(f"  {name}: {human_bytes(size)}")
    for one in stored_weights(store):
        use = f"of {', '.join(one.users)}" if one.users else "no Gram store refers to them (delete=networks)"
        tell(f"  weights of network {one.digest}: {human_bytes(one.nbytes)}, {use}")
    if foreign := store.foreign():
        tell(
            f"  files of other programs: {len(foreign):,}, such as {foreign[0]}; ntkpipe neither reads nor removes them"
        )
    tell(f"delete one with: ntkpipe clean store.url={store.url} delete=KEY (or {_WORDS})")
