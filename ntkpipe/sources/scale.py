"""Whether a kernel's numbers lie where floating point holds them: looked at before any tile is computed."""

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

# Images that are looked at: the kernel's size hardly differs between them.
_LOOKED_AT = 8
# A solver squares kernels and divides by them; entries far from the diagonal are smaller than it, and partial results larger.
_SMALLEST = {"float32": 1e-30, "float64": 1e-100}
_LARGEST = {"float32": 1e30, "float64": 1e100}
# In units of sqrt(k(x, x) k(x', x')): a layer in between that overflowed or underflowed leaves a larger difference.
_ALIKE = 1e-2


def check_computed_scale(
    images: ImageSource,
    evaluation: Callable[[str], Evaluates],
    identity: GramIdentity,
    n: int,
    solver: SolverConfig,
    executor: Executor,
) -> None:
    """Refuse a computed kernel that its dtypes cannot hold.

    Args:
        images: that it is computed from.
        evaluation: of the kernel, in a dtype.
        identity: of its store.
        n: training points in use.
        solver: that will work with it.
        executor: where a few pairs are computed.

    Raises:
        ConfigError: naming the dtype that holds it, or the parameters that make it as it is.
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
                f"{_NAMES[kernel]} comes out wrong in {dtype}, by {np.nanmax(off):.0%} of its size or more for some of "
                f"{len(root)} points that were looked at: a layer's numbers leave the range of {dtype}, or lose all their digits "
                "on the way. Set kernel.dtype=float64"
            )


def check_given_scale(diagonal: np.ndarray, dtype: str, where: str, solver: SolverConfig) -> None:
    """Refuse a given kernel by its diagonal (n,).

    Raises:
        DataError: with the factor that mends it.
    """
    mean, dtype = float(diagonal.mean()), next(iter(_narrow(solver)), dtype)
    if not _SMALLEST[dtype] <= mean <= _LARGEST[dtype]:
        factor = 10.0 ** -round(math.log10(mean)) if mean > 0 else 0.0
        advice = f"multiply kernel.train and kernel.test by {factor:.0e}" if mean > 0 else "give a kernel"
        raise DataError(
            f"the diagonal of {where} has a mean of {mean:.0e}, where {dtype} loses digits: {advice}. Relative ridges "
            "and t = inf stay the same; finite times are divided by that factor"
        )


def _narrow(solver: SolverConfig) -> dict[str, str]:
    """`float32`, and the setting with which the solver asks for it; empty if it does not."""
    if solver.kind == "cholesky" and solver.precision != "float64":
        return {"float32": "solver.precision"}
    if solver.kind == "cg" and solver.preconditioner == "float32_factor":
        return {"float32": "solver.preconditioner=nystrom and solver.products"}
    return {"float32": "solver.products"} if solver.products == "float32" else {}


_REMEDY = "Change w_std, b_std or the depth: the size of a kernel grows or falls with every layer by w_std^2 times a constant."


_NAMES = {"nngp": "the NNGP", "ntk": "the NTK", "gram": "the kernel"}


def _problem(kernel: np.ndarray, dtype: str) -> str | None:
    """What is wrong with an exact kernel in a dtype, as a clause."""
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
