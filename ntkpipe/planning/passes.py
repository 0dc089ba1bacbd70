"""Estimates of the number of passes of a solver over the tiles of a kernel.

The passes of `krylov` to an error bound of 1e-4 at t = inf without ridge grow with the condition number of the kernel, and
so with n. Fully connected networks of depth 3 on CIFAR-10 took

    n          2,500   5,000   10,000   50,000
    NTK           41      56       78      147       about 147 (n / 50,000)^0.42
    NNGP          53      74        -      247       about 247 (n / 50,000)^0.52

This is an extrapolation for n above 50,000 and for other networks. Ridges and finite times need fewer passes.

A batch of variances starts from one column per test image and needs fewer passes. With 2,000 CIFAR-10 images and three
hidden ReLU layers, batches of 20 took 22 passes (NNGP), 18 (NTK), and 27 for ensembles, whose error is of first order.
Batches of 64 took a third less, batches of 8 a fifth more.
"""

from __future__ import annotations

from ntkpipe.config import RunConfig, SolverConfig

ESTIMATE_SHARE = 0.15
"""Of the time of the passes of a solve, what passes with random vectors take, from which errors are estimated: at most so much of a
large solve, counted in columns, and measured of small ones (docs/bounds.md)."""

# Passes at n = 50,000, and the power of n with which they grow.
_AT_50_000 = {"ntk": (147.0, 0.42), "nngp": (247.0, 0.52)}
_LEAST = 5
# Passes with `solver.stop=estimate` relative to `solver.stop=bound`: 110 of 147 (NTK) and 179 of 247 (NNGP) at 50,000.
_OF_ESTIMATE = 0.74
# Passes with a low-rank preconditioner relative to those without: 42 of 76 (NTK) and 53 of 117 (NNGP) for 3,000 real
# images; 84 for 50,000 (NTK, residual 1e-6), where krylov took 147 to its bound.
_PRECONDITIONED = 0.57
# Given matrices are planned like the most expensive posterior.
_OF_A_BATCH = {"nngp": 22, "ntkgp": 18, "ntk": 27, "gram": 22}


def stored_kernel(kernel: str) -> str:
    """The kernel whose tiles a prediction of this name uses: `nngp` or `ntk`."""
    return "nngp" if kernel == "nngp" else "ntk"


def solved_kernels(config: RunConfig) -> tuple[str, ...]:
    """The distinct kernels that a run solves: `nngp`, `ntk`, or for given matrices `gram`, which counts as `ntk`."""
    return tuple(dict.fromkeys(stored_kernel(kernel) for kernel in config.predict.kernels))


def expected_passes(kernel: str, n: int) -> int:
    """Expected passes over the train-train tiles to an error bound of 1e-4 at t = inf without ridge.

    Args:
        kernel: `nngp` or `ntk`.
        n: number of training images in use.
    """
    passes, power = _AT_50_000[kernel]
    return max(_LEAST, round(passes * (n / 50_000) ** power))


def solver_passes(config: RunConfig, kernel: str, n: int, known: int | None = None) -> int:
    """Passes of a run's solver for one kernel. `cg` solves one ridge after the other; direct solvers read the tiles
    once, or once per ridge.

    Args:
        config: of the run.
        kernel: `nngp` or `ntk`.
        n: training images in use.
        known: passes of `krylov` and `cg`, if they are known.
    """
    kind = config.solver.kind
    ridges = len(config.predict.ridges)
    if kind in ("krylov", "cg"):
        if kind == "krylov":
            share = _OF_ESTIMATE if config.solver.stop == "estimate" else 1.0
            return known or max(_LEAST, round(share * expected_passes(kernel, n)))
        # An upper bound: the previous ridge's solution saves passes.
        low_rank = config.solver.preconditioner in ("cholesky", "nystrom")
        return known or max(_LEAST, round(expected_passes(kernel, n) * (_PRECONDITIONED if low_rank else 1))) * ridges
    if kind == "flow":
        return known or flow_passes(config) * ridges
    return 1 if kind == "eigh" else ridges


def flow_passes(config: RunConfig) -> int:
    """Passes of explicit steps up to the last time, if the largest eigenvalue is that of images of unit variance.

    That was 2.4 n of CIFAR-10 under a network of three hidden ReLU layers, so `rho = 0.24 rate` of ten outputs: steps of `3 / rho` with six
    passes each, or Chebyshev steps where those are fewer, some 60 times the root of the time in units of 1 / rho.
    """
    times = [t for t in config.predict.times or () if t < float("inf")]
    reached = 0.24 * config.predict.learning_rate * max(times, default=0.0)
    return max(_LEAST, round(min(2 * reached, 500 + 60 * reached**0.5)))


def batch_passes(solver: SolverConfig, kernel: str, n: int, columns: int, ridges: int) -> int:
    """Expected passes over the train-train tiles for one batch of variances.

    Args:
        solver: `krylov` and `cg` iterate; `cholesky` solves and checks once for each ridge, `eigh` multiplies twice.
        kernel: `nngp`, `ntk`, `ntkgp`, or `gram` of a given matrix.
        n: training images in use.
        columns: number of test images of the batch.
        ridges: number of ridges.
    """
    if solver.kind == "krylov":
        return min(_OF_A_BATCH[kernel], -(-n // columns))
    if solver.kind == "cg":
        return ridges * _OF_A_BATCH[kernel]
    return 2 * ridges if solver.kind == "cholesky" else 2
