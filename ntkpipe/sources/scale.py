"""Checks, before any tile is computed, that a kernel's values fit the range of its floating-point types."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.task import ImageSource, Picked, pairs_task
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task
from ntkpipe.tiles.identity import GramIdentity

# Number of checked images. They are few, because the size of the kernel hardly differs between images.
_LOOKED_AT = 8
# Limits with margins: solvers square kernels and divide by them, entries off the diagonal are smaller, and intermediate
# results are larger.
_SMALLEST = {"float32": 1e-30, "float64": 1e-100}
_LARGEST = {"float32": 1e30, "float64": 1e100}
# Largest accepted difference in units of sqrt(k(x, x) k(x', x')). Overflow or underflow in a layer exceeds it.
_ALIKE = 1e-2


def check_computed_scale(
    images: ImageSource,
    evaluation: Callable[[str], Evaluates],
    identity: GramIdentity,
    n: int,
    solver: SolverConfig,
    executor: Executor,
) -> None:
    """Refuse a computed kernel whose values its dtypes cannot represent.

    Args:
        images: the source of the images.
        evaluation: returns the evaluation of the kernel in a dtype.
        identity: of the kernel's store.
        n: number of training points in use.
        solver: the configured solver.
        executor: computes a few pairs.

    Raises:
        ConfigError: with a suitable dtype, or the parameters that determine the size of the kernel.
    """
    dtype, stored = identity.dtype, identity.stored_dtype
    picked = Picked("train", tuple(int(i) for i in sample_indices(n, _LOOKED_AT)))
    tasks = (
        Task(one, pairs_task, (images, evaluation(one), picked, None)) for one in dict.fromkeys((dtype, "float64"))
    )
    made = dict(values_of(executor, tasks))
    for kernel, exact in made["float64"].items():
        if kernel == "ntk" and not exact.any():
            continue  # a network without trainable layers
        if problem := _problem(exact, "float64"):
            raise ConfigError(f"{_NAMES[kernel]} {problem}: no dtype holds it well. {_REMEDY}")
        for narrow, remedy in {**_narrow(solver), stored: "kernel.dtype", dtype: "kernel.dtype"}.items():
            if problem := _problem(exact, narrow):
                raise ConfigError(
                    f"{_NAMES[kernel]} {problem}: set {remedy}=float64. Or {_REMEDY[0].lower()}{_REMEDY[1:]}"
                )
        root = np.sqrt(np.diagonal(exact))
        size = np.outer(root, root)
        with np.errstate(invalid="ignore"):  # a dead network gives zeros
            off = np.abs(made[dtype][kernel] - exact) / np.where(size > 0, size, 1.0)
        if not (off <= _ALIKE).all():
            raise ConfigError(
                f"{_NAMES[kernel]} has errors of {np.nanmax(off):.0%} or more in {dtype} for some of {len(root)} "
                f"checked points, because the values of a layer leave the range of {dtype} or lose all digits. Set "
                "kernel.dtype=float64"
            )


def check_given_scale(diagonal: np.ndarray, dtype: str, where: str, solver: SolverConfig) -> None:
    """Refuse a given kernel with a diagonal (n,) outside the range of its dtype.

    Raises:
        DataError: with the factor by which to multiply the kernel.
    """
    mean, dtype = float(diagonal.mean()), next(iter(_narrow(solver)), dtype)
    if not _SMALLEST[dtype] <= mean <= _LARGEST[dtype]:
        factor = 10.0 ** -round(math.log10(mean)) if mean > 0 else 0.0
        advice = f"multiply kernel.train and kernel.test by {factor:.0e}" if mean > 0 else "give a kernel"
        raise DataError(
            f"the diagonal of {where} has a mean of {mean:.0e}, at which {dtype} loses digits: {advice}. Relative "
            "ridges and t = inf stay the same; divide finite times by that factor"
        )


def _narrow(solver: SolverConfig) -> dict[str, str]:
    """`float32` with the setting that replaces it, if the solver uses float32; otherwise empty."""
    if solver.kind == "cholesky" and solver.precision != "float64":
        return {"float32": "solver.precision"}
    if solver.kind == "cg" and solver.preconditioner == "float32_factor":
        return {"float32": "solver.preconditioner=cholesky and solver.products"}
    return {"float32": "solver.products"} if solver.products == "float32" else {}


_REMEDY = "Change w_std, b_std or the depth: the size of a kernel grows or falls with every layer by w_std^2 times a constant."


_NAMES = {"nngp": "the NNGP", "ntk": "the NTK", "gram": "the kernel"}


def _problem(kernel: np.ndarray, dtype: str) -> str | None:
    """A clause that says why a dtype cannot represent an exact kernel; None if it can."""
    diagonal = np.diagonal(kernel)
    if not np.isfinite(kernel).all():
        return "is not finite"
    present = diagonal[diagonal > 0]
    if not len(present):
        return "is zero"
    if (middle := float(np.median(present))) < _SMALLEST[dtype]:
        return f"is as small as {middle:.0e}, where {dtype} loses its digits below {_SMALLEST[dtype]:.0e}"
    if diagonal.max() > _LARGEST[dtype]:
        return f"is as large as {diagonal.max():.0e}, where {dtype} overflows not far above {_LARGEST[dtype]:.0e}"
    return None
