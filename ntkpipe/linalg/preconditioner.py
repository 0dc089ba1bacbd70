"""Preconditioners for conjugate gradients: matrices that are close to the kernel and cheap to invert.

`nystrom` and `pivoted_cholesky` compute a low-rank approximation `A ~ U diag(values) U^T` once, which serves every ridge `mu`:

    M^-1 = I - U diag(1 - (tail + mu) / (values + mu)) U^T        (Frangella, Tropp & Udell 2023, arXiv:2110.02820)

where `tail` is the size of the part that the approximation leaves out. `M >= I`, so the smallest eigenvalue of the preconditioned
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
# Number of vectors of the first sketch. It doubles until the last eigenvalue is at most the second number times the ridge: further vectors
# would find eigenvalues that the ridge hides (2110.02820 proves a condition of 28 for an effective rank near this).
_FIRST_RANK = 64
_NEAR_RIDGE = 10.0
# Columns of one product of a sketch: 256 x 50,000 float64 are 100 MB.
_COLUMNS = 256
# Rows of one request of the pivoted Cholesky.
_PIVOTS = 64
# Least ratio of the smallest to the largest eigenvalue of `F F^T` for which its eigenvectors give those of `F^T F` to about 1e-10.
_ORTHONORMAL = 1e-6
# Largest rank of a sketch. The cost of this number of pivots is negligible, so a smaller matrix may be factored completely.
_SKETCH = 256
# Arithmetic for pivots in units of passes, and their largest number: 2,048 x 50,000 float64 are 0.8 GB.
_PIVOT_PASSES, _MOST_PIVOTS = 10, 2048
# Pivots of one request whose remainder after the other pivots is below this share are left out as dependent.
_DEPENDENT = 1e-8


@runtime_checkable
class Preconditioner(Protocol):
    """A positive definite `M` close to the matrix plus ridge."""

    @property
    def rank(self) -> int:
        """Rank of the approximation."""
        ...

    @property
    def smallest(self) -> float:
        """An approximate lower bound of the smallest eigenvalue of `M`."""
        ...

    def apply(self, x: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
        """`M^-1 x`."""
        ...

    def cost(self) -> str:
        """A text for the user with the kind of the preconditioner and its cost."""
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
        tail: size of the part that is left out, positive if r is.
        passes: number of products with blocks of vectors, or of requests for rows.
        columns: number of vectors in these products, or of rows, in total.
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


def largest_rank(n: int, columns: int, kind: str) -> int:
    """Largest rank of an adaptive approximation.

    A sketch of rank r by products takes as much arithmetic as `r / columns` passes. With the nine independent columns of ten centred
    classes, rank 256 takes as much as 28 passes. Pivots take `4 n r^2` flops in products of large blocks, and no pass. Their rank is
    limited so that they take at most as much arithmetic as ten passes. On 3,000 real images with ten outputs, pivots of rank 387 reduce the
    passes from 76 to 42 (NTK) and from 117 to 53 (NNGP; `benchmarks/cg_vs_plain.py --n 3000`).

    Args:
        n: number of rows of the matrix.
        columns: number of right-hand sides.
        kind: `nystrom` or `cholesky`.
    """
    if kind == "nystrom":
        return max(1, min(n // 4, _SKETCH))
    affordable = min(math.isqrt(_PIVOT_PASSES * n * columns // 2), _MOST_PIVOTS)
    return max(min(n, _SKETCH), min(n // 4, affordable))


def nystrom(
    operator: LinearMap,
    *,
    ridge: float,
    rank: int | None = None,
    columns: int = 10,
    rounding: float = _EPS,
    seed: int = 0,
) -> LowRank:
    """Randomised Nystrom approximation `(A W) (W^T A W)^+ (A W)^T` from products with random vectors W.

    Args:
        operator: `A`, positive semi-definite to rounding.
        ridge: the smallest absolute ridge of the solves.
        rank: number of random vectors. None doubles it until the smallest eigenvalue found is near the ridge, or
            `largest_rank` is reached.
        columns: number of right-hand sides of the solves.
        rounding: unit roundoff of the products.
        seed: seed of the random vectors.

    Raises:
        NumericalError: if a product is not finite.
    """
    n = operator.n
    rng = np.random.default_rng(seed)
    limit = largest_rank(n, columns, "nystrom") if rank is None else min(rank, n)
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

    Rounding makes the core `W^T A W` indefinite. A shift of that size makes it positive definite, and is subtracted at the end
    (algorithm 2.1 of arXiv:2110.02820).
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
                    "the sketch of the kernel is not positive semi-definite: set solver.preconditioner=none; its error "
                    "then states how indefinite the kernel is"
                ) from None
            continue
        break
    half = scipy.linalg.solve_triangular(factor, shifted.T, lower=True, check_finite=False)
    q, r = np.linalg.qr(half.T)
    u, singular, _ = scipy.linalg.svd(r, check_finite=False)
    values = singular**2 - shift
    kept = values > max(shift, len(tests) * rounding * float(values[0]) / 16)
    return q @ u[:, kept], values[kept]


def pivoted_cholesky(
    operator: Operator, *, ridge: float, rank: int | None = None, columns: int = 10, seed: int = 0
) -> LowRank:
    """Partial Cholesky factorisation `A ~ L L^T` from rows of the matrix, without products.

    Pivots are drawn with probabilities proportional to the remaining diagonal (arXiv:2207.06503). A block of pivots is drawn at a time, so
    that a stored tile is read once for many pivots. Dependent pivots of a block are left out.

    Args:
        operator: `A`, positive semi-definite to rounding.
        ridge: the smallest absolute ridge of the solves.
        rank: number of pivots. None adds pivots until the mean of the remaining diagonal is below the ridge, or
            `largest_rank` is reached.
        columns: number of right-hand sides of the solves.
        seed: seed of the pivots.

    Raises:
        NumericalError: if a row is not finite.
    """
    n = operator.n
    rng = np.random.default_rng(seed)
    limit = largest_rank(n, columns, "cholesky") if rank is None else min(rank, n)
    diagonal = operator.diagonal()
    if not np.isfinite(diagonal).all():
        raise NumericalError("the diagonal of the kernel is not finite: run `ntkpipe verify` to find the damaged tile")
    left, factor, made = diagonal.copy(), np.empty((limit, n)), 0
    # Largest remaining diagonal entry that may consist of rounding errors only.
    noise = 8 * math.sqrt(n) * _EPS * max(float(diagonal.max(initial=0.0)), 0.0)
    passes = rows_read = 0
    while made < limit and left.sum() > n * max(noise, 0.0 if rank is not None else ridge):
        weights = np.where(left > noise, left, 0.0)
        if not weights.any():
            break
        count = min(_PIVOTS, limit - made, int(np.count_nonzero(weights)))
        pivots = np.sort(rng.choice(n, size=count, replace=False, p=weights / weights.sum()))
        rows = operator.rows(pivots)
        if not np.isfinite(rows).all():
            raise NumericalError("a row of the kernel is not finite: run `ntkpipe verify` to find the damaged tile")
        passes, rows_read = passes + 1, rows_read + count
        rows = rows - factor[:made, pivots].T @ factor[:made]
        order, triangle = _independent(rows[:, pivots], noise)
        if not len(order):
            left[pivots] = 0.0
            continue
        new = scipy.linalg.solve_triangular(triangle, rows[order], lower=True, check_finite=False)
        factor[made : made + len(new)] = new
        made += len(new)
        left = np.maximum(left - np.einsum("ij,ij->j", new, new), 0.0)
        left[pivots] = 0.0
    if not made:
        return LowRank(np.zeros((n, 0)), np.zeros(0), 0.0, passes, rows_read)
    vectors, values = _left_singular(factor[:made], max(noise, n * _EPS * float(diagonal.max())))
    # The remaining part has the trace `left.sum()`. The tail is its mean over the other directions, and at most the last value. If
    # nothing remains, a smaller tail would only hide the smallest eigenvalue from the solver.
    tail = float(values[-1])
    if left.sum() > n * noise:
        tail = min(tail, max(float(left.sum()) / max(n - made, 1), noise))
    return LowRank(vectors, values, tail, passes, rows_read)


def _left_singular(factor: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and eigenvalues above `least` (descending) of `F^T F`, F of shape (r, n) with r below n.

    Eigenvectors of `F F^T` give them with an accuracy of `eps values[0] / values[-1]`, in half the time of a QR factorisation. The QR
    factorisation is used if they would not be orthonormal enough.
    """
    squared, u = scipy.linalg.eigh(factor @ factor.T, driver="evd", check_finite=False)
    if squared[0] > max(least, _ORTHONORMAL * squared[-1]):
        return (factor.T @ u[:, ::-1]) / np.sqrt(squared[::-1]), squared[::-1]
    q, r = np.linalg.qr(factor.T)
    u, singular, _ = scipy.linalg.svd(r, check_finite=False)
    values = singular**2
    kept = values > max(least, len(q) * _EPS * float(values[0]))
    return q @ u[:, kept], values[kept]


