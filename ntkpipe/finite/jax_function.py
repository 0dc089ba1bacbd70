"""The kernel of a network given as a JAX function of parameters and points, from Flax, Equinox, Haiku or your own
code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ntkpipe.errors import DataError
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.state import Kernels

# Number of points whose gradients are computed together.
_AT_ONCE = 16


class Gradients(NamedTuple):
    """Outputs (n, c) and gradients (n, c P) of a block of points, scaled so that products of rows are the kernel."""

    functions: jax.Array
    gradients: jax.Array


@runtime_checkable
class OfOneShape(Protocol):
    """The attributes that determine a network's kernel besides its weights."""

    layers: str
    outputs: str
    shape: tuple[int, ...]


def network_digest(network: OfOneShape, weights: Mapping[str, np.ndarray]) -> str:
    """Return a hash (32 hexadecimal digits) of the layers, the kind of outputs, the shape of a point and all
    weights.
    """
    found = hashlib.sha256(f"{network.layers}\n{network.outputs}\n{list(network.shape)}\n".encode())
    for name, array in weights.items():
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


class FunctionNetwork:
    """The NTK of `apply(parameters, x)`, with the mean product of the outputs in place of the NNGP.

    Args:
        apply: maps `(parameters, x)` to outputs (n, c). x is (n, height, width, channels), or (n, features) for tables.
            Each output may depend on its own point only, so batch statistics are not allowed.
        parameters: a pytree of arrays of real numbers.
        name: name of the function. It identifies stored tiles together with the values of the parameters.
        outputs: `trace` or `pseudo`; see `EmpiricalKernel`.
        shape: shape of one point, `(height, width, channels)`.

    Raises:
        DataError: if a parameter is not an array of finite real numbers, or the outputs are not (n, c).
    """

    def __init__(
        self, apply: Callable[[Any, Any], Any], parameters: Any, name: str, outputs: str, shape: tuple[int, ...]
    ) -> None:
        self._apply, self.outputs, self.shape = apply, outputs, shape
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
        for k, leaf in enumerate(leaves):
            if leaf.dtype.kind != "f" or not np.isfinite(leaf).all():
                raise DataError(
                    f"parameter {k}, {leaf.dtype} of shape {leaf.shape}, must be an array of finite real numbers: "
                    "pass arguments that are not trained with functools.partial"
                )
        self._parameters, self._leaves = parameters, leaves
        self.layers = json.dumps({"function": name})
        example = jax.ShapeDtypeStruct((2, *self._of_point), np.float32)
        made = jax.eval_shape(apply, self._cast(np.float32), example)
        if getattr(made, "ndim", 0) != 2 or made.shape[0] != 2:
            raise DataError(
                f"the function gives {getattr(made, 'shape', made)} for two points of shape {self._of_point}: it must "
                "return (n, c)"
            )
        self._c = int(made.shape[1])

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in self._leaves)

    @property
    def rows_of_point(self) -> int:
        """1: there is one kernel for all outputs."""
        return 1

    @property
    def rank(self) -> int:
        """Largest possible rank of the NTK: the number of gradients, at most the number of parameters."""
        return self.parameters * (self._c if self.outputs == "trace" else 1)

    @property
    def cost(self) -> KernelCost:
        """Return the cost of a pair of points, and the memory of the gradients of each."""
        size = self.parameters * (self._c if self.outputs == "trace" else 1)
        return KernelCost(0.0, 2.0 * size, 1, 1, size + self._c, int(np.prod(self.shape)))

    @cached_property
    def digest(self) -> str:
        """Hash (32 hexadecimal digits) of the name, the kind of outputs and all parameters."""
        return network_digest(self, {str(k): leaf for k, leaf in enumerate(self._leaves)})

    def prepare(self, x: np.ndarray) -> Gradients:
        """Return the gradients of a block of points (n, ...), in its dtype."""
        with precision_context(x.dtype):
            parameters, x = self._cast(x.dtype), x.reshape(len(x), *self._of_point)
            parts = [self._made(parameters, x[k : k + _AT_ONCE]) for k in range(0, max(len(x), 1), _AT_ONCE)]
            return parts[0] if len(parts) == 1 else Gradients(*map(jnp.concatenate, zip(*parts, strict=True)))

    def functions(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs (n, c) of the network, in the dtype of `x`."""
        with precision_context(x.dtype):
            return np.asarray(self._apply(self._cast(x.dtype), jnp.asarray(x.reshape(len(x), *self._of_point))))

    def tile(self, rows: Gradients, columns: Gradients) -> Kernels:
        """Return both kernels of two blocks, (n1, n2) each."""
        return Kernels(*_products(rows, columns))

    @property
    def _of_point(self) -> tuple[int, ...]:
        """Shape of a point as the function receives it: rows of a table have one axis."""
        return self.shape[-1:] if self.shape[:-1] == (1, 1) else self.shape

    def _cast(self, dtype: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self._parameters)

    @cached_property
    def _made(self) -> Callable[[Any, Any], Gradients]:
        trace, c = self.outputs == "trace", self._c

        def made(parameters: Any, x: Any) -> Gradients:
            with jax.default_matmul_precision("highest"):
                flat, unravel = ravel_pytree(parameters)

                def outputs(flat: Any, point: Any) -> Any:
                    return self._apply(unravel(flat), point[None])[0]

                def direction(flat: Any, point: Any) -> Any:
                    return outputs(flat, point) if trace else outputs(flat, point).sum(keepdims=True)

                functions = jax.vmap(outputs, (None, 0))(flat, x)
                gradients = jax.vmap(jax.jacrev(direction), (None, 0))(flat, x)
                return Gradients(functions, gradients.reshape(len(x), -1) / np.sqrt(c).astype(x.dtype))

        return jax.jit(made)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}


@jax.jit
def _products(rows: Gradients, columns: Gradients) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):
        return (
            rows.functions @ columns.functions.T / rows.functions.shape[1],
            rows.gradients @ columns.gradients.T,
        )
