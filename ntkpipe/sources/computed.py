"""Sources of computed kernels: networks and functions of two blocks. Tiles are stored or recomputed on every read."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.errors import ConfigError
from ntkpipe.gram.empirical import HeldNetwork, StoredNetwork
from ntkpipe.gram.function import BlockFunction, Evaluates, FunctionKernel
from ntkpipe.gram.output_pairs import OutputPairs
from ntkpipe.gram.recomputed import RecomputedTiles
from ntkpipe.gram.task import ImageSource, Output
from ntkpipe.gram.worker import Evaluation, Spec
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.dominance import dominance
from ntkpipe.kernels.truncation import expanded_layers, with_half_degrees
from ntkpipe.sources.recomputation import (
    evaluation_errors,
    recomputed_columns,
    recomputed_rows,
    recomputed_test_gram,
    series_errors,
)
from ntkpipe.sources.scale import check_computed_scale
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

# Number of points whose network outputs are computed at once.
_AT_ONCE = 256


@dataclass(frozen=True)
class ComputedSource(ABC):
    """Common part of networks and functions; see `KernelSource`.

    Args:
        gram: the store of the tiles, or of the diagonals if tiles are not stored.
        images: the source of the images.
        stored: whether tiles are stored.
        pairs_per_step: see `Evaluation.tile`.
    """

    gram: GramStore
    images: ImageSource
    stored: bool
    pairs_per_step: int | None

    is_given = False
    estimates_test_diagonal = False

    @property
    @abstractmethod
    def outputs(self) -> tuple[Output, ...]:
        """The outputs of a task, one for each store."""

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """See `KernelSource`."""
        return tuple(output.gram for output in self.outputs)

    @abstractmethod
    def evaluation(self, dtype: str) -> Evaluates:
        """The evaluation of entries in `float32` or `float64`."""

    def plain_evaluation(self, dtype: str) -> Evaluates:
        """The evaluation of the full kernel, also if the tiles contain its even or odd part."""
        return self.evaluation(dtype)

    def shorter_evaluation(self) -> Evaluates | None:
        """The evaluation in float64 with half the terms of every series; None without series."""
        return None

    def of_points(self, images: ImageSource, data: str, n: int, p: int, store: ObjectStore) -> Self:
        """The same kernel for other points, with separate stores whose tiles are not computed yet.

        Args:
            images: the source of the points.
            data: hash of the points.
            n: number of training points.
            p: number of test points.
            store: for the tiles.
        """
        identity = dataclasses.replace(self.gram.identity, data=data, n_train=n, n_test=p)
        gram = GramStore.create_or_open(store, identity)
        return dataclasses.replace(self, gram=gram, images=images, stored=True)

    @property
    def layers(self) -> Spec | None:
        """Layers of a network whose entries can also be computed from distances; None for other kernels."""
        return None

    @property
    def identity(self) -> GramIdentity:
        """See `KernelSource`."""
        return self.gram.identity

    @property
    def where(self) -> str:
        """See `KernelSource`."""
        return self.gram.where

    def grid(self, block: Block) -> TileGrid:
        """See `KernelSource`."""
        return self.gram.grid(block)

    def matrix(self, kernel: Kernel, block: Block, rows: int, cols: int) -> TileMatrix:
        """See `KernelSource`."""
        if self.stored:
            return self.gram.matrix(kernel, block, rows=rows, cols=cols)
        identity, whole = self.identity, self.grid(block)
        return RecomputedTiles(
            self.images,
            self.evaluation(identity.dtype),
            kernel,
            block,
            whole,
            whole.leading(rows, cols),
            identity.stored_dtype,
            self.pairs_per_step,
        )

    def diagonal(self, kernel: Kernel, block: Block, rows: int, *, plain: bool = False) -> np.ndarray:
        """See `KernelSource`."""
        return self.gram.read_diagonal(block, kernel, rows=rows, plain=plain)

    def exact_rows(
        self, block: Block, indices: np.ndarray, n: int, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray]:
        """See `KernelSource`."""
        return recomputed_rows(self.images, self.evaluation("float64"), block, indices, n, executor, workers)

    def exact_columns(
        self, p: int, indices: np.ndarray, executor: Executor, workers: int
    ) -> dict[Kernel, np.ndarray] | None:
        """See `KernelSource`."""
        return recomputed_columns(self.images, self.evaluation("float64"), p, indices, executor, workers)

    def rounding_of_given(self, stored: np.ndarray, n: int) -> float:
        """See `KernelSource`."""
        del stored, n
        return 0.0

    @property
    def has_series(self) -> bool:
        """See `KernelSource`."""
        return self.shorter_evaluation() is not None

    def entry_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """See `KernelSource`."""
        kernels: tuple[Kernel, ...] = self.identity.kernels  # type: ignore[assignment]
        return evaluation_errors(
            self.images,
            self.evaluation("float64"),
            self.evaluation("float32"),
            self.shorter_evaluation(),
            rows,
            columns,
            {kernel: self.diagonal(kernel, "train", n) for kernel in kernels},
            executor,
            self.layers,
        )

    def series_errors(
        self, rows: np.ndarray, columns: np.ndarray, n: int, p: int, executor: Executor
    ) -> dict[Kernel, float] | None:
        """See `KernelSource`."""
        shorter = self.shorter_evaluation()
        if shorter is None:
            return None
        kernels: tuple[Kernel, ...] = self.identity.kernels  # type: ignore[assignment]
        scales: dict[Kernel, np.ndarray] = {
            kernel: np.sqrt(
                np.outer(self.diagonal(kernel, "test", p)[rows], self.diagonal(kernel, "train", n)[columns]).clip(
                    np.finfo(np.float64).tiny
                )
            )
            for kernel in kernels
        }
        return series_errors(self.images, self.evaluation("float64"), shorter, rows, columns, scales, executor)

    def test_gram(self, kernel: Kernel, p: int, executor: Executor) -> np.ndarray:
        """See `KernelSource`."""
        identity = self.identity
        return recomputed_test_gram(self.images, self.evaluation(identity.dtype), kernel, p, identity.edge, executor)

    def check_scale(self, n: int, solver: SolverConfig, executor: Executor) -> None:
        """See `KernelSource`."""
        check_computed_scale(self.images, self.plain_evaluation, self.identity, n, solver, executor)

    def describe(self) -> dict[str, Any]:
        """See `KernelSource`."""
        identity = self.identity
        found: dict[str, Any] = {"computed in": identity.dtype, "stored in": identity.stored_dtype}
        return found if self.stored else {**found, "tiles": "recomputed on every read"}

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """See `KernelSource`."""
        del block, rows
        raise ConfigError(
            "predict.initial=network needs kernel=empirical, because other kernels have no finite network: give the "
            "outputs as a file, or leave it out"
        )

    def find_changes(self) -> dict[str, list[str]]:
        """See `KernelSource`."""
        return {}

    def check_found(self, n: int, solver: SolverConfig) -> None:
        """See `KernelSource`."""
        del n, solver


@dataclass(frozen=True)
class NetworkSource(ComputedSource):
    """The source of both kernels of an infinitely wide network, or of their even or odd part under flips.

    Args:
        spec: canonical layers.
    """

    spec: tuple[Mapping[str, Any], ...]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        return (Output(self.gram, self.spec),)

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return Evaluation.of(self.spec, self.identity.symmetry, dtype)

    def plain_evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return Evaluation.of(self.spec, "none", dtype)

    def shorter_evaluation(self) -> Evaluates | None:
        """See `ComputedSource`."""
        if not any(True for _ in expanded_layers(self.spec)):
            return None
        return Evaluation.of(with_half_degrees(self.spec), self.identity.symmetry, "float64")

    def describe(self) -> dict[str, Any]:
        """See `KernelSource`."""
        return {"layers": list(self.spec), **super().describe()}

    @property
    def layers(self) -> Spec | None:
        """See `ComputedSource`."""
        return self.spec if self.identity.symmetry == "none" else None

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`."""
        return dominance(self.spec, trace, smallest)


