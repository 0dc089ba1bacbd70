"""Ways between the host and an accelerator."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax
import numpy as np

from ntkpipe.errors import ResourceError

_PINNED = "pinned_host"


def default_platform() -> str:
    """What JAX computes on: `cpu`, `gpu`, `tpu`.

    Raises:
        ResourceError: if the environment names a platform that is not here.
    """
    try:
        return jax.default_backend()
    except RuntimeError as error:
        named = os.environ.get("JAX_PLATFORMS", "")
        why = " ".join(str(error).split())
        raise ResourceError(
            f"JAX_PLATFORMS={named} names nothing that JAX can compute on here ({why}): set JAX_PLATFORMS=cpu, or unset it"
            if named
            else f"JAX has nothing to compute on ({why}): set JAX_PLATFORMS=cpu"
        ) from error


def precision_context(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """The JAX context in which arrays of `dtype` stay what they are; the caller's global setting is not touched.

    Raises:
        ResourceError: if the default device has no float64.
    """
    if np.dtype(dtype) != np.float64:
        return contextlib.nullcontext()
    platform = default_platform()
    if platform not in ("cpu", "gpu", "cuda", "rocm"):
        raise ResourceError(f"device {platform} has no float64: set kernel.dtype=float32, or JAX_PLATFORMS=cpu")
    return jax.enable_x64(True)


def to_host(array: jax.Array) -> np.ndarray:
    """The array in the host's memory, not to be written to.

    By way of page-locked memory, where the device has it: into memory of NumPy's own an H200 sent 1.3 GB/s, this way 41.
    """
    (device,) = array.devices()
    if device.platform == "cpu" or all(memory.kind != _PINNED for memory in device.addressable_memories()):
        return np.asarray(array)
    return np.asarray(jax.device_put(array, jax.sharding.SingleDeviceSharding(device, memory_kind=_PINNED)))
