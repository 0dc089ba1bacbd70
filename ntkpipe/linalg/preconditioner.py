"""Preconditioners for conjugate gradients: what is cheap to invert and near the matrix.

Two find a low-rank approximation `A ~ U diag(values) U^T` once, which serves every ridge `mu`:

    M^-1 = I - U diag(1 - (tail + mu) / (values + mu)) U^T        (Frangella, Tropp & Udell 2023, arXiv:2110.02820)

with `tail` the size of what the approximation leaves out. `M >= I`, so that the smallest eigenvalue of the preconditioned
matrix is a lower bound of that of `A + mu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.factor.factorise import FactorRun, factorise
from ntkpipe.linalg.factor.task import PivotError
from ntkpipe.linalg.factor.tiles import FactorIdentity, stored_identity
from ntkpipe.linalg.operator import LinearMap, Operator
from ntkpipe.storage.protocol import ObjectStore
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.matrix import TileMatrix

_EPS = float(np.finfo(np.float64).eps)
_EPS_32 = float(np.finfo(np.float32).eps)
# Vectors of the first sketch, doubled until its last eigenvalue is so many times the ridge: more would find what the ridge
# hides (2110.02820 proves a condition of 28 for an effective rank near this).
_FIRST_RANK = 64
_NEAR_RIDGE = 10.0
# Columns of one product of a sketch: 256 x 50,000 float64 are 100 MB.
_COLUMNS = 256
# Rows of one request of the pivoted Cholesky.
_PIVOTS = 64
# Pivots of a request that are left so small by the others of it are not worth a division.
_DEPENDENT = 1e-8


@runtime_checkable
class Preconditioner(Protocol):
    """A positive definite `M` near the matrix plus ridge."""

    @property
    def rank(self) -> int:
        """Of the approximation that it is made of."""
        ...

    @property
    def smallest(self) -> float:
        """A lower bound of the smallest eigenvalue of `M`, up to an estimate."""
        ...

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`M^-1 x`."""
        ...

    def cost(self) -> str:
        """What it is and what applying it takes, for people."""
        ...


