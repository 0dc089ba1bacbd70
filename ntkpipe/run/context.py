"""What every stage starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.data.given_gram import GivenGram
from ntkpipe.data.prepared import PreparedImages
from ntkpipe.data.stored_labels import GivenLabels
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.recomputed import RecomputedTiles
from ntkpipe.gram.task import GramJob
from ntkpipe.gram.worker import Evaluation
from ntkpipe.linalg.copies import Copies
from ntkpipe.sources.blocks import KernelBlocks
from ntkpipe.sources.gram import OpenGram
from ntkpipe.storage.store import ObjectStore
from ntkpipe.tiles.layout import Block, Kernel
from ntkpipe.tiles.matrix import TileMatrix
from ntkpipe.tiles.store import GramStore

KernelSource = GramStore | GivenGram
"""What has tiles and diagonals of kernels: a store that ntkpipe fills, or files that the user did."""


@dataclass(frozen=True)
class RunContext:
    """Everything known before the first tile.

    Args:
        config: of the run.
        store: of images and tiles.
        images: handle of the prepared images; of a given kernel, of its labels.
        spec: layers of the architecture, canonical; empty of a given kernel.
        gram: handle of the Gram store of the kernel that is solved with, or the files of a given one.
        job: every store that the Gram stage fills, `gram` first, and the images; None of a given kernel.
        plan: of the tiles that this run needs.
        n_train: training images in use, the leading rows.
        n_test: test images in use.
        workers: processes that compute.
        memory_bytes: budget of all processes together, less what computing tiles takes while solving.
        source: key of the record that leads from the raw data to the images.
        warnings: what the user should know.
        equal: pairs of training images that are equal, the first of its kind and a later one.
        opened: the kernels among the images in use, as solvers and predictions take them, and what fills their tiles.
    """

    config: RunConfig
    store: ObjectStore
    images: PreparedImages | GivenLabels
    spec: list[dict[str, Any]]
    gram: KernelSource
    job: GramJob | None
    plan: GramPlan
    n_train: int
    n_test: int
    workers: int
    memory_bytes: int
    source: str
    warnings: tuple[str, ...] = ()
    equal: tuple[tuple[int, int], ...] = ()
    opened: OpenGram = field(kw_only=True, compare=False, repr=False)

    @property
    def kernels(self) -> KernelBlocks:
        """The kernels among the images in use, as solvers and predictions take them."""
        return self.opened.blocks

    @cached_property
    def copies(self) -> Copies:
        """Which of the training images in use equal which; of a given kernel nothing is known."""
        return Copies.of(self.equal, self.n_train)

    @property
    def stores(self) -> tuple[GramStore, ...]:
        """Every store that the Gram stage fills; none of a given kernel."""
        return () if self.job is None else tuple(output.gram for output in self.job.outputs)

    @property
    def parts(self) -> tuple[KernelSource, ...]:
        """Those of the run's own network: `gram`, and for variances under flips the odd part."""
        if self.job is None:
            return (self.gram,)
        own = self.gram.identity.architecture
        return tuple(gram for gram in self.stores if gram.identity.architecture == own)

    def matrix(self, kernel: Kernel, block: Block, part: KernelSource | None = None) -> TileMatrix:
        """The kernel among the images in use: `train`, (n, n) symmetric, or `test`, (p, n).

        Every reader of tiles asks here, and none knows where they come from: stored, computed when they are read, or given.

        Args:
            kernel: `nngp` or `ntk`; `gram` of a given kernel.
            block: `train` or `test`.
            part: of `parts`; None is `gram`.
        """
        gram, rows = part or self.gram, self.n_train if block == "train" else self.n_test
        if self.plan.stored or self.job is None or isinstance(gram, GivenGram):
            return gram.matrix(kernel, block, rows=rows, cols=self.n_train)
        evaluation = Evaluation.of(self.spec, gram.identity.symmetry, gram.identity.dtype)
        whole = gram.grid(block)
        return RecomputedTiles(
            self.job.images,
            evaluation,
            kernel,
            block,
            whole,
            whole.leading(rows, self.n_train),
            gram.identity.stored_dtype,
            self.job.pairs_per_step,
        )

    def diagonal(
        self, kernel: Kernel, block: Block, part: KernelSource | None = None, *, plain: bool = False
    ) -> np.ndarray:
        """`k(x, x)` of the images in use, float64; arguments as of `matrix`.

        Args:
            kernel: `nngp` or `ntk`.
            block: `train` or `test`.
            part: of `parts`; None is `gram`.
            plain: of the kernel itself, where the tiles hold its even or odd part.
        """
        rows = self.n_train if block == "train" else self.n_test
        return (part or self.gram).read_diagonal(block, kernel, rows=rows, plain=plain)

    @property
    def estimates_test_diagonal(self) -> bool:
        """Whether `k(x, x)` of the test points was not given: error bounds are estimates then."""
        return isinstance(self.gram, GivenGram) and self.gram.test_diagonal is None
