"""Entries of a computed kernel without tiles: sampled rows and columns in float64, and the kernel of the test points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ntkpipe.dynamics.filters import EPS
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import ImageSource, Picked, distance_task, pairs_task
from ntkpipe.gram.worker import Spec
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tiles.layout import Block, Kernel

_COLUMNS = 2048  # images per task, so that 64 x 2048 float64 pairs and their images stay below 100 MB
_LEAST_COLUMNS = 32

# Safety factor: the largest rounding error of a sample of pairs may be below the largest of all pairs.
ERROR_SAFETY = 8.0
_EXPANSION_SAFETY = 4.0
# Smallest value of 1 minus a cosine for which the float32 errors show those of float64. For angles below 1e-4, float32
# rounds to zero, but float64 loses digits as well.
_ALIKE = 1e-8
# Assumed relative error of float32 if numbers are outside its range.
_FLOAT32_BEYOND_RANGE = 1e-3


def recomputed_rows(
    images: ImageSource,
    evaluation: Evaluates,
    block: Block,
    indices: np.ndarray,
    n: int,
    executor: Executor,
    workers: int,
) -> dict[Kernel, np.ndarray]:
    """Rows (k, n) of a block for every kernel; rows of the train block have exact diagonals.

    Args:
        images: of both blocks.
        evaluation: in float64.
        block: `train` or `test`.
        indices: (k,) rows of the block.
        n: number of training points in use.
        executor: computes the rows.
        workers: number of workers that share the work.
    """
    rows = Picked(block, tuple(int(i) for i in indices))
    step = _step(n, workers)

    def tasks() -> Iterator[Task]:
        for start in range(0, n, step):
            columns = Picked("train", tuple(range(start, min(start + step, n))))
            yield Task(start, pairs_task, (images, evaluation, rows, columns))

    parts = dict(values_of(executor, tasks()))
    made = _joined(parts, axis=1)
    if block == "train":
        own = evaluation.diagonal(np.concatenate([images.read(block, i, i + 1) for i in rows.indices]))[0]
        for kernel, whole in made.items():
            whole[np.arange(len(indices)), indices] = own[kernel]
    return made


def recomputed_columns(
    images: ImageSource, evaluation: Evaluates, p: int, indices: np.ndarray, executor: Executor, workers: int
) -> dict[Kernel, np.ndarray]:
    """Columns (p, k) of every test-train kernel for k training points. Arguments are those of `recomputed_rows`."""
    columns = Picked("train", tuple(int(i) for i in indices))
    step = _step(p, workers)

    def tasks() -> Iterator[Task]:
        for start in range(0, p, step):
            rows = Picked("test", tuple(range(start, min(start + step, p))))
            yield Task(start, pairs_task, (images, evaluation, rows, columns))

    return _joined(dict(values_of(executor, tasks())), axis=0)


def evaluation_errors(
    images: ImageSource,
    wide: Evaluates,
    narrow: Evaluates,
    shorter: Evaluates | None,
    rows: np.ndarray,
    columns: np.ndarray,
    diagonals: dict[Kernel, np.ndarray],
    executor: Executor,
    spec: Spec | None = None,
) -> dict[Kernel, float]:
    """Largest error of float64 entries of every kernel, in units of `sqrt(k(x, x) k(x', x'))`.

    Rounding errors of float64 grow through the layers like those of float32, and are 2^-29 times as large. Series of
    nonlinearities are truncated. The difference between half of the terms and all terms is at least a quarter of the
    truncation error, even for the slowest series (that of a kink, whose NTK converges as the root of the number of terms).

    Args:
        images: of the training points.
        wide: the evaluation in float64.
        narrow: the evaluation in float32.
        shorter: the evaluation in float64 with half of the terms; None without series.
        rows: training points that are close to other points.
        columns: these other points, and some random ones.
        diagonals: of the training points, for each kernel.
        executor: computes the entries.
        spec: layers of a network whose entries can also be computed from distances; None for other kernels.
    """
    picked = Picked("train", tuple(map(int, rows))), Picked("train", tuple(map(int, columns)))
    wanted = {"narrow": narrow, "wide": wide} | ({} if shorter is None else {"shorter": shorter})
    made = dict(values_of(executor, (Task(name, pairs_task, (images, one, *picked)) for name, one in wanted.items())))
    out: dict[Kernel, float] = {}
    for kernel, diagonal in diagonals.items():
        root = np.sqrt(np.maximum(diagonal, np.finfo(np.float64).tiny))
        size = np.outer(root[rows], root[columns])

        def off(name: str, kernel: str = kernel, size: np.ndarray = size) -> float:
            found = np.abs(made[name][kernel] - made["wide"][kernel]) / size
            return float(found.max()) if np.isfinite(found).all() else _FLOAT32_BEYOND_RANGE

        out[kernel] = max(ERROR_SAFETY * off("narrow") * 2.0**-29, 4.0 * EPS)
        if "shorter" in made:
            out[kernel] += _EXPANSION_SAFETY * off("shorter")
    if spec is not None:
        _add_distance_errors(out, images, spec, made["wide"], picked, diagonals, executor)
    return out


def series_errors(
    images: ImageSource,
    whole: Evaluates,
    shorter: Evaluates,
    rows: np.ndarray,
    columns: np.ndarray,
    scales: dict[Kernel, np.ndarray],
    executor: Executor,
) -> dict[Kernel, float]:
    """Truncation error of series in the test-train entries, in the units of `evaluation_errors`.

    A test point may be closer to a training point than training points are to each other, and series converge most
    slowly for close points.

    Args:
        images: of both blocks.
        whole: the evaluation in float64.
        shorter: the evaluation in float64 with half of the terms.
        rows: (k,) test points.
        columns: (m,) training points.
        scales: (k, m) `sqrt(k(x, x) k(x', x'))`, for each kernel.
        executor: computes the entries.
    """
    picked = Picked("test", tuple(map(int, rows))), Picked("train", tuple(map(int, columns)))
    wanted = {"whole": whole, "shorter": shorter}
    made = dict(values_of(executor, (Task(name, pairs_task, (images, one, *picked)) for name, one in wanted.items())))
    return {
        kernel: _EXPANSION_SAFETY * float((np.abs(made["shorter"][kernel] - made["whole"][kernel]) / scale).max())
        for kernel, scale in scales.items()
    }


def _add_distance_errors(
    out: dict[Kernel, float],
    images: ImageSource,
    spec: Spec,
    wide: dict[Kernel, np.ndarray],
    picked: tuple[Picked, Picked],
    diagonals: dict[Kernel, np.ndarray],
    executor: Executor,
) -> None:
    """Raise the errors to the difference between float64 entries and entries from distances, if points are very close."""
    rows, columns = (np.array(one.indices) for one in picked)
    apart = rows[:, None] != columns[None, :]
    size = np.sqrt(diagonals["nngp"])
    alike = 1.0 - wide["nngp"] / np.outer(size[rows], size[columns])
    if not float(alike.min(initial=1.0, where=apart)) < _ALIKE:
        return
    task = Task("distances", distance_task, (images, spec, *picked))
    (found,) = (value for _, value in values_of(executor, [task]))
    if found is None:
        return
    for kernel, diagonal in diagonals.items():
        size = np.sqrt(diagonal)
        off = np.abs(found[kernel] - wide[kernel]) / np.outer(size[rows], size[columns])
        out[kernel] = max(out[kernel], ERROR_SAFETY * float(off.max(initial=0.0, where=apart)))


def recomputed_test_gram(
    images: ImageSource, evaluation: Evaluates, kernel: Kernel, p: int, edge: int, executor: Executor
) -> np.ndarray:
    """The kernel of the first p test points with each other, (p, p) float64, computed in blocks of at most `edge`."""
    step = min(_COLUMNS, edge)

    def picked(start: int) -> Picked:
        return Picked("test", tuple(range(start, min(start + step, p))))

    def tasks() -> Iterator[Task]:
        for i in range(0, p, step):
            for j in range(0, i + 1, step):
                columns = None if i == j else picked(j)
                yield Task((i, j), pairs_task, (images, evaluation, picked(i), columns))

    out = np.empty((p, p))
    for (i, j), part in values_of(executor, tasks()):
        tile = part[kernel]
        out[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
        out[j : j + tile.shape[1], i : i + tile.shape[0]] = tile.T
    return out


def _joined(parts: dict[int, dict[Kernel, np.ndarray]], axis: int) -> dict[Kernel, np.ndarray]:
    order = sorted(parts)
    return {kernel: np.concatenate([parts[start][kernel] for start in order], axis) for kernel in parts[order[0]]}


def _step(n: int, workers: int) -> int:
    """Number of rows or columns per task, such that every worker gets a few tasks."""
    return int(np.clip(-(-n // (4 * workers)), _LEAST_COLUMNS, _COLUMNS))
