"""The kernel of one finite network as a value: its layers, its weights, and which outputs the NTK is of."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.finite.empirical import Prepared, prepare, tile
from ntkpipe.finite.initialisers import INITIALISERS, init
from ntkpipe.finite.jax_function import FunctionNetwork, network_digest
from ntkpipe.finite.network import Network, Spec, Weights, apply, network
from ntkpipe.finite.products import OUTPUTS, plan_maps
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.spec import canonical_json
from ntkpipe.kernels.state import Kernels

# One kernel for all outputs.
SCALAR = tuple(kind for kind in OUTPUTS if kind != "full")


class EmpiricalKernel:
    """NTK and NNGP of one finite network, for `Gram`: the tiles of a whole data set.

    Args:
        spec: list of layers, as `Architecture.from_spec` takes it.
        weights: list of `(W, b)`, see `finite.apply`, or the path of an `.npz` that `save_weights` wrote; None draws them.
        seed: of weights that are drawn.
        initialiser: of weights that are drawn; see `finite.init`.
        outputs: `trace` (mean over the outputs: one kernel for all classes), `pseudo` (of the sum of the outputs over sqrt(c)) or, in runs,
            `full` (all pairs of outputs).

    Raises:
        ConfigError: for another kind of outputs, or an initialiser that there is not.
        DataError: if a file of weights cannot be read.

    Examples:
        >>> layers = [{"op": "flatten"}, {"op": "dense", "features": 64}, {"op": "relu"}, {"op": "dense", "features": 10}]
        >>> EmpiricalKernel(layers, seed=1).at((8, 8, 1)).parameters
        4800
    """

    def __init__(
        self,
        spec: Spec,
        weights: Weights | str | Path | None = None,
        *,
        seed: int = 0,
        initialiser: str = "gaussian",
        outputs: str = "trace",
    ) -> None:
        _check_outputs(outputs, OUTPUTS)
        if initialiser not in INITIALISERS:
            raise ConfigError(f"initialiser={initialiser!r} is not one of {', '.join(INITIALISERS)}")
        self.layers = canonical_json(spec)
        self.outputs = outputs
        self._seed, self._initialiser = seed, initialiser
        self._weights = read_weights(weights) if isinstance(weights, (str, Path)) else weights

    @staticmethod
    def of_function(
        apply: Callable[[Any, Any], Any], parameters: Any, *, name: str, outputs: str = "trace"
    ) -> EmpiricalKernel:
        """Of any network that is a JAX function: of Flax, Equinox, Haiku or one's own.

        All gradients of a block of points are kept while its tiles are made, (n, c P) numbers for P parameters: `pseudo` needs c times
        less than `trace`. The place of the NNGP is taken by the mean product of the outputs. Executors in other processes pickle the
        function, which must stand at the top of a module, and the parameters, which should then be small.

        Args:
            apply: `(parameters, x)` to (n, c) outputs, point by point; x is (n, height, width, channels), of tables (n, features).
            parameters: a pytree of arrays of real numbers.
            name: that tiles are known by, besides the values of the parameters: a function that has changed needs another.
            outputs: `trace` or `pseudo`.

        Raises:
            ConfigError: without a name, or for another kind of outputs.
        """
        return EmpiricalFunction(apply, parameters, name, outputs)

    def at(self, shape: Sequence[int], dtype: Any = np.float32) -> NetworkKernel | FunctionNetwork:
        """The kernel for points of a shape, with its weights checked or drawn.

        Args:
            shape: of one point, `(height, width, channels)` or `(features,)`.
            dtype: of weights that are drawn.

        Raises:
            ConfigError: naming the layer that has no finite form or that points of this shape cannot pass.
            DataError: if weights have other shapes, with the list of right ones, or are not finite.
        """
        spec = json.loads(self.layers)
        weights = self._weights
        if weights is None:
            weights = init(spec, shape, self._seed, initialiser=self._initialiser, dtype=dtype)
        return NetworkKernel(self.layers, self.outputs, tuple(shape), weights)

    def cost(self, shape: Sequence[int]) -> KernelCost:
        """Of a pair of points of a shape, and what is kept of each; no weights are drawn.

        Raises:
            ConfigError: as of `at`.
        """
        return _cost(network(json.loads(self.layers), shape), self.outputs)

    def __repr__(self) -> str:
        where = f"seed={self._seed}" if self._weights is None else "given weights"
        return f"EmpiricalKernel({len(json.loads(self.layers))} layers, {where}, outputs={self.outputs!r})"


class EmpiricalFunction(EmpiricalKernel):
    """Made by `EmpiricalKernel.of_function`."""

    def __init__(self, apply: Callable[[Any, Any], Any], parameters: Any, name: str, outputs: str) -> None:
        _check_outputs(outputs, SCALAR)
        if not callable(apply):
            raise ConfigError(
                "of_function takes apply(parameters, x), a function of the parameters and a block of points"
            )
        if not name:
            raise ConfigError(
                "a function needs a name: its tiles are known by it. EmpiricalKernel.of_function(..., name=...)"
            )
        self.outputs = outputs
        self._apply, self._parameters, self._name = apply, parameters, name

    def at(self, shape: Sequence[int], dtype: Any = np.float32) -> FunctionNetwork:
        """See `EmpiricalKernel.at`; the parameters are what they are."""
        del dtype
        return FunctionNetwork(self._apply, self._parameters, self._name, self.outputs, tuple(shape))

    def cost(self, shape: Sequence[int]) -> KernelCost:
        """See `EmpiricalKernel.cost`."""
        return self.at(shape).cost

    def __repr__(self) -> str:
        return f"EmpiricalKernel.of_function({self._name!r}, outputs={self.outputs!r})"


class NetworkKernel:
    """An `EmpiricalKernel` for points of one shape.

    Args:
        layers: the spec, canonical JSON.
        outputs: `trace`, `pseudo` or `full`.
        shape: of one point.
        weights: list of `(W, b)`.

    Raises:
        ConfigError, DataError: see `EmpiricalKernel.at`.
    """

    def __init__(self, layers: str, outputs: str, shape: tuple[int, ...], weights: Weights) -> None:
        self.layers, self.outputs, self.shape = layers, outputs, shape
        self._network = network(json.loads(layers), shape)
        # Checked in the precision that holds whatever was given; kept as it was given.
        self._network.check_weights(weights, np.float32)
        if self._network.masks:
            raise ConfigError("dropout with a rate below 1 draws random masks: one network's kernel needs rate=1")
        self.weights = [(_plain(w), None if b is None else np.asarray(b)) for w, b in weights]

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self._network.parameters

    @property
    def rows_of_point(self) -> int:
        """Rows of the kernel for every point: its outputs, where it is between all pairs of these."""
        return self._network.outputs if self.outputs == "full" else 1

    @property
    def rank(self) -> int:
        """Rows of the NTK that can be independent at most.

        Of a trace each output has gradients of its own; by a dense readout they are equal, and by a dense layer before it multiples of one.
        """
        plans = plan_maps(self._network, self.outputs)
        if self.outputs == "trace" and self._network.has_readout:
            return sum(plan.rank for plan in plans[:-1]) + self._network.maps[-1].parameters // self._network.outputs
        return sum(plan.rank for plan in plans)

    @property
    def cost(self) -> KernelCost:
        """Of a pair of points, and what is kept of each."""
        return _cost(self._network, self.outputs)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits of layers, kind of outputs, and every weight: what makes two such kernels the same."""
        return network_digest(self, arrays_of_weights(self.weights))

    def prepare(self, x: np.ndarray) -> Prepared:
        """What pairs need of each point, computed once; `x` is (n, ...) in the dtype of the computation."""
        spec = json.loads(self.layers)
        layout = "NHWC" if x.ndim > 3 else None
        return prepare(spec, self.weights, x.reshape(len(x), *self.shape), outputs=self.outputs, layout=layout)

    def functions(self, x: np.ndarray) -> np.ndarray:
        """Outputs (n, c) of the network, in the dtype of `x`."""
        layout = "NHWC" if x.ndim > 3 else None
        return np.asarray(apply(json.loads(self.layers), self.weights, x.reshape(len(x), *self.shape), layout=layout))

    def tile(self, rows: Prepared, columns: Prepared) -> Kernels:
        """Both kernels of two blocks, (n1, n2) each."""
        return tile(rows, columns)

    def to_bytes(self) -> bytes:
        """The weights as an `.npz`."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays_of_weights(self.weights))
        return buffer.getvalue()


def _cost(made: Network, outputs: str) -> KernelCost:
    plans = plan_maps(made, outputs)
    operations, kept = sum(plan.operations for plan in plans), sum(plan.floats for plan in plans) + made.outputs
    # Of all pairs of outputs a row is one output of a point: a share of what the point takes.
    rows = made.outputs if outputs == "full" else 1
    return KernelCost(0.0, 2.0 * operations / rows**2, 1, 1, -(-kept // rows), -(-math.prod(made.shape) // rows))


def save_weights(path: str | Path, weights: Weights) -> None:
    """Write weights to an `.npz` that `EmpiricalKernel` and `read_weights` read: `W0`, `b0`, `W1`, ...

    Args:
        path: of the file.
        weights: list of `(W, b)`; of attention layers, with three arrays W, these are `W0.0`, `W0.1`, `W0.2`.
    """
    np.savez(Path(path), allow_pickle=False, **arrays_of_weights(weights))


def read_weights(source: str | Path | io.BytesIO) -> list[tuple[Any, Any]]:
    """The inverse of `save_weights`.

    Raises:
        DataError: if the file cannot be read, or its names are others.
    """
    try:
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{source}: weights cannot be read ({error}): save them with finite.save_weights") from error
    made: list[tuple[Any, Any]] = []
    while (found := _matrix(arrays, len(made))) is not None:
        made.append((found, arrays.pop(f"b{len(made)}", None)))
    if arrays or not made:
        raise DataError(
            f"{source}: weights are called W0, b0, W1, ... in the order of the layers that have them; it holds "
            f"{', '.join(sorted(arrays)[:6]) or 'nothing'}: save them with finite.save_weights"
        )
    return made


def arrays_of_weights(weights: Weights) -> dict[str, np.ndarray]:
    """Weights by name, as `save_weights` writes them."""
    named: dict[str, np.ndarray] = {}
    for k, (w, b) in enumerate(weights):
        if isinstance(w, (tuple, list)):
            named |= {f"W{k}.{j}": np.asarray(part) for j, part in enumerate(w)}
        else:
            named[f"W{k}"] = np.asarray(w)
        if b is not None:
            named[f"b{k}"] = np.asarray(b)
    return named


def _check_outputs(outputs: str, known: Sequence[str]) -> None:
    if outputs not in known:
        raise ConfigError(f"outputs={outputs!r} is not one of {', '.join(known)}")


def _matrix(arrays: dict[str, np.ndarray], k: int) -> Any:
    """The weight matrix of layer `k`, taken out of `arrays`; None if there is none."""
    if f"W{k}" in arrays:
        return arrays.pop(f"W{k}")
    parts = []
    while f"W{k}.{len(parts)}" in arrays:
        parts.append(arrays.pop(f"W{k}.{len(parts)}"))
    return tuple(parts) or None


def _plain(w: Any) -> Any:
    return tuple(np.asarray(part) for part in w) if isinstance(w, (tuple, list)) else np.asarray(w)
