"""How often a solver goes over the tiles of a kernel, as far as that can be known before it does.

Passes of `krylov` to an error bound of 1e-4 at t = inf without ridge grow with the condition of a kernel, hence with n. Fully
connected networks of depth 3 on CIFAR-10 took

    n          2,500   5,000   10,000   50,000
    NTK           41      56       78      147       about 147 (n / 50,000)^0.42
    NNGP          53      74        -      247       about 247 (n / 50,000)^0.52

Beyond 50,000, and for other networks, that is an extrapolation; ridges and finite times need fewer.

Batches of variances start from as many columns as they have test images, and need fewer passes: 2,000 CIFAR-10 images, three hidden ReLU
layers, batches of 20 took 22 (NNGP), 18 (NTK) and, for ensembles, whose error is of first order, 27; batches of 64 a third less, of 8 a
fifth more.
"""

from __future__ import annotations

from ntkpipe.config import RunConfig, SolverConfig

# Passes at n = 50,000, and the power of n by which they grow.
_AT_50_000 = {"ntk": (147.0, 0.42), "nngp": (247.0, 0.52)}
_LEAST = 5
# A given matrix counts as the dearest posterior.
_OF_A_BATCH = {"nngp": 22, "ntkgp": 18, "ntk": 27, "gram": 22}


def stored_kernel(kernel: str) -> str:
    """The kernel whose tiles a prediction of this name solves with: `nngp` or `ntk`."""
    return "nngp" if kernel == "nngp" else "ntk"


def solved_kernels(config: RunConfig) -> tuple[str, ...]:
    """Kernels that a run solves with, each once: `nngp`, `ntk`; of given matrices `gram`, which counts as `ntk`."""
    return tuple(dict.fromkeys(stored_kernel(kernel) for kernel in config.predict.kernels))


def expected_passes(kernel: str, n: int) -> int:
    """Over the train-train tiles, to a bound of 1e-4 at t = inf without ridge.

    Args:
        kernel: `nngp` or `ntk`.
        n: training images in use.
    """
    passes, power = _AT_50_000[kernel]
    return max(_LEAST, round(passes * (n / 50_000) ** power))


def solver_passes(config: RunConfig, kernel: str, n: int, known: int | None = None) -> int:
    """Of one kernel with the solver of a run; `cg` solves for one ridge after the other, direct
    solvers read the tiles once, or once for each ridge.

    Args:
        config: of the run.
        kernel: `nngp` or `ntk`.
        n: training images in use.
        known: passes of `krylov` and `cg`, if they are known.
    """
    kind = config.solver.kind
    ridges = len(config.predict.ridges)
    if kind in ("krylov", "cg"):
        # Of cg a bound: the preconditioner and the ridge before save some.
        return known or expected_passes(kernel, n) * (ridges if kind == "cg" else 1)
    if kind == "flow":
        return known or flow_passes(config) * ridges
    return 1 if kind == "eigh" else ridges


def flow_passes(config: RunConfig) -> int:
    """Of explicit steps up to the last time, if the largest eigenvalue is that of images of unit variance.

    That was 2.4 n of CIFAR-10 under a network of three hidden ReLU layers, so `rho = 0.24 rate` of ten outputs: steps of `3 / rho` with six
    passes each, or Chebyshev steps where those are fewer, some 60 times the root of the time in units of 1 / rho.
    """
    times = [t for t in config.predict.times or () if t < float("inf")]
    reached = 0.24 * config.predict.learning_rate * max(times, default=0.0)
    return max(_LEAST, round(min(2 * reached, 500 + 60 * reached**0.5)))


def batch_passes(solver: SolverConfig, kernel: str, n: int, columns: int, ridges: int) -> int:
    """Over the train-train tiles for one batch of variances.

    Args:
        solver: `krylov` and `cg` iterate; `cholesky` solves and checks once for each ridge, `eigh` multiplies twice.
        kernel: `nngp`, `ntk`, `ntkgp`, or `gram` of a given matrix.
        n: training images in use.
        columns: test images of the batch.
        ridges: how many.
    """
    if solver.kind == "krylov":
        return min(_OF_A_BATCH[kernel], -(-n // columns))
    if solver.kind == "cg":
        return ridges * _OF_A_BATCH[kernel]
    return 2 * ridges if solver.kind == "cholesky" else 2
