"""Weights of finite networks in a store, and the Gram stores that refer to them."""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.gram.empirical import PREFIX
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tiles.catalogue import list_gram_stores


@dataclass(frozen=True)
class StoredWeights:
    """The stored weights of one network.

    Args:
        digest: digest that names the weights.
        nbytes: size of the object in bytes.
        users: names of the Gram stores whose tiles were computed from these weights.
    """

    digest: str
    nbytes: int
    users: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key of the object in the store."""
        return f"{PREFIX}{self.digest}.npz"


def stored_weights(store: ObjectStore) -> list[StoredWeights]:
    """Return all weights in a store, sorted by digest."""
    sizes = {key.removeprefix(PREFIX).removesuffix(".npz"): size for key, size in store.sizes(PREFIX)}
    if not sizes:
        return []
    users: dict[str, list[str]] = {}
    for info in list_gram_stores(store):
        if info.identity is not None:
            users.setdefault(info.identity.architecture, []).append(info.name)
    return [StoredWeights(digest, size, tuple(users.get(digest, ()))) for digest, size in sorted(sizes.items())]
