"""The kernel of a network that is a JAX function of its parameters and a block of points: of Flax, Equinox, Haiku or one's own."""

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

# Points whose gradients are taken at once.
_AT_ONCE = 16


class Gradients(NamedTuple):
    """Of a block of points: outputs (n, c), and gradients (n, c P), scaled so that a product of two rows is the kernel."""

    functions: jax.Array
    gradients: jax.Array


@runtime_checkable
class OfOneShape(Protocol):
    """What decides a network's kernel besides its weights."""

    layers: str
    outputs: str
    shape: tuple[int, ...]


def network_digest(network: OfOneShape, weights: Mapping[str, np.ndarray]) -> str:
    """32 hexadecimal digits of layers, kind of outputs, shape of a point, and every weight by its name."""
    found = hashlib.sha256(f"{network.layers}\n{network.outputs}\n{list(network.shape)}\n".encode())
    for name, array in weights.items():
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


class FunctionNetwork:
    """NTK of `apply(parameters, x)`, and the mean product of its outputs in the place of an NNGP.

    Args:
        apply: `(parameters, x)` to (n, c) outputs; x is (n, height, width, channels), of tables (n, features). It must treat points
            one by one, which batch statistics do not.
        parameters: a pytree of arrays of real numbers.
        name: of the function, which its tiles are known by besides the values of the parameters.
        outputs: `trace` or `pseudo`; see `EmpiricalKernel`.
        shape: of one point, `(height, width, channels)`.

    Raises:
        DataError: if a parameter is no array of finite real numbers, or the outputs are not (n, c).
    """

    def __init__(
        self, apply: Callable[[Any, Any], Any], parameters: Any, name: str, outputs: str, shape: tuple[int, ...]
    ) -> None:
        self._apply, self.outputs, self.shape = apply, outputs, shape
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
        for k, leaf in enumerate(leaves):
            if leaf.dtype.kind != "f" or not np.isfinite(leaf).all():
                raise DataError(
                    f"parameter {k}, {leaf.dtype} of shape {leaf.shape}, must be an array of finite real numbers: close over what is "
                    "not trained (functools.partial)"
                )
        self._parameters, self._leaves = parameters, leaves
        self.layers = json.dumps({"function": name})
        example = jax.ShapeDtypeStruct((2, *self._of_point), np.float32)
        made = jax.eval_shape(apply, self._cast(np.float32), example)
        if getattr(made, "ndim", 0) != 2 or made.shape[0] != 2:
            raise DataError(
                f"the function gives {getattr(made, 'shape', made)} for two points of shape {self._of_point}: it must give (n, c)"
            )
        self._c = int(made.shape[1])

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in self._leaves)

    @property
    def rows_of_point(self) -> int:
        """One kernel for all outputs."""
        return 1

    @property
    def rank(self) -> int:
        """Rows of the NTK that can be independent at most: gradients of every output, or of their sum."""
        return self.parameters * (self._c if self.outputs == "trace" else 1)

    @property
    def cost(self) -> KernelCost:
        """Of a pair of points, and what is kept of each: all its gradients."""
        size = self.parameters * (self._c if self.outputs == "trace" else 1)
        return KernelCost(0.0, 2.0 * size, 1, 1, size + self._c, int(np.prod(self.shape)))

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits of the name, the kind of outputs, and every parameter."""
        return network_digest(self, {str(k): leaf for k, leaf in enumerate(self._leaves)})

    def prepare(self, x: np.ndarray) -> Gradients:
        """Gradients of a block of points (n, ...), in its dtype."""
        with precision_context(x.dtype):
            parameters, x = self._cast(x.dtype), x.reshape(len(x), *self._of_point)
            parts = [self._made(parameters, x[k : k + _AT_ONCE]) for k in range(0, max(len(x), 1), _AT_ONCE)]
            return parts[0] if len(parts) == 1 else Gradients(*map(jnp.concatenate, zip(*parts, strict=True)))

    def functions(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, c) of the network, in the dtype of `x`."""
        with precision_context(x.dtype):
            return np.asarray(self._apply(self._cast(x.dtype), jnp.asarray(x.reshape(len(x), *self._of_point))))

    def tile(self, rows: Gradients, columns: Gradients) -> Kernels:
        """Both kernels of two blocks, (n1, n2) each."""
        return Kernels(*_products(rows, columns))

    @property
    def _of_point(self) -> tuple[int, ...]:
        """Shape that the function is handed: rows of a table have one axis."""
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
