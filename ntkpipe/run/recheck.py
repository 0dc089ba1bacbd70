"""Check stored and exported numbers by recomputing random tiles, residuals and predictions.

Checksums show that an object is unchanged. These checks show that its content is right. They recompute and compare a
few tiles. At a few random images, they evaluate the linear system and the predictions with kernel rows that are
recomputed in float64, without stored tiles or products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ntkpipe.dynamics.gains import final_gain
from ntkpipe.dynamics.sampling import independent_share, norm_safety, sample_indices
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.context import RunContext
from ntkpipe.solvers.solution import Solution
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.audit import Problem
from ntkpipe.tiles.chunk import inside
from ntkpipe.tiles.grid import Tile, TileGrid
from ntkpipe.tiles.layout import Block
from ntkpipe.tiles.store import GramStore

# Tolerances relative to the largest value of a tile. Kernels of any two devices agree to these, and tiles of other
# images do not.
_AGREEMENT = {"float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class Checked:
    """One comparison.

    Args:
        text: description of the comparison, with the deviation.
        wrong: whether the deviation exceeds its limit.
        gram: store of the wrong tile, if there is one.
        problem: description of that tile.
    """

    text: str
    wrong: bool
    gram: GramStore | None = None
    problem: Problem | None = None


def recheck_tiles(context: RunContext, count: int, seed: int) -> Iterator[Checked]:
    """Recompute up to `count` random stored tiles of every Gram store of the run, and yield the comparisons."""
    rng = np.random.default_rng(seed)
    for gram in context.opened.stores:
        identity = gram.identity
        stored = [
            (block.block, tile.i, tile.j)
            for block in context.opened.tiles.blocks
            for tile in _stored(gram, block.block, block.used)
        ]
        for k in sorted(rng.choice(len(stored), min(count, len(stored)), replace=False)):
            block, i, j = stored[k]
            made = context.opened.evaluate(gram, block, i, j)
            part = inside(gram.grid(block).tile(i, j).shape)
            for kernel in identity.kernels:
                mine = made[kernel].astype(np.float64)
                off = np.abs(gram.read_chunk(kernel, block, i, j)[part] - mine).max() / np.abs(mine).max()
                wrong = not off <= _AGREEMENT[identity.dtype]
                key = gram.layout.chunk_key(kernel, block, i, j)
                text = (
                    f"tile ({i}, {j}) of {kernel}/{block} in {gram.where} recomputed: deviation {off:.1e} of its "
                    "largest value"
                )
                fault = Problem("tile", key, text, block, i, j)
                yield Checked(text, wrong, gram, fault) if wrong else Checked(text, wrong)


def recheck_answers(
    context: RunContext, solved: Solution, predictions: Predictions, rows: int, seed: int, executor: Executor
) -> Iterator[Checked]:
    """Yield checks of residuals at random training images and of predictions at random test images.

    Both use rows of the kernel in float64.

    Args:
        context: context of the run.
        solved: one kernel's solution.
        predictions: the exported predictions.
        rows: number of training images and of test images to check.
        seed: seed of the choice.
        executor: computes the rows.
    """
    problem = solved.problem
    k = predictions.kernels.index(problem.name)
    times = tuple(float(t) for t in predictions.times)
    columns, (t, r, c) = solved.at(times).dual_weights()
    weights = columns.reshape(-1, t, r, c).transpose(1, 2, 0, 3)  # (T, R, n, c)
    yield from _residuals(context, solved, predictions, weights, rows, seed, executor)
    p, each = context.kernels.test_points, context.kernels.rows_of_point
    indices = sample_indices(p, rows, seed)
    exact = _new_rows(context, solved, "test", (each * indices[:, None] + np.arange(each)).ravel(), executor)
    # Predictions are in the order of their source, and rows in the order of the store.
    order = np.argsort(np.argsort(context.data.labels().test_index[:p], kind="stable"))[indices]
    made, points = np.einsum("kn,trnc->trkc", exact, weights), context.points
    made = made.reshape(*made.shape[:2], len(indices), -1)
    off = np.abs((made if points is None else points.exported(made, indices)) - predictions.mean[k][:, :, order])
    bound = predictions.error_bound[k][:, :, order]
    # Rounding of the weights limits every result to a few units of this size.
    share = float((off / np.maximum(bound, 1e-13 * np.abs(predictions.mean[k]).max())).max())
    yield Checked(
        f"{problem.name}: {len(indices)} test predictions from recomputed rows of the kernel: deviation at most "
        f"{off.max():.1e}, {share:.1e} of the error bound",
        not share <= 1.0,
    )


def _new_rows(
    context: RunContext, solved: Solution, block: Block, indices: np.ndarray, executor: Executor
) -> np.ndarray:
    """Return rows of the kernel, `(k, n)`, recomputed in float64."""
    source = context.kernels.source
    return source.exact_rows(block, indices, context.kernels.n, executor, context.kernels.workers)[
        solved.problem.kernel.source
    ]


def _residuals(
    context: RunContext,
    solved: Solution,
    predictions: Predictions,
    weights: np.ndarray,
    rows: int,
    seed: int,
    executor: Executor,
) -> Iterator[Checked]:
    """Yield comparisons of the residual `y - (T + ridge) u` at t = inf with the exported bound, at random rows."""
    problem = solved.problem
    k, last = predictions.kernels.index(problem.name), len(predictions.times) - 1
    if not math.isinf(predictions.times[last]):
        return
    indices = sample_indices(context.kernels.n, rows, seed)
    exact = _new_rows(context, solved, "train", indices, executor)
    scale = math.sqrt(context.kernels.n / len(indices)) / norm_safety(len(indices), context.kernels.n)
    size = np.linalg.norm(problem.targets, axis=0)
    for r, ridge in enumerate(problem.ridges):
        u = weights[last, r]
        residual = problem.targets[indices] - exact @ u - ridge * u[indices]
        gain = final_gain(ridge, solved.smallest).value
        terms = predictions.bound_terms
        # A residual contains the full norm of the tiles' errors, but the bound counts only the part that affects a
        # prediction.
        stored = terms["storage_train"][k, last, r] / independent_share(context.kernels.n)
        claimed = terms["krylov"][k, last, r] + terms["product"][k, last, r] + stored
        relative = float(
            (
                np.linalg.norm(residual, axis=0)
                * math.sqrt(context.kernels.n / len(indices))
                / np.where(size > 0, size, 1)
            ).max()
        )
        found = gain * scale * np.linalg.norm(residual, axis=0)
        if context.points is not None and context.points.scale is not None:
            found = found * context.points.scale  # bounds are in the units of the data
        known = np.isfinite(claimed)
        share = float((found[known] / np.maximum(claimed[known], np.finfo(np.float64).tiny)).max(initial=0.0))
        yield Checked(
            f"{problem.name}, absolute ridge {ridge:.3g}: residual of {len(indices)} recomputed rows at t = inf: "
            f"{relative:.1e}, {share:.1e} of the residual that the error bound allows",
            not share <= 1.0,
        )


def _stored(gram: GramStore, block: Block, used: TileGrid) -> Iterator[Tile]:
    missing = {(tile.i, tile.j) for tile in gram.missing(block, used)}
    return (tile for tile in used if (tile.i, tile.j) not in missing)
