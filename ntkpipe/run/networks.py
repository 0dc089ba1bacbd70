"""Weights of finite networks that a store holds, and which Gram matrices refer to them."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.gram.empirical import PREFIX
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tiles.catalogue import list_gram_stores


@dataclass(frozen=True)
class StoredWeights:
    """Of one network.

    Args:
        digest: that names them.
        nbytes: of the object.
        users: names of the Gram stores whose tiles they made.
    """

    digest: str
    nbytes: int
    users: tuple[str, ...]

    @property
    def key(self) -> str:
        """Of the object."""
        return f"{PREFIX}{self.digest}.npz"


def stored_weights(store: ObjectStore) -> list[StoredWeights]:
    """All that lie in a store, by digest."""
    sizes = {key.removeprefix(PREFIX).removesuffix(".npz"): size for key, size in store.sizes(PREFIX)}
    if not sizes:
        return []
    users: dict[str, list[str]] = {}
    for info in list_gram_stores(store):
        if info.identity is not None:
            users.setdefault(info.identity.architecture, []).append(info.name)
    return [StoredWeights(digest, size, tuple(users.get(digest, ()))) for digest, size in sorted(sizes.items())]
