"""Exact predictions of infinitely wide neural networks, at any training time, on whole image data sets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkpipe.dynamics.in_memory import predict_in_memory
    from ntkpipe.kernels.architecture import Architecture

__version__ = "0.1.0"
__all__ = ["Architecture", "__version__", "predict_in_memory"]

# Lazy (PEP 562): importing the package must not drag in JAX, Ray, Zarr or Hydra.
_PUBLIC = {
    "Architecture": "ntkpipe.kernels.architecture",
    "predict_in_memory": "ntkpipe.dynamics.in_memory",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
