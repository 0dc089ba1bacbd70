"""`EmpiricalKernel`: the kernel of one finite network, given by its layers, weights and kind of outputs."""

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
from ntkpipe.finite.network import Network, Weights, apply, network
from ntkpipe.finite.products import OUTPUTS, plan_maps
from ntkpipe.kernels.cost import KernelCost
from ntkpipe.kernels.spec import Spec, canonical_json
from ntkpipe.kernels.state import Kernels

# Kinds of outputs with one kernel for all outputs.
SCALAR = tuple(kind for kind in OUTPUTS if kind != "full")


class EmpiricalKernel:
    """The NTK and NNGP of one finite network, for `Gram` over a whole data set.

    Args:
        spec: list of layers, as in `Architecture.from_spec`.
        weights: list of `(W, b)`, see `finite.apply`, or the path of an `.npz` written by `save_weights`; None draws
            them.
        seed: seed of drawn weights.
        initialiser: initialiser of drawn weights; see `finite.init`.
        outputs: `trace` (mean over the outputs, one kernel for all classes), `pseudo` (the sum of the outputs divided
            by sqrt(c)) or, in runs only, `full` (all pairs of outputs).

    Raises:
        ConfigError: if the kind of outputs or the initialiser is unknown.
        DataError: if a file of weights cannot be read.

    Examples:
        >>> layers = [{"op": "flatten"}, {"op": "dense", "features": 64}, {"op": "relu"}, {"op": "dense", "features": 10}]
        >>> EmpiricalKernel(layers, seed=1).at((8, 8, 1)).parameters
        4736
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
        """Return the kernel of any network that is a JAX function, from Flax, Equinox, Haiku or your own code.

        All gradients of a block of points, (n, c P) numbers for P parameters, are kept while its tiles are computed;
        `pseudo` needs c times less than `trace`. The mean product of the outputs replaces the NNGP. Executors in other
        processes pickle the function and the parameters: define the function at the top level of a module, and keep
        parameters small.

        Args:
            apply: maps `(parameters, x)` to outputs (n, c), each point separately. x is (n, height, width, channels),
                or (n, features) for tables.
            parameters: a pytree of arrays of real numbers.
            name: identifies stored tiles together with the values of the parameters. Change it when the function
                changes.
            outputs: `trace` or `pseudo`.

        Raises:
            ConfigError: if the name is missing or the kind of outputs is unknown.
        """
        return EmpiricalFunction(apply, parameters, name, outputs)

    def at(self, shape: Sequence[int], dtype: Any = np.float32) -> NetworkKernel | FunctionNetwork:
        """Return the kernel for points of one shape, with its weights checked or drawn.

        Args:
            shape: shape of one point, `(height, width, channels)` or `(features,)`.
            dtype: dtype of drawn weights.

        Raises:
            ConfigError: if a layer has no finite form or does not accept points of this shape; the message names it.
            DataError: if weights have other shapes (the message lists the right ones) or are not finite.
        """
        spec = json.loads(self.layers)
        weights = self._weights
        if weights is None:
            weights = init(spec, shape, self._seed, initialiser=self._initialiser, dtype=dtype)
        return NetworkKernel(self.layers, self.outputs, tuple(shape), weights)

    def cost(self, shape: Sequence[int]) -> KernelCost:
        """Return the cost of a pair of points of this shape, without drawing weights.

        Raises:
            ConfigError: as in `at`.
        """
        return _cost(network(json.loads(self.layers), shape), self.outputs)

    def __repr__(self) -> str:
        where = f"seed={self._seed}" if self._weights is None else "given weights"
        return f"EmpiricalKernel({len(json.loads(self.layers))} layers, {where}, outputs={self.outputs!r})"


class EmpiricalFunction(EmpiricalKernel):
    """The result of `EmpiricalKernel.of_function`."""

    def __init__(self, apply: Callable[[Any, Any], Any], parameters: Any, name: str, outputs: str) -> None:
        _check_outputs(outputs, SCALAR)
        if not callable(apply):
            raise ConfigError(
                "of_function needs a function apply(parameters, x) of the parameters and a block of points"
            )
        if not name:
            raise ConfigError(
                "a function needs a name to identify its tiles: EmpiricalKernel.of_function(..., name=...)"
            )
        self.outputs = outputs
        self._apply, self._parameters, self._name = apply, parameters, name

    def at(self, shape: Sequence[int], dtype: Any = np.float32) -> FunctionNetwork:
        """Return the kernel for points of this shape, see `EmpiricalKernel.at`; `dtype` is ignored."""
        del dtype
        return FunctionNetwork(self._apply, self._parameters, self._name, self.outputs, tuple(shape))

    def cost(self, shape: Sequence[int]) -> KernelCost:
        """Return the cost of a pair of points, see `EmpiricalKernel.cost`."""
        return self.at(shape).cost

    def __repr__(self) -> str:
        return f"EmpiricalKernel.of_function({self._name!r}, outputs={self.outputs!r})"


class NetworkKernel:
    """An `EmpiricalKernel` for points of one shape.

    Args:
        layers: the spec as canonical JSON.
        outputs: `trace`, `pseudo` or `full`.
        shape: shape of one point.
        weights: list of `(W, b)`.

    Raises:
        ConfigError, DataError: see `EmpiricalKernel.at`.
    """

    def __init__(self, layers: str, outputs: str, shape: tuple[int, ...], weights: Weights) -> None:
        self.layers, self.outputs, self.shape = layers, outputs, shape
        self._network = network(json.loads(layers), shape)
        # The weights are checked in float32 and kept in their own dtype.
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
        """Number of kernel rows per point: the number of outputs for `full`, else 1."""
        return self._network.outputs if self.outputs == "full" else 1

    @property
    def rank(self) -> int:
        """Largest possible rank of the NTK.

        For `trace` each output has its own gradients. The gradients by a dense readout are equal for all outputs, and
        those by a dense layer before it are multiples of one vector.
        """
        plans = plan_maps(self._network, self.outputs)
        if self.outputs == "trace" and self._network.has_readout:
            return sum(plan.rank for plan in plans[:-1]) + self._network.maps[-1].parameters // self._network.outputs
        return sum(plan.rank for plan in plans)

    @property
    def cost(self) -> KernelCost:
        """Return the cost of a pair of points, and the memory per point."""
        return _cost(self._network, self.outputs)

    @cached_property
    def digest(self) -> str:
        """Hash (32 hexadecimal digits) of the layers, the kind of outputs and all weights; equal kernels have equal
        hashes.
        """
        return network_digest(self, arrays_of_weights(self.weights))

    def prepare(self, x: np.ndarray) -> Prepared:
        """Compute what pairs need of each point; `x` is (n, ...) in the dtype of the computation."""
        spec = json.loads(self.layers)
        layout = "NHWC" if x.ndim > 3 else None
        return prepare(spec, self.weights, x.reshape(len(x), *self.shape), outputs=self.outputs, layout=layout)

    def functions(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs (n, c) of the network, in the dtype of `x`."""
        layout = "NHWC" if x.ndim > 3 else None
        return np.asarray(apply(json.loads(self.layers), self.weights, x.reshape(len(x), *self.shape), layout=layout))

    def tile(self, rows: Prepared, columns: Prepared) -> Kernels:
        """Return both kernels of two blocks, (n1, n2) each."""
        return tile(rows, columns)

    def to_bytes(self) -> bytes:
        """Return the weights as the bytes of an `.npz` file."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays_of_weights(self.weights))
        return buffer.getvalue()


def _cost(made: Network, outputs: str) -> KernelCost:
    plans = plan_maps(made, outputs)
    operations, kept = sum(plan.operations for plan in plans), sum(plan.floats for plan in plans) + made.outputs
    # With `full`, a row is one output of a point and has its share of the cost of the point.
    rows = made.outputs if outputs == "full" else 1
    return KernelCost(0.0, 2.0 * operations / rows**2, 1, 1, -(-kept // rows), -(-math.prod(made.shape) // rows))


def save_weights(path: str | Path, weights: Weights) -> None:
    """Write weights to an `.npz` file with arrays `W0`, `b0`, `W1`, ..., for `EmpiricalKernel` and `read_weights`.

    Args:
        path: path of the file.
        weights: list of `(W, b)`. The three arrays W of an attention layer are called `W0.0`, `W0.1`, `W0.2`.
    """
    np.savez(Path(path), allow_pickle=False, **arrays_of_weights(weights))


def read_weights(source: str | Path | io.BytesIO) -> list[tuple[Any, Any]]:
    """Read weights that `save_weights` wrote.

    Raises:
        DataError: if the file cannot be read, or its arrays have other names.
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
            f"{source} holds {', '.join(sorted(arrays)[:6]) or 'nothing'}, but weights must be called W0, b0, W1, ... "
            "in the order of their layers: save them with finite.save_weights"
        )
    return made


def arrays_of_weights(weights: Weights) -> dict[str, np.ndarray]:
    """Return the weights by the names that `save_weights` uses."""
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
    """Remove the weight matrix of layer `k` from `arrays` and return it; None if there is none."""
    if f"W{k}" in arrays:
        return arrays.pop(f"W{k}")
    parts = []
    while f"W{k}.{len(parts)}" in arrays:
        parts.append(arrays.pop(f"W{k}.{len(parts)}"))
    return tuple(parts) or None


def _plain(w: Any) -> Any:
    return tuple(np.asarray(part) for part in w) if isinstance(w, (tuple, list)) else np.asarray(w)