@dataclass(frozen=True)
class FunctionSource(ComputedSource):
    """The source of the kernel of a user's function; the kernel is called `gram`.

    The name that the user gives identifies the function, so a changed function needs another name.

    Args:
        function: of two blocks of points. Executors with other processes pickle it, so it must be a module-level
            function for them.
    """

    function: BlockFunction

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        return (Output(self.gram, (), FunctionKernel(self.function)),)

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return FunctionKernel(self.function).evaluation(dtype)

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`."""
        return dominance((), trace, smallest)


@dataclass(frozen=True)
class EmpiricalSource(ComputedSource):
    """The source of both kernels of a finite network.

    Args:
        network: with its weights in the store, or a function.
    """

    network: StoredNetwork | HeldNetwork

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        return (Output(self.gram, (), self.network),)

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return self.network.evaluation(dtype)

    def dominance(self, trace: float, smallest: float) -> float:
        """See `KernelSource`."""
        layers = json.loads(self.network.layers)
        return dominance(layers if isinstance(layers, list) else (), trace, smallest)

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """See `KernelSource`."""
        return self._outputs_of(self.images, block, rows)

    def _outputs_of(self, points: ImageSource, block: Block, rows: int) -> np.ndarray:
        network = self.network.read()
        parts = []
        with precision_context("float64"):
            for start in range(0, rows, _AT_ONCE):
                images = points.read(block, start, min(start + _AT_ONCE, rows))
                parts.append(np.asarray(network.functions(images.astype(np.float64))))
        return np.concatenate(parts)

    def find_changes(self) -> dict[str, list[str]]:
        """See `KernelSource`; checks the weights in the store."""
        return {f"weights {self.network.digest}": self.network.find_damage()}


@dataclass(frozen=True)
class OutputPairSource(EmpiricalSource):
    """The source of the NTK of a finite network between all pairs of outputs. Its images are row numbers.

    Args:
        pairs: the network and its points.
    """

    pairs: OutputPairs

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `ComputedSource`."""
        return (Output(self.gram, (), self.pairs),)

    def evaluation(self, dtype: str) -> Evaluates:
        """See `ComputedSource`."""
        return self.pairs.evaluation(dtype)

    def network_outputs(self, block: Block, rows: int) -> np.ndarray:
        """See `KernelSource`; `rows` is a number of points."""
        return self._outputs_of(self.pairs.points, block, rows)