def _independent(block: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of independent rows of a positive semi-definite block (k, k), and the lower Cholesky factor of their block."""
    block = (block + block.T) / 2
    smallest = max(noise, _DEPENDENT * float(block.diagonal().max(initial=0.0)))
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (block,))
    factor, pivots, rank, _ = pstrf(block, lower=1, tol=smallest)
    order = pivots[:rank] - 1
    return order, np.tril(factor[:rank, :rank])


class Float32Factor:
    """The float32 Cholesky factor of the matrix plus ridge, as a preconditioner. The preconditioned condition is near one.

    Args:
        run: the float32 factor and facts about its computation.
        raised: number that was added to the diagonal besides the ridge, to make the rounded matrix positive definite.
    """

    def __init__(self, run: FactorRun, raised: float) -> None:
        self.run, self.raised = run, raised
        self.factor = run.factor
        self.rank = self.factor.n
        self._smallest: float | None = None

    @property
    def smallest(self) -> float:
        """See `Preconditioner.smallest`. It takes about twenty solves, so it is computed only when it is needed."""
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
    """Factor the matrix plus ridge in float32 with n^3 / 3 flops.

    Rounding to float32 may make the matrix indefinite. The diagonal is then raised, by multiples of float32 rounding errors, until the
    matrix is positive definite.

    Args:
        matrix: `A`. All arguments are as for `factorise`.
        name: digest of the content of the matrix.
        ridge: absolute.
        store: stores the factor.
        prefix: prefix of its keys.
        executor: runs the tasks.
        memory_bytes: memory for the data of all workers together.
        edge: number of rows of a tile of the factor; None chooses it.
        on_tile: called with the number of finished tiles and the number of all tiles.

    Raises:
        ResourceError: if the memory is too small even for small tiles.
        NumericalError: if the matrix is far from positive definite, or not finite.
    """
    grid = matrix.grid
    largest = max(float(matrix.read(i, i).diagonal().max()) for i in range(grid.tile_rows))
    unit = _EPS_32 * max(largest, float(np.finfo(np.float32).tiny))
    # A stored factor contains the amount by which an earlier run had to raise the diagonal.
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
        f"the kernel with ridge {ridge:.3g} is far from positive definite: set solver.preconditioner=none; its "
        "error then states how indefinite the kernel is"
    )
