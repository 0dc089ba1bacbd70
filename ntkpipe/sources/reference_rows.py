"""Kernels of images that no tile holds: sampled rows in float64, and test images among themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.filters import EPS
from ntkpipe.dynamics.sampling import TestErrors, matrix_noise, sample_indices
from ntkpipe.gram.task import Picked, distance_task, pairs_task
from ntkpipe.gram.worker import Evaluation, compute_diagonal
from ntkpipe.kernels.truncation import expanded_layers, with_half_degrees
from ntkpipe.linalg.operator import rectangular_operator, tile_operator
from ntkpipe.planning.sample_rows import FLOAT64_COST, SAMPLE_SHARE, sample_rows
from ntkpipe.run.context import Inputs, KernelSource
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tiles.layout import Block, Kernel

_COLUMNS = 2048  # images per task: 64 x 2048 float64 pairs and their images stay below 100 MB
_LEAST_COLUMNS = 32

# Pairs whose rounding is measured, rows and columns; and the factor on the largest: a sample of so many sees not the worst.
_EVALUATED, _EVALUATION_SAFETY = (8, 64), 8.0
_EXPANSION_SAFETY = 4.0
# Of one less a cosine: angles below 1e-4 lose more digits in float64 than float32, which takes them for zero, tells.
_ALIKE = 1e-8
# Taken for the relative error of float32 where it has no such numbers.
_FLOAT32_BEYOND_RANGE = 1e-3
_HALF_UNIT = 2.0**-25


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


@dataclass(frozen=True)
class TileErrors:
    """How far stored train-train tiles are from the kernel.

    Args:
        noise: bound on the spectral norm of all their errors: an eigenvalue is known no better.
        systematic: bound on the part of it that does not average out; see `RowSample`.
    """

    noise: float
    systematic: float


def tile_errors(inputs: Inputs, kernel: Kernel, stored: np.ndarray, executor: Executor) -> TileErrors:
    """Errors of the kernel that is solved with, from the sampled rows.

    Args:
        inputs: of the run.
        kernel: the stored kernel.
        stored: (k, n) the rows of `exact_rows` as they are stored.
        executor: where entries are recomputed.
    """
    n, difference = inputs.n_train, stored - exact_rows(inputs, "train", executor).kernels[kernel]
    systematic = relative_error(inputs, kernel, executor) * float(inputs.diagonal(kernel, "train").sum())
    noise = matrix_noise(difference, n)
    if inputs.job is None and inputs.matrix(kernel, "train").dtype == np.float32:
        # What the user's entries were before they were rounded to float32 nobody knows: up to half a unit in the last place.
        noise = 3.0 * math.sqrt(n * np.mean(stored**2)) * _HALF_UNIT
    return TileErrors(noise + systematic, systematic)


def test_errors(
    inputs: Inputs, kernel: Kernel, stored: np.ndarray, systematic: float, executor: Executor
) -> TestErrors:
    """Errors of the test-train tiles, of every test image from its own entries with the sampled training images.

    Args:
        inputs: of the run.
        kernel: the stored kernel.
        stored: (p, k) the columns `sampled_columns` as they are stored.
        systematic: of the train-train tiles, see `TileErrors`.
        executor: where entries are recomputed.
    """
    exact = exact_columns(inputs, executor)[kernel] if inputs.job is not None else stored
    trace = float(inputs.diagonal(kernel, "train").sum())
    of_row = systematic / math.sqrt(trace) if trace > 0 else 0.0
    return TestErrors.of_columns(stored - exact, inputs.diagonal(kernel, "test"), inputs.n_train, of_row)


def relative_error(inputs: Inputs, kernel: Kernel, executor: Executor) -> float:
    """What float64 entries of the kernel are themselves off by at most, in units of `sqrt(k(x, x) k(x', x'))`.

    Measured on a few pairs, the closest of the sampled rows among them. Rounding grows through the layers as that of float32
    does, and is 2^-29 times as large. Expansions of nonlinearities end somewhere: what half of their terms leave, and all of them
    do not, is at least a quarter of what all of them leave, for the slowest series that there is (that of a kink, whose NTK falls as the
    root of the number of terms).
    """
    if inputs.job is None:
        return 0.0
    if "evaluation" not in inputs.exact:
        inputs.exact["evaluation"] = _evaluation_errors(inputs, executor)
    return inputs.exact["evaluation"][kernel]


def _evaluation_errors(inputs: Inputs, executor: Executor) -> dict[str, float]:
    assert inputs.job is not None
    rows, columns = _close_pairs(inputs, executor)
    picked = Picked("train", tuple(map(int, rows))), Picked("train", tuple(map(int, columns)))
    symmetry = inputs.gram.identity.symmetry
    wanted = {"narrow": (inputs.spec, "float32"), "wide": (inputs.spec, "float64")}
    if any(True for _ in expanded_layers(inputs.spec)):
        wanted["shorter"] = (with_half_degrees(inputs.spec), "float64")
    tasks = (
        Task(name, pairs_task, (inputs.job.images, Evaluation.of(spec, symmetry, dtype), *picked))
        for name, (spec, dtype) in wanted.items()
    )
    made = dict(values_of(executor, tasks))
    out = {}
    for kernel in ("nngp", "ntk"):
        diagonal = np.sqrt(np.maximum(inputs.diagonal(kernel, "train"), np.finfo(np.float64).tiny))
        size = np.outer(diagonal[rows], diagonal[columns])

        def off(name: str, kernel: str = kernel, size: np.ndarray = size) -> float:
            found = np.abs(made[name][kernel] - made["wide"][kernel]) / size
            return float(found.max()) if np.isfinite(found).all() else _FLOAT32_BEYOND_RANGE

        out[kernel] = max(_EVALUATION_SAFETY * off("narrow") * 2.0**-29, 4.0 * EPS)
        if "shorter" in made:
            out[kernel] += _EXPANSION_SAFETY * off("shorter")
    size = np.sqrt(inputs.diagonal("nngp", "train"))
    alike = 1.0 - made["wide"]["nngp"] / np.outer(size[rows], size[columns])
    if symmetry == "none" and float(alike.min(initial=1.0, where=rows[:, None] != columns[None, :])) < _ALIKE:
        _add_distance_errors(out, inputs, made["wide"], rows, columns, picked, executor)
    return out


def _add_distance_errors(
    out: dict[str, float],
    inputs: Inputs,
    wide: dict[str, np.ndarray],
    rows: np.ndarray,
    columns: np.ndarray,
    picked: tuple[Picked, Picked],
    executor: Executor,
) -> None:
    """Where layers have brought points together, what float64 entries are off by from those of the distances."""
    assert inputs.job is not None
    task = Task("distances", distance_task, (inputs.job.images, inputs.spec, *picked))
    (found,) = (value for _, value in values_of(executor, [task]))
    if found is None:
        return
    apart = rows[:, None] != columns[None, :]
    for kernel in ("nngp", "ntk"):
        size = np.sqrt(inputs.diagonal(kernel, "train"))
        off = np.abs(found[kernel] - wide[kernel]) / np.outer(size[rows], size[columns])
        out[kernel] = max(out[kernel], _EVALUATION_SAFETY * float(off.max(initial=0.0, where=apart)))


def _close_pairs(inputs: Inputs, executor: Executor) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the sample with the closest other images, and these images with some drawn at random."""
    sample = exact_rows(inputs, "train", executor)
    diagonal = np.sqrt(np.maximum(inputs.diagonal("nngp", "train"), np.finfo(np.float64).tiny))
    cosine = sample.kernels["nngp"] / np.outer(diagonal[sample.indices], diagonal)
    cosine[np.arange(len(sample.indices)), sample.indices] = -1.0
    closest = cosine.max(axis=1)
    rows = np.sort(np.argsort(-closest, kind="stable")[: _EVALUATED[0]])
    count = _EVALUATED[1]
    if inputs.plan.cost.input_entries > 1:  # pairs take long: twice or three times so many are evaluated
        affordable = SAMPLE_SHARE * inputs.plan.pairs / (len(rows) * FLOAT64_COST)
        count = int(np.clip(affordable, 2 * len(rows), count))
    random = sample_indices(inputs.n_train, count - len(rows), seed=2)
    return sample.indices[rows], np.unique([*cosine[rows].argmax(axis=1), *random])


