"""The Gram matrices of a kernel and a data set: planned, computed, and handed to solvers and predictions."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

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
from ntkpipe.data.labels import encode_labels
from ntkpipe.data.points import Dataset
from ntkpipe.data.prepared import PreparedImages, write_prepared
from ntkpipe.errors import ConfigError, DataError
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
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.blocks import BlockTestKernel, BlockTrainKernel, KernelBlocks
from ntkpipe.sources.computed import FunctionSource
from ntkpipe.sources.finding import points_of
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
from ntkpipe.tiles.identity import FUNCTION, GramIdentity
from ntkpipe.tiles.store import GramStore


class Gram:
    """The Gram matrices of a kernel and a data set. Nothing is computed before `compute`.

    Args:
        kernel: an `Architecture`; a `KernelSum` or `KernelProduct` of some; an `EmpiricalKernel` (of one finite network); or a function
            `k(x1, x2)` of two blocks of points to `(n1, n2)`, of which the data set's points are handed over `(n, h, w, c)`, those of
            tables `(n, d)`.
        data: training and test points.
        name: of a function: its tiles are known by it, so a function that has changed needs another.
        store: folder or URL where images, tiles and what solvers keep lie; runs of the command line share it. None is the memory
            of this process.
        dtype: of the computation, `float32` or `float64`.
        store_dtype: of the stored tiles; None is `dtype`.
        tiles: `stored`, `recompute` (only diagonals are stored, and tiles are computed whenever they are read) or `auto`.
        edge: rows of a tile; None chooses.
        augment: `hflip` trains on every image and its mirror image, exactly; of networks alone.
        odd_part: with `augment="hflip"`: compute also what variances need.
        executor: where tiles are computed and products made, unless `compute` is told otherwise; None is this process.
            Executors that run in other processes need a store that these see, and functions that can be pickled: defined at the top
            of a module.

    Raises:
        ConfigError: on an impossible setting.

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
                "outputs='full' has a row for every output of every point: runs take it (ntkpipe run kernel.outputs=full), and "
                "finite.empirical_kernel gives it in memory. A Gram takes outputs='trace' or 'pseudo'"
            )
        if isinstance(kernel, Combination):
            for part in kernel.leaves():
                if not isinstance(part, Architecture):
                    raise ConfigError(
                        f"a {kernel.kind} of kernels is made of architectures, such as nk.zoo.fcn(), and one part is {part!r}"
                    )
        if function is not None and not callable(function):
            raise ConfigError(
                "a kernel is an Architecture, such as nk.zoo.fcn(), an EmpiricalKernel, or a function of two blocks of points"
            )
        if function is not None and not name:
            raise ConfigError(
                "a kernel function needs a name: its tiles are known by it. nk.Gram(function, data, name=...)"
            )
        if function is not None and augment != "none":
            raise ConfigError("augment=hflip is for networks: a function can pair flipped images itself")
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
        """Matrices that you computed, in memory; the kernel is called `gram`. Files are what `kernel=gram` is for.

        Args:
            train: the kernel among training points, (n, n), float32 or float64. Its lower triangle is the matrix.
            test: test points by training points, (p, n).
            test_diagonal: `k(x, x)` of the test points, (p,); error bounds are estimates without it, and variances need it.
            y_test: labels (p,) or targets (p, c), for metrics of predictions; None leaves these out.
            class_names: of the labels.
            edge: rows of a tile.
            executor: see `Gram`.

        Raises:
            DataError: if they are no kernel.
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
        use = InUse(n, p, Copies.of((), n), points=_points(y_test, class_names, p))
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
        """Products `J J^T / scale` of features: gradients of a network made elsewhere, embeddings, random features.

        The kernel is called `gram`. Its rank is the number of features at most.

        Args:
            train: features of the training points, (n, P), float32 or float64; an array, or the path of a `.npy`, an `.npz` or a
                Zarr array, which is read in blocks and may be larger than the memory.
            test: of the test points, (p, P).
            scale: that products are divided by.
            y_test: see `from_arrays`.
            class_names: likewise.
            store: see `Gram`.
            dtype: likewise.
            store_dtype: likewise.
            tiles: likewise.
            edge: likewise.
            executor: likewise.

        Raises:
            DataError: if they are no features: of other widths, not finite, or all zero for a point.

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
        use = InUse(n, p, Copies.of((), n), workers=made._executor.workers, points=_points(y_test, class_names, p))
        made.__dict__["opened"] = open_features(made.store, given, made._planned.stores[0], made._planned.tiles, use)
        return made

    @property
    def store(self) -> ObjectStore:
        """Where images, tiles and what solvers keep lie."""
        return open_store(self.config.store.url)

    @cached_property
    def opened(self) -> OpenGram:
        """The kernels and their stores; the images are written to the store when this is first asked for."""
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
        """What will be computed, in which tiles, and what that and solving with it take; computes nothing."""
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
        """Compute the tiles that are missing; one that is stopped goes on where it was, by the same call.

        Args:
            executor: where; None is that of the Gram.
            progress: a function of one `Event`, or whether a line of progress is shown; None shows it in a terminal or a notebook.

        Raises:
            ConfigError, DataError: if a dtype cannot hold the kernel, or its values are not finite.
            IncompleteError: naming the tiles that could not be computed; all others are stored then.
            ResourceError: if the disk or a worker's memory is full.
        """
        chosen, emit, opened = executor or self._executor, listener_of(progress), self.opened
        opened.check_scale(self.config.solver, chosen)
        with stage(emit, "gram", Kind.TILES_DONE) as tell:
            report = opened.compute(chosen, tell_tiles(emit, tell) if opened.tiles.stored else None)
        emit(Event(Kind.STAGE_DONE, "gram", report.describe(), dataclasses.asdict(report), report.seconds))
        return report

    def train(self, name: str | None = None) -> BlockTrainKernel:
        """The kernel among the training points: `K @ v`, `K.rows(i)`, `K.diagonal()`, `K.to_numpy()`, `K.to_xarray()`.

        Args:
            name: `ntk`, `nngp` or `ntkgp` (the NTK as a covariance) of a network; `gram` of a function or matrix; None is the first.

        Raises:
            ConfigError: for another name.
            IncompleteError: when it is read, if tiles are not computed yet.
        """
        return self._blocks.train(name or self._blocks.names[0])

    def test(self, name: str | None = None) -> BlockTestKernel:
        """The kernel between the test and the training points; see `train`."""
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
        identity = GramIdentity(
            data=shapes.fingerprint,
            architecture=str(self._name),
            formula_version=FUNCTION,
            dtype=config.kernel.dtype,
            stored_dtype=config.store_dtype,
            edge=tiles.edge,
            n_train=shapes.n_train,
            n_test=shapes.n_test,
        )
        gram = GramStore.create_or_open(self.store, identity)
        source = FunctionSource(gram, images, tiles.stored, None, self._kernel)
        return OpenGram(use.blocks([source], tiles), GramJob(source.outputs, images), tiles)

    def _plan_function(self, shapes: Shapes) -> RunPlan:
        """Of what a call of the function takes nothing is known."""
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


# Kernels whose identity is theirs, and needs no name.
_OURS = (Architecture, Combination, EmpiricalKernel)
# Tiles of a function: of what a call takes nothing is known.
_FUNCTION_EDGE = 512


def _edge(n: int) -> int:
    edge = _FUNCTION_EDGE
    while edge > 64 and -(-n // edge) < 3:
        edge //= 2
    return edge


def _points(y: Any, class_names: Sequence[str] | None, p: int) -> TestPoints | None:
    """Of labels or targets that were given beside matrices."""
    if y is None:
        return None
    y = np.asarray(y)
    if len(y) != p:
        raise DataError(f"y_test has {len(y)} entries for {p} test points")
    index = np.arange(p)
    if y.dtype.kind == "f":
        target = y.reshape(p, -1).astype(np.float64)
        return TestPoints(index, tuple(class_names or (f"target_{k}" for k in range(target.shape[1]))), None, target)
    names = tuple(class_names or map(str, range(int(y.max()) + 1)))
    return TestPoints(index, names, y.astype(np.int64), encode_labels(y, len(names), "centered"))
