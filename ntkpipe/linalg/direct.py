"""Solves with a Cholesky factor in float64, float32 or mixed precision. Mixed precision reaches float64 accuracy with a float32 factor.

Mixed precision takes half the memory and half the time of float64 if refinement converges (condition below about 1e7). Otherwise
the float32 factor preconditions conjugate gradients. If these do not converge either, a float64 factor is computed. The result states
which method was used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.factor.factorise import FactorRun, factorise
from ntkpipe.linalg.factor.refine import refine, residual_floor
from ntkpipe.linalg.operator import Operator
from ntkpipe.linalg.preconditioner import float32_factor
from ntkpipe.linalg.solution import Reason, Solution
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.matrix import TileMatrix

PRECISIONS = ("float64", "float32", "mixed")

# Largest number of steps of cg. A step takes a product and a solve with the factor, 6 n^2 flops for each column, so a float64 factor costs
# as much as n / 18 steps of one column. If preconditioned systems converge, they do so in a few steps, because float32 rounding moves only
# a few eigenvalues far from one.
_CG_STEPS = 60
# Largest relative residual of a float32 solution. Near a condition of 1e7, rounding explains any residual, so a limit is needed.
_FLOAT32_RESIDUAL = 1e-2


@dataclass(frozen=True)
class DirectSolution(Solution[np.ndarray]):
    """A `Solution` `(n, k)` and its factor. `iterations` counts refinements, or steps of cg.

    Args:
        run: the factor and facts about its computation. Its ridge is the requested ridge plus `raised`.
        method: `refinement`, `cg` (preconditioned by the float32 factor) or `substitution` (only the float32 factor).
        raised: number that was added to the diagonal of a float32 factor besides the ridge. If it is not 0, the factor is only a
            preconditioner.
        story: earlier attempts that failed, as a text for the user; empty if there were none.
    """

    run: FactorRun
    method: str
    raised: float
    story: str


def solve_direct(
    matrix: TileMatrix,
    operator: Operator,
    b: np.ndarray,
    *,
    precision: str,
    name: str,
    ridge: float,
    store: ObjectStore,
    prefix: str,
    executor: Executor,
    memory_bytes: int,
    edge: int | None = None,
    on_tile: Callable[[str, int, int], None] | None = None,
) -> DirectSolution:
    """Solve `(A + ridge I) x = b`.

    Args:
        matrix: `A`, symmetric.
        operator: the same, with float64 products.
        b: `(n, k)` float64.
        precision: `float64`, `mixed` (as accurate, see the module) or `float32` (no refinement; the residual is at the level of
            float32 rounding, and at most 1e-2).
        name: digest of the content of the matrix.
        ridge: absolute.
        store: stores the factors.
        prefix: prefix of their keys, to which the precision of a factor is added.
        executor: runs the tasks.
        memory_bytes: memory for the data of all workers together.
        edge: number of rows of a tile of the factor; None chooses it.
        on_tile: called with the precision of the factor, the number of finished tiles and the number of all tiles.

    Raises:
        ConfigError, ResourceError, IndefiniteError, NumericalError: see `factorise`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"solver.precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    b = np.asarray(b, dtype=np.float64)

    def telling(dtype: str) -> Callable[[int, int], None] | None:
        return None if on_tile is None else functools.partial(on_tile, dtype)

    def factor(dtype: str) -> FactorRun:
        return factorise(
            matrix,
            name=name,
            ridge=ridge,
            dtype=dtype,
            store=store,
            prefix=f"{prefix}/{dtype}",
            executor=executor,
            memory_bytes=memory_bytes,
            edge=edge,
            on_tile=telling(dtype),
        )

    if precision == "float32":
        return _substitute(factor("float32"), operator, b, ridge)
    stories = []
    if precision == "mixed":
        try:
            made = float32_factor(
                matrix,
                name=name,
                ridge=ridge,
                store=store,
                prefix=f"{prefix}/float32",
                executor=executor,
                memory_bytes=memory_bytes,
                edge=edge,
                on_tile=telling("float32"),
            )
        except NumericalError as error:
            stories.append(f"no float32 factor ({error})")
        else:
            run, start = made.run, None
            if made.raised:
                stories.append(f"the float32 factor needed {made.raised:.1e} more on the diagonal")
            else:
                found = refine(run.factor, b, operator)
                if found.reason.ok:
                    return DirectSolution(**vars(found), run=run, method="refinement", raised=0.0, story="")
                stories.append(f"refinement of the float32 factor stagnated at a residual of {found.residual:.1e}")
                start = found.value if found.residual < 1 else None
            tolerance = 1e-14
            if start is not None:
                tolerance = max(tolerance, residual_floor(start, b, operator, ridge))
            found = block_cg(
                operator,
                b,
                ridge=ridge,
                start=start,
                preconditioner=made,
                tolerance=tolerance,
                max_steps=_CG_STEPS,
                rounding=2.0**-53,
            )
            # The tolerance of the iteration was a guess. The solution gives the residual that rounding permits.
            if found.reason.ok or found.residual <= residual_floor(found.value, b, operator, ridge):
                return DirectSolution(
                    found.value,
                    found.residual,
                    found.iterations,
                    Reason.CONVERGED,
                    run=run,
                    method="cg",
                    raised=made.raised,
                    story="; ".join(stories),
                )
            stories.append(f"cg with it ended at a residual of {found.residual:.1e} after {found.iterations} steps")
    run = factor("float64")
    found = refine(run.factor, b, operator)
    return DirectSolution(**vars(found), run=run, method="refinement", raised=0.0, story="; ".join(stories))


def _substitute(run: FactorRun, operator: Operator, b: np.ndarray, ridge: float) -> DirectSolution:
    """The solution of the float32 factor without refinement. Its residual is compared with the level of float32 rounding."""
    x = run.factor.apply_inverse(b)
    norms = np.linalg.norm(b, axis=0)
    residual = np.linalg.norm(b - operator.matmul(x) - ridge * x, axis=0) / np.where(norms > 0, norms, 1.0)
    worst = float(residual.max(initial=0.0))
    ok = worst <= min(_FLOAT32_RESIDUAL, residual_floor(x, b, operator, ridge, unit=2.0**-23))
    reason = Reason.CONVERGED if ok else Reason.STAGNATED
    return DirectSolution(x, worst, 1, reason, run=run, method="substitution", raised=0.0, story="")
