"""Dense eigendecomposition on an accelerator."""

from __future__ import annotations

import logging

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from ntkpipe.kernels.accelerator import default_platform, is_out_of_memory, to_host

_log = logging.getLogger(__name__)

# The platforms of JAX that compute in float64.
_FLOAT64 = ("gpu", "cuda", "rocm")


def has_float64_accelerator() -> bool:
    """Whether JAX's default device is an accelerator that computes in float64."""
    return default_platform() in _FLOAT64


def device_eigh(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """All eigenvalues and eigenvectors of a symmetric matrix, in float64 on JAX's default device.

    A GPU uses the divide and conquer of cuSOLVER (`syevd`), which takes about three times the memory of the matrix.

    Args:
        array: `(n, n)`; the lower triangle is used.

    Returns:
        Eigenvalues `(n,)`, ascending, and eigenvectors `(n, n)` in columns, on the host. NaN if the iteration does not
        converge. None if the matrix does not fit into the device's memory.
    """
    with jax.enable_x64(True):
        try:
            vectors, values = jax.lax.linalg.eigh(
                jax.device_put(np.asarray(array, dtype=np.float64)), lower=True, symmetrize_input=False
            )
            return to_host(values), to_host(vectors)
        except JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            _log.info("%d x %d does not fit into the memory of the device: the host decomposes it", *array.shape)
            return None