def sampled_columns(inputs: Inputs) -> np.ndarray:
    """Training images whose kernel with every test image is recomputed."""
    return sample_indices(inputs.n_train, sample_size(inputs))


def sampled_units(inputs: Inputs) -> np.ndarray:
    """(n, k) unit vectors of `sampled_columns`: a kernel times them is its columns as they are stored."""
    sampled = sampled_columns(inputs)
    units = np.zeros((inputs.n_train, len(sampled)))
    units[sampled, np.arange(len(sampled))] = 1.0
    return units


def exact_columns(inputs: Inputs, executor: Executor) -> dict[str, np.ndarray]:
    """Both kernels between all test images in use and the sampled training images, (p, k) float64, once in a process."""
    if "columns" in inputs.exact:
        return inputs.exact["columns"]
    assert inputs.job is not None
    p, source = inputs.n_test, inputs.job.images
    columns = Picked("train", tuple(int(i) for i in sampled_columns(inputs)))
    evaluation = Evaluation.of(inputs.spec, inputs.gram.identity.symmetry, "float64")
    step = _columns(inputs, p)

    def tasks() -> Iterator[Task]:
        for start in range(0, p, step):
            rows = Picked("test", tuple(range(start, min(start + step, p))))
            yield Task(start, pairs_task, (source, evaluation, rows, columns))

    parts = dict(values_of(executor, tasks()))
    inputs.exact["columns"] = {
        kernel: np.concatenate([parts[start][kernel] for start in sorted(parts)]) for kernel in ("nngp", "ntk")
    }
    return inputs.exact["columns"]


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
