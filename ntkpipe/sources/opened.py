"""Opens Gram matrices whose data is in the store: the kernels of the points in use, and the job that fills their tiles."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.data.given_features import GivenFeatures
from ntkpipe.data.given_gram import GivenGram
from ntkpipe.data.prepared import PreparedImages
from ntkpipe.finite.jax_function import FunctionNetwork
from ntkpipe.finite.kernel import NetworkKernel
from ntkpipe.gram.empirical import HeldNetwork, StoredNetwork
from ntkpipe.gram.missing import NOTHING, Missing, list_missing
from ntkpipe.gram.numbered import RowNumbers
from ntkpipe.gram.output_pairs import OutputPairs
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.progress import Progress
from ntkpipe.gram.stage import GramReport, compute_gram
from ntkpipe.gram.task import GramJob, Output, evaluate_tile, evaluation_of
from ntkpipe.kernels.combined import Combination
from ntkpipe.linalg.copies import Copies
from ntkpipe.planning.combined import combined_identity
from ntkpipe.planning.shapes import WantedStore
from ntkpipe.predictions.points import TestPoints
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.combined import CombinedSource
from ntkpipe.sources.computed import EmpiricalSource, NetworkSource, OutputPairSource
from ntkpipe.sources.features import FeatureSource
from ntkpipe.sources.given import PrecomputedSource
from ntkpipe.sources.source import KernelSource
from ntkpipe.storage.protocol import Lease, ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.identity import Symmetry
from ntkpipe.tiles.layout import Block
from ntkpipe.tiles.store import GramStore


@dataclass(frozen=True)
class OpenGram:
    """The kernels of the points in use, and the job that fills their tiles.

    Args:
        blocks: the kernels of the points in use.
        job: all stores to fill, the store of the kernel first; None if nothing is computed.
        tiles: plan of the tiles.
    """

    blocks: KernelBlocks
    job: GramJob | None
    tiles: GramPlan

    @property
    def source(self) -> KernelSource:
        """The source of the kernel of the solve."""
        return self.blocks.source

    @property
    def where(self) -> str:
        """The place of the kernel of the solve, for messages."""
        return self.source.where

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """All Gram stores to fill. Stores of networks of other depths, which share the evaluations, come last."""
        return () if self.job is None else tuple(output.gram for output in self.job.outputs)

    def missing(self, *, own: bool = False) -> Missing:
        """List the tiles and diagonals of the plan that lack a receipt; every store is listed once.

        Args:
            own: whether to list only the kernel of the solve and its parts.
        """
        if self.job is None:
            return NOTHING
        if not own:
            return list_missing(self.job, self.tiles)
        stores = [gram for part in self.blocks.parts for gram in part.stores]
        outputs = tuple(one for one in self.job.outputs if one.gram in stores)
        return list_missing(dataclasses.replace(self.job, outputs=outputs), self.tiles)

    def compute(
        self,
        executor: Executor,
        tell: Callable[[Progress], None] | None = None,
        *,
        holder: str = "ntkpipe",
        missing: Missing | None = None,
    ) -> GramReport:
        """Compute and store the missing tiles and diagonals.

        Args:
            executor: runs the tasks.
            tell: called with the progress, at most once a second.
            holder: description of this process for others that want to fill the same stores.
            missing: a recent result of `missing()`; None lists the stores.

        Raises:
            HeldError: if another process fills these stores.
            IncompleteError: at the end, with the tiles that could not be computed. All other tiles are stored.
            ResourceError: if the disk or a worker's memory is full.
        """
        if self.job is None:
            return GramReport(0, 0, 0.0)
        leases: list[Lease] = []

        def check(progress: Progress) -> None:
            for lease in leases:
                lease.check()  # raises if another run has taken over the lease and the work
            if tell is not None:
                tell(progress)

        with contextlib.ExitStack() as stack:
            leases += [stack.enter_context(gram.lease(holder)) for gram in self.stores]
            return compute_gram(executor, self.job, self.tiles, check, missing)

    def check_scale(self, solver: SolverConfig, executor: Executor) -> None:
        """See `KernelSource.check_scale`."""
        self.source.check_scale(self.blocks.n, solver, executor)

    def evaluate(self, gram: GramStore, block: Block, i: int, j: int) -> dict[str, np.ndarray]:
        """Recompute tile `(i, j)` of one of `stores`, for every kernel, in the stored dtype."""
        assert self.job is not None
        output = next(one for one in self.job.outputs if one.gram == gram)
        identity = gram.identity
        (made,) = evaluate_tile(
            self.job.images,
            evaluation_of((output,), identity.dtype),
            block,
            gram.grid(block),
            i,
            j,
            identity.stored_dtype,
            self.job.pairs_per_step,
        )
        return made

    def record(self) -> dict[str, Any]:
        """The place and the number of tiles of the kernel, JSON-ready, for a run's receipt."""
        if self.job is None:
            return {"store": self.where, "tiles": 0, "given": True}
        tiles = self.tiles.tiles if self.tiles.stored else 0
        return {"store": self.where, "stores": [gram.where for gram in self.stores], "tiles": tiles}

    def is_recorded_as(self, where: str) -> bool:
        """Whether the `store` of a receipt is this kernel's store, also after a move. A given kernel may be in any file."""
        # The last part of the path is a hash of everything that determines the tiles.
        return self.job is None or where.rstrip("/").rpartition("/")[2] == self.where.rpartition("/")[2]

    def describe(self) -> str:
        """A description of the complete kernel, for the user."""
        if self.job is None:
            return "given"
        if not self.tiles.stored:
            return f"{self.tiles.tiles:,} tiles, recomputed on every read"
        return f"all {self.tiles.tiles:,} tiles are stored"

    def describe_progress(self) -> Iterator[str]:
        """Lines that say how many tiles are stored, one per block."""
        if self.job is None:
            yield f"the kernel is given: {self.where}"
        elif not self.tiles.stored:
            yield f"tiles are recomputed on every read; diagonals are stored in {self.where}"
        else:
            left = self.missing().tiles
            for block in self.tiles.blocks:
                done = block.tiles - len(left[block.block])
                yield f"{block.block}: {done:,} of {block.tiles:,} tiles are stored in {self.where}"


