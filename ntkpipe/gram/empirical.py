"""Tiles of the empirical kernels of a finite network whose weights are in the store."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.errors import CorruptionError, NtkpipeError, StoreError
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel, read_weights
from ntkpipe.gram.function import as_tile, diagonal_of_tiles
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.storage.store import open_store

PREFIX = "networks/"
"""Folder of network weights in a store."""

# Block size of points for which only `k(x, x)` is needed.
_OWN_EDGE = 16


@dataclass(frozen=True)
class StoredNetwork:
    """A network whose weights are in a store. It is hashable and cheap to pickle.

    Args:
        url: of the store.
        digest: of the kernel; the weights that are read must match it.
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
        """The network of a kernel, with its weights in the store at `url`; writes nothing."""
        return cls(url, kernel.digest, kernel.layers, kernel.outputs, kernel.shape)

    def write(self, kernel: NetworkKernel) -> None:
        """Write the weights to the store, unless they exist."""
        if self.find_damage():
            open_store(self.url).put(self.key, kernel.to_bytes(), overwrite=True)

    def find_damage(self) -> list[str]:
        """Read the stored weights; one text if they are missing or do not match the digest, otherwise an empty list."""
        try:
            _read.__wrapped__(self)
        except StoreError as error:
            return [str(error)]
        return []

    @property
    def key(self) -> str:
        """Key of the object with the weights."""
        return f"{PREFIX}{self.digest}.npz"

    def read(self) -> NetworkKernel:
        """The kernel with its weights.

        Raises:
            MissingObjectError: if the weights are missing.
            CorruptionError: if the weights do not match the digest.
        """
        return _read(self)

    def evaluation(self, dtype: str) -> EmpiricalEvaluation:
        """The evaluation of tiles in `float32` or `float64`."""
        return EmpiricalEvaluation(self, dtype)


@dataclass(frozen=True)
class HeldNetwork:
    """A network given as a function. It is pickled with its tasks and not stored.

    Args:
        digest: of the kernel; two networks are equal if their digests are.
        network: the kernel.
    """

    digest: str
    network: FunctionNetwork = field(compare=False, repr=False)

    @property
    def layers(self) -> str:
        """The name of the network, as JSON."""
        return self.network.layers

    def read(self) -> FunctionNetwork:
        """The kernel."""
        return self.network

    def find_damage(self) -> list[str]:
        """An empty list, because nothing is stored."""
        return []

    def evaluation(self, dtype: str) -> EmpiricalEvaluation:
        """The evaluation of tiles in `float32` or `float64`."""
        return EmpiricalEvaluation(self, dtype)


@functools.lru_cache(maxsize=2)
def _read(network: StoredNetwork) -> NetworkKernel:
    """Read and check the weights; cached, because all tiles of a task need them."""
    data = open_store(network.url).get(network.key)
    try:
        kernel = NetworkKernel(network.layers, network.outputs, network.shape, read_weights(io.BytesIO(data)))
    except NtkpipeError as error:
        raise CorruptionError(f"{network.key} in {network.url} holds no weights of this network: {error}") from error
    if kernel.digest != network.digest:
        raise CorruptionError(f"{network.key} in {network.url} holds weights that do not match its name")
    return kernel


@dataclass(frozen=True)
class EmpiricalEvaluation:
    """The `Evaluates` of a finite network. A block's activations and gradients are computed once for all its tiles.

    Args:
        network: with its weights.
        dtype: of the computation.
    """

    network: StoredNetwork | HeldNetwork
    dtype: str

    @property
    def flips(self) -> bool:
        """False: the weights of one network are not symmetric under flips."""
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
        """See `Evaluates.tile`; exactly symmetric if the rows are paired with themselves."""
        del flipped, pad_to, pairs_per_step
        with precision_context(self.dtype):
            made = self.network.read().tile(rows, rows if columns is None else columns)
            kernels = {name: np.asarray(kernel) for name, kernel in made._asdict().items()}
        return [{name: as_tile(kernel, out_dtype, symmetric=columns is None) for name, kernel in kernels.items()}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        return diagonal_of_tiles(self, images, _OWN_EDGE)
