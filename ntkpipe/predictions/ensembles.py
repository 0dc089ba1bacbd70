"""Writes `validation.zarr`: outputs of ensembles of finite networks beside the predicted means and variances.

xarray can open it.
"""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

Named = Mapping[str, tuple[np.ndarray, tuple[str, ...]]]


def write_ensembles(arrays: Named, attributes: Mapping[str, Any], path: Path) -> None:
    """Write a complete Zarr group, which replaces an existing one.

    Args:
        arrays: arrays and the names of their dimensions, by name. An array with the name of a dimension is its
            coordinate.
        attributes: plain values, stored as JSON.
        path: path of the group.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            group = zarr.create_group(
                temporary,
                zarr_format=3,
                attributes={"format": "ntkpipe-validation", "settings": json.dumps(attributes)},
            )
            for name, (array, dimensions) in arrays.items():
                # There is one chunk per width, because its values are read together.
                chunks = tuple(
                    1 if d in ("width", "output_scale") else n for d, n in zip(dimensions, array.shape, strict=True)
                )
                stored = group.create_array(
                    name,
                    shape=array.shape,
                    dtype=array.dtype,
                    chunks=array.shape if len(dimensions) == 1 else chunks,
                    compressors=Crc32cCodec(),
                    fill_value=np.nan if array.dtype.kind == "f" else -1,
                    dimension_names=dimensions,
                    config={"write_empty_chunks": True},
                )
                stored[...] = array
            zarr.consolidate_metadata(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