@dataclass(frozen=True)
class InUse:
    """The leading points that a run uses, and how it uses them.

    Args:
        n: see `KernelBlocks`.
        p: see `KernelBlocks`.
        copies: see `KernelBlocks`.
        images_per_row: see `KernelBlocks`.
        rows_of_point: see `KernelBlocks`.
        workers: see `KernelBlocks`.
        sample: see `KernelBlocks`.
        points: see `KernelBlocks`.
    """

    n: int
    p: int
    copies: Copies
    images_per_row: int = 1
    rows_of_point: int = 1
    workers: int = 1
    sample: int | None = None
    points: TestPoints | None = field(default=None, compare=False)

    def blocks(self, parts: Sequence[Any], tiles: GramPlan, executor: Executor | None = None) -> KernelBlocks:
        """The kernels of these points from the given sources."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return KernelBlocks(tuple(parts), tiles=tiles, executor=executor or SerialExecutor(), **known)


def _opening(reading: bool) -> Callable[..., GramStore]:
    """How a Gram store is opened; nothing may be written if `reading`."""
    return GramStore.at if reading else GramStore.create_or_open


def open_network(
    store: ObjectStore,
    images: PreparedImages,
    wanted: Sequence[WantedStore],
    tiles: GramPlan,
    use: InUse,
    *,
    name: str | None = None,
    reading: bool = False,
) -> OpenGram:
    """Open the Gram matrices of a network.

    Args:
        store: of the tiles.
        images: prepared images.
        wanted: the needed Gram stores, the store of the kernel first.
        tiles: plan of the tiles.
        use: the points in use.
        name: of the first Gram store; None names it by its identity.
        reading: whether nothing may be written, not even the time of use of a store.
    """
    found = _opening(reading)
    grams = [found(store, one.identity, name=None if k else name) for k, one in enumerate(wanted)]
    outputs = tuple(Output(gram, tuple(one.spec)) for gram, one in zip(grams, wanted, strict=True))
    own = grams[0].identity.architecture
    parts = [
        NetworkSource(one.gram, images, tiles.stored, tiles.pairs_per_step, one.spec)
        for one in outputs
        if one.gram.identity.architecture == own
    ]
    return OpenGram(use.blocks(parts, tiles), GramJob(outputs, images, tiles.pairs_per_step), tiles)


def open_combined(
    store: ObjectStore,
    images: PreparedImages,
    parts: Combination,
    wanted: Sequence[WantedStore],
    tiles: GramPlan,
    use: InUse,
    *,
    reading: bool = False,
) -> OpenGram:
    """Open the Gram matrices of a sum or product of networks' kernels.

    Args:
        store: of the tiles of the parts.
        images: prepared images.
        parts: a combination of architectures.
        wanted: the Gram stores of the parts.
        tiles: plan of the tiles.
        use: the points in use.
        reading: see `open_network`.
    """
    found = _opening(reading)
    sources: dict[Symmetry, dict[str, NetworkSource]] = {}
    for one in wanted:
        gram = found(store, one.identity)
        made = NetworkSource(gram, images, tiles.stored, tiles.pairs_per_step, tuple(one.spec))
        sources.setdefault(gram.identity.symmetry, {})[gram.identity.architecture] = made
    combined = []
    for of in sources.values():
        first = next(iter(of.values())).gram
        made = parts.map(lambda one, of=of: of[one.fingerprint])
        identity = combined_identity(parts, first.identity)
        combined.append(CombinedSource(first, images, tiles.stored, tiles.pairs_per_step, made, identity))
    outputs = tuple(output for source in combined for output in source.outputs)
    return OpenGram(use.blocks(combined, tiles), GramJob(outputs, images, tiles.pairs_per_step), tiles)


def open_empirical(
    store: ObjectStore,
    images: PreparedImages,
    kernel: NetworkKernel | FunctionNetwork,
    wanted: WantedStore,
    tiles: GramPlan,
    use: InUse,
    *,
    name: str | None = None,
    reading: bool = False,
) -> OpenGram:
    """Open the Gram matrices of a finite network and store its weights. Other arguments are those of `open_network`."""
    if isinstance(kernel, FunctionNetwork):
        network = HeldNetwork(kernel.digest, kernel)
    else:
        network = StoredNetwork.of(kernel, store.url)
        if not reading:
            network.write(kernel)
    gram = _opening(reading)(store, wanted.identity, name=name)
    if kernel.outputs == "full":
        assert isinstance(network, StoredNetwork)  # functions have one kernel for all outputs
        pairs = OutputPairs(network, images, kernel.rows_of_point)
        source = OutputPairSource(gram, RowNumbers(), tiles.stored, None, network, pairs)
    else:
        source = EmpiricalSource(gram, images, tiles.stored, None, network)
    return OpenGram(use.blocks([source], tiles), GramJob(source.outputs, source.images), tiles)


def open_features(
    store: ObjectStore,
    features: GivenFeatures,
    wanted: WantedStore,
    tiles: GramPlan,
    use: InUse,
    *,
    name: str | None = None,
    reading: bool = False,
) -> OpenGram:
    """Open the Gram matrix of checked features. Other arguments are those of `open_network`."""
    gram = _opening(reading)(store, wanted.identity, name=name)
    source = FeatureSource(gram, RowNumbers(), tiles.stored, None, features)
    return OpenGram(use.blocks([source], tiles), GramJob(source.outputs, source.images), tiles)


def open_given(gram: GivenGram, tiles: GramPlan, use: InUse) -> OpenGram:
    """Open checked given matrices."""
    return OpenGram(use.blocks([PrecomputedSource(gram)], tiles), None, tiles)
