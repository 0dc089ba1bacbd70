"""`Gram`: plans and computes the Gram matrices of a kernel and a data set."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ntkpipe.config import (
    ClusterConfig,
    DataConfig,
    GridConfig,
    KernelConfig,
    PredictConfig,
    RunConfig,
    SolverConfig,
    StoreConfig,
)
from ntkpipe.data.duplicates import find_duplicates
from ntkpipe.data.given_features import check_features
from ntkpipe.data.given_gram import check_gram
from ntkpipe.data.in_memory import features_from_arrays, given_from_arrays
from ntkpipe.data.points import Dataset
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.errors import ConfigError
from ntkpipe.events.event import Event, Kind, stage
from ntkpipe.events.lines import Progress, listener_of
from ntkpipe.finite.kernel import EmpiricalKernel
from ntkpipe.gram.function import BlockFunction
from ntkpipe.gram.progress import tell_tiles
from ntkpipe.gram.stage import GramReport
from ntkpipe.gram.task import GramJob
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.combined import Combination
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.combined import for_data
from ntkpipe.planning.plan import RunPlan
from ntkpipe.planning.shapes import Shapes
from ntkpipe.planning.surroundings import (
    plan_combined_here,
    plan_empirical_here,
    plan_features_here,
    plan_given_here,
    plan_here,
)
from ntkpipe.sources.blocks import BlockTestKernel, BlockTrainKernel, KernelBlocks
from ntkpipe.sources.computed import FunctionSource
from ntkpipe.sources.finding import points_from_targets, points_of
from ntkpipe.sources.opened import (
    InUse,
    OpenGram,
    open_combined,
    open_empirical,
    open_features,
    open_given,
    open_network,
)
from ntkpipe.sources.shapes import shapes_of, stored_shapes
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.identity import FUNCTION
from ntkpipe.tiles.store import GramStore


class Gram:
    """The Gram matrices of a kernel and a data set. Nothing is computed before `compute`.

    Args:
        kernel: an `Architecture`; a `KernelSum` or `KernelProduct` of architectures; an `EmpiricalKernel` of a finite
            network; or a function `k(x1, x2)` of two blocks of points that returns (n1, n2). Blocks have shape
            (n, h, w, c), or (n, d) for tables.
        data: training and test points.
        name: of a kernel function. It identifies the stored tiles, so a changed function needs another name.
        store: folder or URL for images, tiles and solver states; runs of the command line can share it. None is the
            memory of this process.
        dtype: of the computation, `float32` or `float64`.
        store_dtype: of the stored tiles; None is `dtype`.
        tiles: `stored`, `recompute` (tiles are computed on every read, and only diagonals are stored) or `auto`.
        edge: rows of a tile; None chooses the number.
        augment: `hflip` trains exactly on every image and its mirror image; only for networks.
        odd_part: with `augment="hflip"`, whether to compute also the odd part of the kernel, which variances need.
        executor: computes tiles and products, unless `compute` gets another one; None is this process. An executor with
            other processes needs a store that they can access, and a kernel function at the top level of a module.

    Raises:
        ConfigError: if a setting is invalid.

    Examples:
        >>> gram = Gram(Architecture.from_spec(fcn(depth=1)), load_dataset("digits", train_size=100))  # doctest: +SKIP
        >>> gram.compute()  # doctest: +SKIP
        >>> gram.train("ntk").shape  # doctest: +SKIP
        (100, 100)
    """

    def __init__(
        self,
        kernel: Architecture | Combination | EmpiricalKernel | BlockFunction,
        data: Dataset,
        *,
        name: str | None = None,
        store: str | None = None,
        dtype: str = "float32",
        store_dtype: str | None = None,
        tiles: str = "stored",
        edge: int | None = None,
        augment: str = "none",
        odd_part: bool = False,
        executor: Executor | None = None,
    ) -> None:
        function = None if isinstance(kernel, _OURS) else kernel
        if isinstance(kernel, EmpiricalKernel) and kernel.outputs == "full":
            raise ConfigError(
                "a Gram does not support outputs='full': use outputs='trace' or 'pseudo', ntkpipe run "
                "kernel.outputs=full, or finite.empirical_kernel for a kernel in memory"
            )
        if isinstance(kernel, Combination):
            for part in kernel.leaves():
                if not isinstance(part, Architecture):
                    raise ConfigError(
                        f"the parts of a {kernel.kind} of kernels must be architectures, such as nk.zoo.fcn(), but "
                        f"one is {part!r}"
                    )
        if function is not None and not callable(function):
            raise ConfigError(
                "a kernel must be an Architecture, such as nk.zoo.fcn(), an EmpiricalKernel, or a function of two "
                "blocks of points"
            )
        if function is not None and not name:
            raise ConfigError("a kernel function needs a name to identify its tiles: nk.Gram(function, data, name=...)")
        if function is not None and augment != "none":
            raise ConfigError("augment=hflip is only for networks: a function can pair flipped images itself")
        self._kernel, self._data, self._name = kernel, data, name
        self._executor = executor or SerialExecutor()
        self._planned: RunPlan | None = None
        self.config = RunConfig(
            data=data.config,
            kernel=KernelConfig(dtype=dtype),
            grid=GridConfig(edge=edge),
            store=StoreConfig(url=store or f"memory://gram-{uuid.uuid4().hex}", dtype=store_dtype, gram=tiles),
            solver=SolverConfig(kind="krylov"),
            predict=PredictConfig(covariance="diagonal" if odd_part else "none"),
            cluster=ClusterConfig(kind="serial", workers=self._executor.workers),
            augment=augment,
        )

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        test: Any,
        test_diagonal: Any = None,
        *,
        y_test: Any = None,
        class_names: Sequence[str] | None = None,
        edge: int | None = None,
        executor: Executor | None = None,
    ) -> Gram:
        """A Gram of matrices in memory that you computed; the kernel is called `gram`. For files use `kernel=gram`.

        Args:
            train: the train-train kernel (n, n), float32 or float64. Only the lower triangle is used.
            test: the test-train kernel (p, n).
            test_diagonal: `k(x, x)` of the test points, (p,). Variances need it; without it error bounds are estimates.
            y_test: labels (p,) or float targets (p, c), for metrics of predictions; None leaves the metrics out.
            class_names: of the labels.
            edge: rows of a tile.
            executor: see `Gram`.

        Raises:
            DataError: if the arrays are not a valid kernel.
        """
        checked = check_gram(given_from_arrays(train, test, test_diagonal, edge))
        n, p = checked.train.shape[0], checked.test.shape[0]
        shapes = Shapes("", n, p, n, p, (0, 0, 0), 1)
        made = cls.__new__(cls)
        made._executor = executor or SerialExecutor()
        made.config = RunConfig(solver=SolverConfig(kind="krylov"), cluster=ClusterConfig(kind="local"))
        made._planned = plan_given_here(
            made.config, shapes, open_store("memory://given"), dtype=checked.dtype, edge=checked.edge
        )
        use = InUse(n, p, Copies.of((), n), points=points_from_targets(y_test, class_names, p))
        made.__dict__["opened"] = open_given(checked, made._planned.tiles, use)
        return made

    @classmethod
    def from_features(
        cls,
        train: Any,
        test: Any,
        *,
        scale: float = 1.0,
        y_test: Any = None,
        class_names: Sequence[str] | None = None,
        store: str | None = None,
        dtype: str = "float32",
        store_dtype: str | None = None,
        tiles: str = "stored",
        edge: int | None = None,
        executor: Executor | None = None,
    ) -> Gram:
        """A Gram of the products `J J^T / scale` of features, such as gradients of a network, embeddings or random features.

        The kernel is called `gram`. Its rank is at most the number P of features.

        Args:
            train: features of the training points, (n, P), float32 or float64: an array, or the path of a `.npy`, `.npz`
                or Zarr array, which is read in blocks and may be larger than the memory.
            test: features of the test points, (p, P).
            scale: by which the products are divided.
            y_test: see `from_arrays`.
            class_names: see `from_arrays`.
            store: see `Gram`.
            dtype: see `Gram`.
            store_dtype: see `Gram`.
            tiles: see `Gram`.
            edge: see `Gram`.
            executor: see `Gram`.

        Raises:
            DataError: if train and test differ in width, a value is not finite, or all features of a point are zero.

        Example:
            >>> gram = Gram.from_features(np.eye(3), np.ones((1, 3)))
            >>> gram.compute()
            >>> gram.test().to_numpy()
            array([[1., 1., 1.]], dtype=float32)
        """
        given = check_features(features_from_arrays(train, test, scale))
        n, p = given.train.shape[0], given.test.shape[0]
        shapes = Shapes(given.content, n, p, n, p, (0, 0, 0), 1, prepared=True)
        made = cls.__new__(cls)
        made._executor = executor or SerialExecutor()
        made.config = RunConfig(
            data=DataConfig(kind="labels", path="labels"),
            kernel=KernelConfig(
                kind="features", train=given.train.path, test=given.test.path, scale=scale, dtype=dtype
            ),
            grid=GridConfig(edge=edge),
            store=StoreConfig(url=store or f"memory://gram-{uuid.uuid4().hex}", dtype=store_dtype, gram=tiles),
            solver=SolverConfig(kind="krylov"),
            cluster=ClusterConfig(kind="serial", workers=made._executor.workers),
        )
        made._planned = plan_features_here(made.config, shapes, made.store, given)
        use = InUse(
            n, p, Copies.of((), n), workers=made._executor.workers, points=points_from_targets(y_test, class_names, p)
        )
        made.__dict__["opened"] = open_features(made.store, given, made._planned.stores[0], made._planned.tiles, use)
        return made

    @property
    def store(self) -> ObjectStore:
        """The store of images, tiles and solver states."""
        return open_store(self.config.store.url)

    @cached_property
    def opened(self) -> OpenGram:
        """The kernels and their stores. The first access writes the images to the store."""
        prepared = self._data.prepared(self.config.kernel.dtype)
        images = write_prepared(prepared, self.store)
        shapes = dataclasses.replace(stored_shapes(self.config.data, images), layers=self._layers)
        use = InUse(
            shapes.used_train,
            shapes.used_test,
            Copies.of(find_duplicates(prepared.x_train), shapes.used_train),
            images_per_row=self.config.copies,
            workers=self._executor.workers,
            points=points_of(images, shapes.used_test),
        )
        if isinstance(self._kernel, Architecture):
            self._planned = plan_here(self.config, shapes, self.store, measure=True)
            return open_network(self.store, images, self._planned.stores, self._planned.tiles, use)
        if isinstance(self._kernel, Combination):
            parts = for_data(self._kernel, shapes, self.config.kernel.dtype)
            self._planned = plan_combined_here(self.config, shapes, self.store, parts)
            return open_combined(self.store, images, parts, self._planned.stores, self._planned.tiles, use)
        if isinstance(self._kernel, EmpiricalKernel):
            kernel = self._kernel.at(shapes.image)
            self._planned = plan_empirical_here(self.config, shapes, self.store, kernel)
            return open_empirical(self.store, images, kernel, self._planned.stores[0], self._planned.tiles, use)
        return self._open_function(images, shapes, use)

    def plan(self) -> RunPlan:
        """The plan: tiles, flops, bytes, memory and projected time of the kernel and of a solve. Computes nothing."""
        if self._planned is not None:
            return self._planned
        shapes = dataclasses.replace(shapes_of(self._data.prepared(self.config.kernel.dtype)), layers=self._layers)
        if isinstance(self._kernel, Architecture):
            return plan_here(self.config, shapes, self.store)
        if isinstance(self._kernel, Combination):
            parts = for_data(self._kernel, shapes, self.config.kernel.dtype)
            return plan_combined_here(self.config, shapes, self.store, parts)
        if isinstance(self._kernel, EmpiricalKernel):
            return plan_empirical_here(self.config, shapes, self.store, self._kernel.at(shapes.image))
        return self._plan_function(shapes)

    def compute(self, executor: Executor | None = None, *, progress: Progress = None) -> GramReport:
        """Compute the missing tiles. After an interruption, the same call continues the work.

        Args:
            executor: computes the tiles; None is the executor of the Gram.
            progress: a function of one `Event`, or whether to show a line of progress; None shows it in a terminal or a
                notebook.

        Raises:
            ConfigError: if the dtype cannot represent the kernel.
            DataError: if values are not finite.
            IncompleteError: with the tiles that could not be computed. All other tiles are stored.
            ResourceError: if the disk or a worker's memory is full.
        """
        chosen, emit, opened = executor or self._executor, listener_of(progress), self.opened
        opened.check_scale(self.config.solver, chosen)
        with stage(emit, "gram", Kind.TILES_DONE) as tell:
            report = opened.compute(chosen, tell_tiles(emit, tell) if opened.tiles.stored else None)
        emit(Event(Kind.STAGE_DONE, "gram", report.describe(), dataclasses.asdict(report), report.seconds))
        return report

    def train(self, name: str | None = None) -> BlockTrainKernel:
        """The train-train kernel (n, n): `K @ v`, `K.rows(i)`, `K.diagonal()`, `K.to_numpy()`, `K.to_xarray()`.

        Args:
            name: `ntk`, `nngp` or `ntkgp` (the NTK as the covariance of a Gaussian process) for a network; `gram` for a
                function or a matrix; None is the first of these.

        Raises:
            ConfigError: if there is no kernel of this name.
            IncompleteError: on reading, if tiles are not computed yet.
        """
        return self._blocks.train(name or self._blocks.names[0])

    def test(self, name: str | None = None) -> BlockTestKernel:
        """The test-train kernel (p, n); see `train`."""
        return self._blocks.test(name or self._blocks.names[0])

    @property
    def _blocks(self) -> KernelBlocks:
        return dataclasses.replace(self.opened.blocks, executor=self._executor, _known=self.opened.blocks._known)

    @property
    def _layers(self) -> list[dict[str, Any]] | None:
        return self._kernel.to_spec() if isinstance(self._kernel, Architecture) else None

    def _open_function(self, images: PreparedImages, shapes: Shapes, use: InUse) -> OpenGram:
        assert not isinstance(self._kernel, _OURS)
        config = self.config
        self._planned = self._plan_function(shapes)
        tiles = self._planned.tiles
        identity = shapes.identity(config, architecture=str(self._name), formula_version=FUNCTION, edge=tiles.edge)
        gram = GramStore.create_or_open(self.store, identity)
        source = FunctionSource(gram, images, tiles.stored, None, self._kernel)
        return OpenGram(use.blocks([source], tiles), GramJob(source.outputs, images), tiles)

    def _plan_function(self, shapes: Shapes) -> RunPlan:
        """The plan for a kernel function, without projected time, because the cost of a call is unknown."""
        config, edge = self.config, self.config.grid.edge or _edge(shapes.n_train)
        made = plan_given_here(config, shapes, self.store, dtype=config.kernel.dtype, edge=edge)
        kept = {"store_dtype": config.store_dtype, "stored": config.store.gram != "recompute"}
        return dataclasses.replace(made, tiles=dataclasses.replace(made.tiles, **kept))

    def __repr__(self) -> str:
        if "_kernel" not in self.__dict__:
            what = "features" if self.config.kernel.kind == "features" else "given"
            return f"Gram({self.opened.blocks.n:,} training and {self.opened.blocks.p:,} test points, {what})"
        kernel = self._kernel if isinstance(self._kernel, _OURS) else self._name
        return f"Gram({kernel!r}, {self._data!r}, {self.config.store.url})"


# Kernels that need no name, because their content identifies them.
_OURS = (Architecture, Combination, EmpiricalKernel)
# Largest edge of the tiles of a function, whose cost is unknown.
_FUNCTION_EDGE = 512


def _edge(n: int) -> int:
    """Rows of a tile of a function, such that there are at least three rows of tiles if possible."""
    edge = _FUNCTION_EDGE
    while edge > 64 and -(-n // edge) < 3:
        edge //= 2
    return edge
