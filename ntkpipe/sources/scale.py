"""Whether a kernel's numbers lie where floating point holds them: looked at before any tile is computed."""

from __future__ import annotations

import math

import numpy as np

from ntkpipe.config import SolverConfig
from ntkpipe.dynamics.sampling import sample_indices
from ntkpipe.errors import ConfigError, DataError
from ntkpipe.gram.task import Picked, pairs_task
from ntkpipe.gram.worker import Evaluation
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.tasks.executor import Executor, values_of
from ntkpipe.tasks.graph import Task

# Images that are looked at: the kernel's size hardly differs between them.
_LOOKED_AT = 8
# A solver squares kernels and divides by them; entries far from the diagonal are smaller than it, and partial results larger.
_SMALLEST = {"float32": 1e-30, "float64": 1e-100}
_LARGEST = {"float32": 1e30, "float64": 1e100}
# In units of sqrt(k(x, x) k(x', x')): a layer in between that overflowed or underflowed leaves a larger difference.
_ALIKE = 1e-2


def check_scale(inputs: Inputs, executor: Executor) -> None:
    """Refuse a kernel that its dtype cannot hold; of a given one look at the diagonal.

    Args:
        inputs: of the run.
        executor: where a few pairs are computed.

    Raises:
        ConfigError: naming the dtype that holds it, or the parameters that make it as it is.
        DataError: of a given kernel.
    """
    if inputs.job is None:
        _check_given(inputs)
        return
    dtype, stored = inputs.config.kernel.dtype, inputs.config.store_dtype
    images = Picked("train", tuple(int(i) for i in sample_indices(inputs.n_train, _LOOKED_AT)))
    wanted = [Evaluation.of(inputs.spec, "none", one) for one in dict.fromkeys((dtype, "float64"))]
    tasks = (Task(e.dtype, pairs_task, (inputs.job.images, e, images, None)) for e in wanted)
    made = dict(values_of(executor, tasks))
    for kernel, exact in made["float64"].items():
        if kernel == "ntk" and not exact.any():
            continue  # a network without trainable layers
        if problem := _problem(exact, "float64"):
            raise ConfigError(f"{_named(kernel)} {problem}: no dtype holds it well. {_REMEDY}")
        for narrow, remedy in {**_narrow(inputs.config.solver), stored: "kernel.dtype", dtype: "kernel.dtype"}.items():
            if problem := _problem(exact, narrow):
                raise ConfigError(
                    f"{_named(kernel)} {problem}: set {remedy}=float64. Or {_REMEDY[0].lower()}{_REMEDY[1:]}"
                )
        root = np.sqrt(np.diagonal(exact))
        with np.errstate(invalid="ignore"):
            off = np.abs(made[dtype][kernel] - exact) / np.outer(root, root)
        if not (off <= _ALIKE).all():
            raise ConfigError(
                f"{_named(kernel)} comes out wrong in {dtype}, by {np.nanmax(off):.0%} of its size or more for some of "
                f"{len(root)} images that were looked at: a layer's numbers leave the range of {dtype}, or lose all their digits "
                "on the way. Set kernel.dtype=float64"
            )


def _narrow(solver: SolverConfig) -> dict[str, str]:
    """`float32`, and the setting with which the solver asks for it; empty if it does not."""
    if solver.kind == "cholesky" and solver.precision != "float64":
        return {"float32": "solver.precision"}
    if solver.kind == "cg" and solver.preconditioner == "float32_factor":
        return {"float32": "solver.preconditioner=nystrom and solver.products"}
    return {"float32": "solver.products"} if solver.products == "float32" else {}


_REMEDY = "Change w_std, b_std or the depth: the size of a kernel grows or falls with every layer by w_std^2 times a constant."


def _named(kernel: str) -> str:
    return {"nngp": "the NNGP", "ntk": "the NTK"}[kernel]


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


def _check_given(inputs: Inputs) -> None:
    diagonal, dtype = inputs.diagonal("gram", "train"), str(inputs.matrix("gram", "train").dtype)
    mean, dtype = float(diagonal.mean()), next(iter(_narrow(inputs.config.solver)), dtype)
    if not _SMALLEST[dtype] <= mean <= _LARGEST[dtype]:
        factor = 10.0 ** -round(math.log10(mean)) if mean > 0 else 0.0
        advice = f"multiply kernel.train and kernel.test by {factor:.0e}" if mean > 0 else "give a kernel"
        raise DataError(
            f"the diagonal of {inputs.gram.where} has a mean of {mean:.0e}, where {dtype} loses digits: {advice}. Relative ridges "
            "and t = inf stay the same; finite times are divided by that factor"
        )
