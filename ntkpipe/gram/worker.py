"""One tile of the Gram matrix: arrays in, arrays out. Needs JAX and NumPy only, and knows no store and no scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.kernels.architecture import Architecture, precision_context
from ntkpipe.kernels.spec import canonical_json

Spec = Sequence[Mapping[str, Any]]


@lru_cache(maxsize=16)
def _architecture(canonical: str) -> Architecture:
    return Architecture.from_spec(json.loads(canonical))


def architecture(spec: Spec) -> Architecture:
    """The architecture of a spec; the same object, with its compiled functions, every time in one process."""
    return _architecture(canonical_json(spec))


def compute_tile(
    spec: Spec,
    x1: np.ndarray,
    x2: np.ndarray | None,
    *,
    diagonal: bool,
    dtype: str,
    out_dtype: str,
    pad_to: int | None = None,
) -> dict[str, np.ndarray]:
    """Both kernels of one tile, from one evaluation.

    Args:
        spec: the layers.
        x1: row images, `(n1, height, width, channels)`; converted to `dtype`.
        x2: column images, `(n2, height, width, channels)`; not used by a diagonal tile.
        diagonal: the tile holds the same images in its rows and columns: exactly symmetric, with exact diagonals.
        dtype: of the computation, `float32` or `float64`.
        out_dtype: of the result.
        pad_to: edge of the nominal tile. Ragged tiles are padded to it inside, so that they share its compiled function.

    Returns:
        `{"nngp": (n1, n2), "ntk": (n1, n2)}`, contiguous.

    Raises:
        ConfigError: if a dtype is neither, `x2` is missing, or the images cannot pass a layer.
        ResourceError: if the device lacks the dtype.
    """
    _check_dtype("dtype", dtype)
    _check_dtype("out_dtype", out_dtype)
    if x2 is None and not diagonal:
        raise ConfigError("a tile off the diagonal needs both blocks of images")
    arch = architecture(spec)
    rows = np.ascontiguousarray(x1, dtype=dtype)
    cols = None if diagonal or x2 is None else np.ascontiguousarray(x2, dtype=dtype)
    arch.check_arrays(rows, cols)
    with precision_context(dtype):
        made = arch.tile(
            arch.prepare(rows),
            None if cols is None else arch.prepare(cols),
            out_dtype=np.dtype(out_dtype),
            pad_to=pad_to,
        )
        return {name: np.ascontiguousarray(kernel) for name, kernel in made._asdict().items()}


def compute_diagonal(spec: Spec, x: np.ndarray, *, dtype: str) -> dict[str, np.ndarray]:
    """Both kernels of every image with itself, computed in `dtype`: the diagonals that `compute_tile` gives.

    Args:
        spec: the layers.
        x: images, `(n, height, width, channels)`; converted to `dtype`.
        dtype: of the computation, `float32` or `float64`.

    Returns:
        `{"nngp": (n,), "ntk": (n,)}`, float64.

    Raises:
        ConfigError: if the dtype is neither, or the images cannot pass a layer.
        ResourceError: if the device lacks the dtype.
    """
    _check_dtype("dtype", dtype)
    made = architecture(spec).diagonal(np.ascontiguousarray(x, dtype=dtype))
    return {name: np.asarray(kernel, dtype=np.float64) for name, kernel in made._asdict().items()}


def _check_dtype(name: str, value: str) -> None:
    if value not in ("float32", "float64"):
        raise ConfigError(f"{name}={value!r} is not one of float32, float64")