class Identity:
    """No preconditioner."""

    rank = 0
    smallest = 1.0

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`x` itself."""
        return x

    def cost(self) -> str:
        """See `Preconditioner.cost`."""
        return "no preconditioner"


@dataclass(frozen=True)
class LowRank:
    """`A ~ U diag(values) U^T`, positive semi-definite.

    Args:
        vectors: `(n, r)` orthonormal columns `U`.
        values: `(r,)` positive, descending.
        tail: size of what is left out, positive if r is.
        passes: products with blocks of vectors, or requests for rows, that it took.
        columns: vectors in those products together, or rows.
    """

    vectors: Float64[np.ndarray, "n r"]
    values: Float64[np.ndarray, " r"]
    tail: float
    passes: int
    columns: int

    def at(self, ridge: float) -> Preconditioner:
        """The preconditioner for one ridge."""
        return _LowRankInverse(self, ridge) if len(self.values) else Identity()


class _LowRankInverse:
    smallest = 1.0

    def __init__(self, low_rank: LowRank, ridge: float) -> None:
        self._vectors = low_rank.vectors
        self._less = 1.0 - (low_rank.tail + ridge) / (low_rank.values + ridge)

    @property
    def rank(self) -> int:
        return len(self._less)

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        return x - self._vectors @ (self._less[:, None] * (self._vectors.T @ x))

    def cost(self) -> str:
        return f"rank {self.rank}, {4 * len(self._vectors) * self.rank:.2g} flops a vector"


def largest_rank(n: int) -> int:
    """Rank at which an adaptive one stops, unless set.

    With ten outputs and tiles in memory a sketch of rank 256 is as much arithmetic as 28 passes and saved 41 of 101 (NTK)
    and 90 of 174 (NNGP) on 5,085 real images; one of 512 costs 57 and saved 50 and 106. Where tiles are read anew for every pass,
    it is one pass, and a larger `solver.rank` pays.
    """
    return max(1, min(n // 4, 256))


def nystrom(
    operator: LinearMap,
    *,
    ridge: float,
    rank: int | None = None,
    rounding: float = _EPS,
    seed: int = 0,
) -> LowRank:
    """Randomised Nystrom approximation `(A W) (W^T A W)^+ (A W)^T` from products with random vectors W.

    Args:
        operator: `A`, positive semi-definite to rounding.
        ridge: the smallest that it is to serve, absolute.
        rank: number of random vectors; None doubles it until the smallest eigenvalue found is near the ridge, or
            `largest_rank` is reached.
        rounding: unit roundoff of the products.
        seed: of the random vectors.

    Raises:
        NumericalError: if a product is not finite.
    """
    n = operator.n
    rng = np.random.default_rng(seed)
    limit = largest_rank(n) if rank is None else min(rank, n)
    tests, images = np.zeros((n, 0)), np.zeros((n, 0))
    passes, wanted = 0, min(limit, _FIRST_RANK) if rank is None else limit
    while True:
        while (have := tests.shape[1]) < wanted:
            more = rng.standard_normal((n, min(_COLUMNS, wanted - have))) / math.sqrt(n)
            tests, images = np.hstack([tests, more]), np.hstack([images, operator.matmul(more)])
            passes += 1
        vectors, values = _nystrom_eigenpairs(tests, images, max(rounding, _EPS))
        if wanted >= limit or len(values) < wanted or values[-1] <= _NEAR_RIDGE * ridge:
            return LowRank(vectors, values, float(values[-1]) if len(values) else 0.0, passes, wanted)
        wanted = min(limit, 2 * wanted)


def _nystrom_eigenpairs(tests: np.ndarray, images: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and eigenvalues (descending, above rounding) of the Nystrom approximation.

    The core `W^T A W` is indefinite by rounding: a shift of that size, taken back at the end, makes it factorable
    (algorithm 2.1 of 2110.02820).
    """
    if not np.isfinite(images).all():
        raise NumericalError("a product of the sketch is not finite: run `ntkpipe verify` to find the damaged tile")
    scale = float(np.linalg.norm(images, 2)) if images.size else 0.0
    if scale == 0:
        return np.zeros((len(tests), 0)), np.zeros(0)
    shift = rounding * scale
    while True:
        shifted = images + shift * tests
        core = tests.T @ shifted
        try:
            factor = scipy.linalg.cholesky((core + core.T) / 2, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            shift *= 10
            if shift > 10 * scale:
                raise NumericalError(
                    "the sketch of the kernel is not positive semi-definite: solver.preconditioner=none says how indefinite "
                    "the kernel is"
                ) from None
            continue
        break
    half = scipy.linalg.solve_triangular(factor, shifted.T, lower=True, check_finite=False)
    q, r = np.linalg.qr(half.T)
    u, singular, _ = scipy.linalg.svd(r, check_finite=False)
    values = singular**2 - shift
    kept = values > max(shift, len(tests) * rounding * float(values[0]) / 16)
    return q @ u[:, kept], values[kept]


def pivoted_cholesky(operator: Operator, *, ridge: float, rank: int | None = None, seed: int = 0) -> LowRank:
    """Partial Cholesky factorisation `A ~ L L^T` from rows of the matrix alone, without a product.

    Pivots are drawn with the probability of what is left of the diagonal (arXiv:2207.06503), a block of them at a time, so
    that a stored tile is read once for many; of a block the dependent ones are left out.

    Args:
        operator: `A`, positive semi-definite to rounding.
        ridge: the smallest that it is to serve, absolute.
        rank: number of pivots; None goes on until the mean of what is left of the diagonal is below the ridge, or
            `largest_rank` is reached.
        seed: of the pivots.

    Raises:
        NumericalError: if a row is not finite.
    """
    n = operator.n
    rng = np.random.default_rng(seed)
    limit = largest_rank(n) if rank is None else min(rank, n)
    diagonal = operator.diagonal()
    if not np.isfinite(diagonal).all():
        raise NumericalError("the diagonal of the kernel is not finite: run `ntkpipe verify` to find the damaged tile")
    left, factor = diagonal.copy(), np.zeros((0, n))
    # Of what is left of the diagonal, what rounding may have put there.
    noise = 8 * math.sqrt(n) * _EPS * max(float(diagonal.max(initial=0.0)), 0.0)
    passes = rows_read = 0
    while len(factor) < limit and left.sum() > n * max(noise, 0.0 if rank is not None else ridge):
        weights = np.where(left > noise, left, 0.0)
        if not weights.any():
            break
        count = min(_PIVOTS, limit - len(factor), int(np.count_nonzero(weights)))
        pivots = np.sort(rng.choice(n, size=count, replace=False, p=weights / weights.sum()))
        rows = operator.rows(pivots)
        if not np.isfinite(rows).all():
            raise NumericalError("a row of the kernel is not finite: run `ntkpipe verify` to find the damaged tile")
        passes, rows_read = passes + 1, rows_read + count
        rows = rows - factor[:, pivots].T @ factor
        order, triangle = _independent(rows[:, pivots], noise)
        if not len(order):
            left[pivots] = 0.0
            continue
        new = scipy.linalg.solve_triangular(triangle, rows[order], lower=True, check_finite=False)
        factor = np.vstack([factor, new])
        left = np.maximum(left - np.einsum("ij,ij->j", new, new), 0.0)
        left[pivots] = 0.0
    if not len(factor):
        return LowRank(np.zeros((n, 0)), np.zeros(0), 0.0, passes, rows_read)
    q, r = np.linalg.qr(factor.T)
    u, singular, _ = scipy.linalg.svd(r, check_finite=False)
    values = singular**2
    kept = values > max(noise, n * _EPS * float(values[0]))
    # What is left out has the trace `left`; spread evenly over the other directions it is no larger than the last value.
    tail = min(float(values[kept][-1]), max(float(left.sum()) / max(n - len(factor), 1), noise))
    return LowRank(q @ u[:, kept], values[kept], tail, passes, rows_read)


def _independent(block: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a positive semi-definite block (k, k) that are independent, and the lower factor of their block."""
    block = (block + block.T) / 2
    smallest = max(noise, _DEPENDENT * float(block.diagonal().max(initial=0.0)))
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (block,))
    factor, pivots, rank, _ = pstrf(block, lower=1, tol=smallest)
    order = pivots[:rank] - 1
    return order, np.tril(factor[:rank, :rank])


class Float32Factor:
    """`L L^T` of the matrix plus ridge in float32: for float64 solutions it is a preconditioner, of condition near one.

    Args:
        run: the float32 factor and how it came about.
        raised: what was added to the diagonal, besides the ridge, to make the rounded matrix positive definite.
    """

    def __init__(self, run: FactorRun, raised: float) -> None:
        self.run, self.raised = run, raised
        self.factor = run.factor
        self.rank = self.factor.n
        self._smallest: float | None = None

    @property
    def smallest(self) -> float:
        """See `Preconditioner.smallest`. Some twenty solves, once: refinement has no use for it."""
        if self._smallest is None:
            self._smallest = 0.9 * self.factor.smallest_eigenvalue()
        return self._smallest

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """See `Preconditioner.apply`."""
        return self.factor.apply_inverse(x)

    def cost(self) -> str:
        """See `Preconditioner.cost`."""
        return f"float32 factor, {2 * self.rank**2:.2g} flops a vector"


def float32_factor(
    matrix: TileMatrix,
    *,
    name: str,
    ridge: float,
    store: ObjectStore,
    prefix: str,
    executor: Executor,
    memory_bytes: int,
    edge: int | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> Float32Factor:
    """Factor the matrix plus ridge in float32, n^3 / 3 flops.

    Where rounding to float32 has made it indefinite the diagonal is raised until it is not: by what float32 does not know.

    Args:
        matrix: `A`, the other arguments as for `factorise`.
        name: of the matrix.
        ridge: absolute.
        store: where the factor goes.
        prefix: of its keys.
        executor: runs the tasks.
        memory_bytes: for the data of all its workers together.
        edge: rows of a tile of the factor.
        on_tile: called with the number of finished tiles and of all.

    Raises:
        ResourceError: if not even small tiles fit into the memory.
        NumericalError: if the matrix is far from positive definite, or not finite.
    """
    grid = matrix.grid
    largest = max(float(matrix.read(i, i).diagonal().max()) for i in range(grid.tile_rows))
    unit = _EPS_32 * max(largest, float(np.finfo(np.float32).tiny))
    # A factor that is there tells how far an earlier run had to go.
    known = stored_identity(store, prefix)
    before = 0.0
    if known is not None and known == FactorIdentity(name, grid.rows, known.ridge, "float32", known.edge):
        before = max(0.0, known.ridge - ridge)
    for raised in (extra for extra in (0.0, 4 * unit, 40 * unit, 400 * unit, 4000 * unit) if extra >= 0.99 * before):
        try:
            run = factorise(
                matrix,
                name=name,
                ridge=ridge + raised,
                dtype="float32",
                store=store,
                prefix=prefix,
                executor=executor,
                memory_bytes=memory_bytes,
                edge=edge,
                on_tile=on_tile,
                diagnose=False,
            )
        except PivotError:
            continue
        return Float32Factor(run, raised)
    raise NumericalError(
        f"the kernel with ridge {ridge:.3g} is far from positive definite: solver.preconditioner=none says by how much"
    )
