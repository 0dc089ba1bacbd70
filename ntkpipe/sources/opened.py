"""Gram matrices whose data is in the store: the kernels among the points in use, and whatever fills their tiles."""

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
    """What a Gram matrix is once its data is in the store: the kernels, and what fills their tiles.

    Args:
        blocks: the kernels among the points in use.
        job: every store that is filled, that of the kernel first; None where nothing is to be computed.
        tiles: plan of them.
    """

    blocks: KernelBlocks
    job: GramJob | None
    tiles: GramPlan

    @property
    def source(self) -> KernelSource:
        """Of the kernel that is solved with."""
        return self.blocks.source

    @property
    def where(self) -> str:
        """Of the kernel that is solved with, for messages."""
        return self.source.where

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """Every Gram store that is filled: those of networks of other depths, which share the evaluations, come last."""
        return () if self.job is None else tuple(output.gram for output in self.job.outputs)

    def missing(self, *, own: bool = False) -> Missing:
        """What the plan wants and has no receipt, by one listing of every store.

        Args:
            own: only of the kernel that is solved with, and its parts.
        """
        if self.job is None:
            return NOTHING
        if not own:
            return list_missing(self.job, self.tiles)
        stores = [gram for part in self.blocks.parts for gram in part.stores]
        outputs = tuple(one for one in self.job.outputs if one.gram in stores)
        return list_missing(dataclasses.replace(self.job, outputs=outputs), self.tiles)

    def is_complete(self) -> bool:
        """Whether every tile and diagonal of the plan has its receipt."""
        return not self.missing()

    def compute(
        self,
        executor: Executor,
        tell: Callable[[Progress], None] | None = None,
        *,
        holder: str = "ntkpipe",
        missing: Missing | None = None,
    ) -> GramReport:
        """Compute what is missing, and store it.

        Args:
            executor: where tasks run.
            tell: called with the progress, at most once a second.
            holder: told to whoever wants to fill the same stores meanwhile.
            missing: as `missing()` gave it a moment ago; None lists it now.

        Raises:
            HeldError: if another process is at it.
            IncompleteError: at the end, naming the tiles that could not be computed; all others are stored then.
            ResourceError: if the disk or a worker's memory is full.
        """
        if self.job is None:
            return GramReport(0, 0, 0.0)
        leases: list[Lease] = []

        def check(progress: Progress) -> None:
            for lease in leases:
                lease.check()  # another run has taken over: it does the work now
            if tell is not None:
                tell(progress)

        with contextlib.ExitStack() as stack:
            leases += [stack.enter_context(gram.lease(holder)) for gram in self.stores]
            return compute_gram(executor, self.job, self.tiles, check, missing)

    def check_scale(self, solver: SolverConfig, executor: Executor) -> None:
        """See `KernelSource.check_scale`."""
        self.source.check_scale(self.blocks.n, solver, executor)

    def evaluate(self, gram: GramStore, block: Block, i: int, j: int) -> dict[str, np.ndarray]:
        """Tile `(i, j)` of one of `stores`, computed anew: every kernel's, in the stored dtype."""
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
        """Where the kernel lies, and how many tiles of it: JSON-ready, for a run's receipt."""
        if self.job is None:
            return {"store": self.where, "tiles": 0, "given": True}
        tiles = self.tiles.tiles if self.tiles.stored else 0
        return {"store": self.where, "stores": [gram.where for gram in self.stores], "tiles": tiles}

    def is_recorded_as(self, where: str) -> bool:
        """Whether a receipt's `store` is this kernel's, wherever it has moved. Any file may hold a given one: its content tells."""
        # The name of a store is made from all that determines its tiles.
        return self.job is None or where.rstrip("/").rpartition("/")[2] == self.where.rpartition("/")[2]

    def describe(self) -> str:
        """What there is once nothing is missing, for people."""
        if self.job is None:
            return "given"
        if not self.tiles.stored:
            return f"{self.tiles.tiles:,} tiles, computed when they are read"
        return f"all {self.tiles.tiles:,} tiles are stored"

    def describe_progress(self) -> Iterator[str]:
        """How much there is by now, a line per block."""
        if self.job is None:
            yield f"the kernel is given: {self.where}"
        elif not self.tiles.stored:
            yield f"tiles are computed when they are read; diagonals are stored in {self.where}"
        else:
            left = self.missing().tiles
            for block in self.tiles.blocks:
                done = block.tiles - len(left[block.block])
                yield f"{block.block}: {done:,} of {block.tiles:,} tiles are stored in {self.where}"


@dataclass(frozen=True)
class InUse:
    """Which leading points are used, and how.

    Args:
        n: training points.
        p: test points.
        copies: which of the training points equal which.
        images_per_row: see `KernelBlocks`.
        rows_of_point: likewise.
        workers: likewise.
        sample: likewise.
        points: likewise.
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
        """Of these sources."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return KernelBlocks(tuple(parts), tiles=tiles, executor=executor or SerialExecutor(), **known)


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
    """The Gram matrices of a network.

    Args:
        store: where tiles lie.
        images: that they are computed from.
        wanted: stores that are needed, that of the kernel first.
        tiles: plan of them.
        use: which points.
        name: of the first store; None names it by its identity.
        reading: write nothing, not even that a store was used.
    """
    found = GramStore.at if reading else GramStore.create_or_open
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
    """The Gram matrices of a sum or product of networks' kernels.

    Args:
        store: where the tiles of the parts lie.
        images: that they are computed from.
        parts: architectures.
        wanted: stores of them.
        tiles: plan of them.
        use: which points.
        reading: see `open_network`.
    """
    found = GramStore.at if reading else GramStore.create_or_open
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
    """The Gram matrices of a finite network, whose weights are written to the store; arguments as of `open_network`."""
    if isinstance(kernel, FunctionNetwork):
        network = HeldNetwork(kernel.digest, kernel)
    else:
        network = StoredNetwork.of(kernel, store.url)
        if not reading:
            network.write(kernel)
    gram = (GramStore.at if reading else GramStore.create_or_open)(store, wanted.identity, name=name)
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
    """The Gram matrix of given features, checked; other arguments as of `open_network`."""
    gram = (GramStore.at if reading else GramStore.create_or_open)(store, wanted.identity, name=name)
    source = FeatureSource(gram, RowNumbers(), tiles.stored, None, features)
    return OpenGram(use.blocks([source], tiles), GramJob(source.outputs, source.images), tiles)


def open_given(gram: GivenGram, tiles: GramPlan, use: InUse) -> OpenGram:
    """Matrices that were given, checked."""
    return OpenGram(use.blocks([PrecomputedSource(gram)], tiles), None, tiles)
