"""Kernels of images that no tile holds: sampled rows in float64, and test images among themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.config import RunConfig
from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.gram.plan import GramPlan
from ntkpipe.gram.task import Picked, pairs_task
from ntkpipe.gram.worker import Evaluation, compute_diagonal
from ntkpipe.linalg.operator import rectangular_operator, tile_operator
from ntkpipe.pipeline.inputs import Inputs, KernelSource
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tiles.layout import Block

_COLUMNS = 2048  # images per task: 64 x 2048 float64 pairs and their images stay below 100 MB
_LEAST_COLUMNS = 32

# Rows of a sample, unless set: as many as make its safety factor small (2.2), or, where pairs take long, as few as keep it
# below 10 (`sampling.norm_safety`) and recomputing them, which takes three times as long a pair, to 2% of the tiles' time.
_SAMPLE_ROWS, _LEAST_SAMPLE_ROWS = 64, 16
_SAMPLE_SHARE, _FLOAT64_COST = 0.02, 3.0


@dataclass(frozen=True)
class ExactRows:
    """Rows of a block recomputed in float64, which stored tiles and products are measured against.

    Args:
        indices: (k,) stored row numbers.
        kernels: `nngp` and `ntk`, or `gram`, (k, n_train) float64; on the train block the diagonal is exact.
    """

    indices: np.ndarray
    kernels: dict[str, np.ndarray]


def sample_size(inputs: Inputs) -> int:
    """Rows of a sample: as set, or as many as the time of the tiles allows."""
    return sample_rows(inputs.config, inputs.plan, inputs.n_train)


def sample_rows(config: RunConfig, plan: GramPlan, n: int) -> int:
    """`sample_size` of a run that has only been planned, on `n` training images."""
    if config.solver.sample_rows is not None:
        return config.solver.sample_rows
    if plan.cost.input_entries == 1:
        return _SAMPLE_ROWS
    affordable = _SAMPLE_SHARE * plan.pairs / (2 * n * _FLOAT64_COST)  # of both blocks
    return int(np.clip(affordable, _LEAST_SAMPLE_ROWS, _SAMPLE_ROWS))


def exact_rows(inputs: Inputs, block: Block, executor: Executor) -> ExactRows:
    """A sample of rows of the kernel that is solved with; both kernels come out of one evaluation, once in a process."""
    if block not in inputs.exact:
        count = inputs.n_train if block == "train" else inputs.n_test
        inputs.exact[block] = recomputed_rows(inputs, block, sample_indices(count, sample_size(inputs)), executor)
    return inputs.exact[block]


def recomputed_rows(inputs: Inputs, block: Block, indices: np.ndarray, executor: Executor) -> ExactRows:
    """These rows of the kernel that is solved with, computed now in float64; of a given kernel, as they were given."""
    if inputs.job is None:
        matrix = inputs.matrix("gram", block)
        operate = tile_operator if block == "train" else rectangular_operator
        with operate(matrix, executor, products="float64") as operator:
            return ExactRows(indices, {"gram": operator.rows(indices)})
    n, source = inputs.n_train, inputs.job.images
    rows = Picked(block, tuple(int(i) for i in indices))
    symmetry = inputs.gram.identity.symmetry
    evaluation = Evaluation.of(inputs.spec, symmetry, "float64")
    step = _columns(inputs, n)

    def tasks() -> Iterator[Task]:
        for start in range(0, n, step):
            columns = Picked("train", tuple(range(start, min(start + step, n))))
            yield Task(start, pairs_task, (source, evaluation, rows, columns))

    made = {kernel: np.empty((len(indices), n)) for kernel in ("nngp", "ntk")}
    for start, part in values_of(executor, tasks()):
        for kernel, values in part.items():
            made[kernel][:, start : start + values.shape[1]] = values
    if block == "train":
        images = np.concatenate([source.read(block, i, i + 1) for i in rows.indices])
        own = compute_diagonal(inputs.spec, images, dtype="float64", symmetry=symmetry)
        for kernel, whole in made.items():
            whole[np.arange(len(indices)), indices] = own[kernel]
    return ExactRows(indices, made)


def test_test(inputs: Inputs, gram: KernelSource, kernel: str, executor: Executor) -> np.ndarray:
    """The kernel among the test images in use, (p, p) float64, which no tile of `gram` stores: only covariances need it."""
    assert inputs.job is not None  # RunConfig refuses full covariances of a given kernel
    p, source = inputs.n_test, inputs.job.images
    evaluation = Evaluation.of(inputs.spec, gram.identity.symmetry, inputs.config.kernel.dtype)
    step = min(_COLUMNS, inputs.plan.edge)

    def picked(start: int) -> Picked:
        return Picked("test", tuple(range(start, min(start + step, p))))

    def tasks() -> Iterator[Task]:
        for i in range(0, p, step):
            for j in range(0, i + 1, step):
                columns = None if i == j else picked(j)
                yield Task((i, j), pairs_task, (source, evaluation, picked(i), columns))

    out = np.empty((p, p))
    for (i, j), part in values_of(executor, tasks()):
        tile = part[kernel]
        out[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
        out[j : j + tile.shape[1], i : i + tile.shape[0]] = tile.T
    return out


def _columns(inputs: Inputs, n: int) -> int:
    """Columns of a task: a few tasks for every worker."""
    return int(np.clip(-(-n // (4 * inputs.workers)), _LEAST_COLUMNS, _COLUMNS))
