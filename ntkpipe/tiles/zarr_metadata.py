"""Makes the Zarr metadata of a Gram store, with which any Zarr reader can read its tiles."""

from __future__ import annotations

from typing import Any

from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Layout

_SIGNS = {"even": "+", "odd": "-"}


def zarr_metadata(identity: GramIdentity, layout: Layout) -> dict[str, bytes]:
    """Return the metadata of every group and array by key, as Zarr itself writes it."""
    import zarr  # imported here, because workers do not need it and start half a second sooner without it
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    # xarray refuses an array with two equal dimensions, and a variable with the name of a dimension.
    names = {
        "train": ["train_row", "train_image"],
        "test": ["test_image", "train_image"],
        "diagonal/train": ["train_image"],
        "diagonal/test": ["test_image"],
    }
    memory: dict[str, Any] = {}
    note = "the train block is symmetric: tiles above its diagonal are not stored and read as NaN"
    attributes = {"ntkpipe": identity.key, "note": note}
    if (symmetry := identity.symmetry) != "none":
        attributes["symmetry"] = f"{symmetry} under horizontal flips: k(x, y) {_SIGNS[symmetry]} k(x, flipped y)"
    root = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    for label in layout.labels:
        shape, chunk, dtype = layout.shapes(label)
        for kernel in layout.arrays(label):
            root.create_array(
                layout.array(kernel, label),
                shape=shape,
                chunks=chunk,
                dtype=dtype,
                fill_value=float("nan"),
                filters=None,
                serializer=BytesCodec(endian="little"),
                compressors=[Crc32cCodec()],
                dimension_names=names[label],
            )
    return {layout.key(f"tiles.zarr/{name}"): buffer.to_bytes() for name, buffer in memory.items()}
