"""Tiles of the empirical kernels of a finite network whose weights lie in the store."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.errors import CorruptionError, NtkpipeError, StoreError
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel, read_weights
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.storage.store import open_store

PREFIX = "networks/"
"""Of weights in a store."""

# Points of which only `k(x, x)` is wanted are paired together.
_OWN_EDGE = 16


@dataclass(frozen=True)
class StoredNetwork:
    """Where a network's weights are: hashable, and cheap to pickle.

    Args:
        url: of the store.
        digest: of the kernel, which the weights are checked against.
        layers: canonical JSON of the spec.
        outputs: see `EmpiricalKernel`.
        shape: of one point.
    """

    url: str
    digest: str
    layers: str
    outputs: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, kernel: NetworkKernel, url: str) -> StoredNetwork:
        """Where the weights of a kernel lie in a store, or will."""
        return cls(url, kernel.digest, kernel.layers, kernel.outputs, kernel.shape)

    def write(self, kernel: NetworkKernel) -> None:
        """Put the weights into the store, unless they are there."""
        if self.find_damage():
            open_store(self.url).put(self.key, kernel.to_bytes(), overwrite=True)

    def find_damage(self) -> list[str]:
        """A line if the weights in the store are gone, or not those of the digest; all are read."""
        try:
            _read.__wrapped__(self)
        except StoreError as error:
            return [str(error)]
        return []

    @property
    def key(self) -> str:
        """Of the object that holds the weights."""
        return f"{PREFIX}{self.digest}.npz"

    def read(self) -> NetworkKernel:
        """The kernel, with its weights.

        Raises:
            MissingObjectError: if they are gone.
            CorruptionError: if they are not those of the digest.
        """
        return _read(self)

    def evaluation(self, dtype: str) -> EmpiricalEvaluation:
        """What gives tiles in `float32` or `float64`."""
        return EmpiricalEvaluation(self, dtype)


@dataclass(frozen=True)
class HeldNetwork:
    """A network that is a function of this process: it travels with its tasks, and nothing of it lies in the store.

    Args:
        digest: of the kernel; it stands for the network where two are compared.
        network: the kernel itself.
    """

    digest: str
    network: FunctionNetwork = field(compare=False, repr=False)

    @property
    def layers(self) -> str:
        """Its name, as JSON."""
        return self.network.layers

    def read(self) -> FunctionNetwork:
        """The kernel."""
        return self.network

    def find_damage(self) -> list[str]:
        """Nothing is stored."""
        return []

    def evaluation(self, dtype: str) -> EmpiricalEvaluation:
        """What gives tiles in `float32` or `float64`."""
        return EmpiricalEvaluation(self, dtype)


@functools.lru_cache(maxsize=2)
def _read(network: StoredNetwork) -> NetworkKernel:
    data = open_store(network.url).get(network.key)
    try:
        kernel = NetworkKernel(network.layers, network.outputs, network.shape, read_weights(io.BytesIO(data)))
    except NtkpipeError as error:
        raise CorruptionError(f"{network.key} in {network.url} holds no weights of this network: {error}") from error
    if kernel.digest != network.digest:
        raise CorruptionError(f"{network.key} in {network.url} holds other weights than its name says")
    return kernel


@dataclass(frozen=True)
class EmpiricalEvaluation:
    """See `Evaluates`: activations, signals and gradients of a block are made once and serve all its tiles.

    Args:
        network: whose kernels these are.
        dtype: of the computation.
    """

    network: StoredNetwork | HeldNetwork
    dtype: str

    @property
    def flips(self) -> bool:
        """Weights break the symmetry under flips."""
        return False

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> Any:
        """See `Evaluates.prepare`."""
        del flipped
        with precision_context(self.dtype):
            return self.network.read().prepare(np.ascontiguousarray(images, dtype=self.dtype))

    def tile(
        self,
        rows: Any,
        columns: Any,
        flipped: None = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.tile`; exactly symmetric where rows are paired with themselves."""
        del flipped, pad_to, pairs_per_step
        with precision_context(self.dtype):
            made = self.network.read().tile(rows, rows if columns is None else columns)
            kernels = {name: np.asarray(kernel) for name, kernel in made._asdict().items()}
        if columns is None:
            kernels = {name: (kernel + kernel.T) / 2 for name, kernel in kernels.items()}
        return [{name: np.ascontiguousarray(kernel, dtype=out_dtype) for name, kernel in kernels.items()}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(images), _OWN_EDGE):
            block = self.prepare(images[start : start + _OWN_EDGE])
            for name, kernel in self.tile(block, None, out_dtype="float64")[0].items():
                parts.setdefault(name, []).append(kernel.diagonal())
        return [{name: np.concatenate(part) for name, part in parts.items()}]
