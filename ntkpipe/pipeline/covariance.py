"""Covariances of test outputs over networks (or of a Gaussian process), by batches of test images."""

from __future__ import annotations

import numpy as np

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.linalg.assemble import assemble
from ntkpipe.linalg.cholesky import CholeskyFactor, cholesky
from ntkpipe.pipeline.exact import test_test
from ntkpipe.pipeline.inputs import Inputs
from ntkpipe.pipeline.solving.eigh import eigensystem
from ntkpipe.pipeline.solving.problem import Solved
from ntkpipe.tasks.executor import Executor
from ntkpipe.tiles.layout import Kernel
from ntkpipe.tiles.store import GramStore

# Test images per product with the train-train kernel in a covariance.
_COVARIANCE_ROWS = 1024


def covariances(inputs: Inputs, solved: Solved, times: tuple[float, ...], executor: Executor) -> np.ndarray:
    """(T, R, p) variances or (T, R, p, p) covariances.

    A network trained on images and their flips is the sum of its even and odd part, which know nothing of each other: its
    covariance is the mean of those that their kernels give (docs/mathematics.md). Without flips there is one part.
    """
    total = _part_covariance(inputs, inputs.parts[0], solved, times, executor)
    for gram in inputs.parts[1:]:
        total += _part_covariance(inputs, gram, solved, times, executor)
    return total / len(inputs.parts)


def _part_covariance(
    inputs: Inputs, gram: GramStore, solved: Solved, times: tuple[float, ...], executor: Executor
) -> np.ndarray:
    """As `covariances`, of the kernel in one store."""
    problem, full = solved.problem, inputs.config.predict.covariance == "full"
    p = inputs.n_test
    cross = {k: assemble(inputs.matrix(k, "test", gram)) for k in _needed(problem.name)}
    # The network's own fluctuations are the NNGP's, but for `ntkgp`, whose prior is the NTK.
    prior_kernel: Kernel = "ntk" if problem.name == "ntkgp" else "nngp"
    prior = test_test(inputs, gram, prior_kernel, executor) if full else inputs.diagonal(prior_kernel, "test", gram)
    train = assemble(inputs.matrix("nngp", "train", gram)) if problem.name == "ntk" else np.zeros(0)
    system = None
    if solved.solution is not None and gram == inputs.gram:
        system = gp.Eigensystem(solved.solution.values, solved.solution.basis.T)
    elif solved.solution is not None:
        system = eigensystem(inputs, gram, problem.source, lambda line: None)

    def block(rows: slice, time: float, ridge: float, factor: CholeskyFactor | None) -> np.ndarray:
        own, other, here = cross[problem.source][rows], cross.get("nngp", cross[problem.source])[rows], prior[rows]
        if system is not None and problem.name == "ntk":
            return gp.ntk_covariance(system, own, train, other, here, problem.filter, time, ridge)
        if system is not None:
            return gp.nngp_covariance(system, own, here, problem.filter, time, ridge)
        assert factor is not None
        if problem.name == "ntk":
            return gp.ntk_ensemble_covariance(factor.apply_inverse, own, train, other, here)
        return gp.posterior_covariance(factor.apply_inverse, own, here)

    # Variances go by batches of test images; a full covariance is one block.
    step = p if full else _COVARIANCE_ROWS
    out = np.empty((len(times), len(problem.ridges), *((p, p) if full else (p,))))
    for r, ridge in enumerate(problem.ridges):
        factor = _factor(inputs, gram, problem.source, ridge) if system is None else None
        for t, time in enumerate(times):
            for start in range(0, p, step):
                rows = slice(start, min(start + step, p))
                out[t, r, rows] = block(rows, time, ridge, factor)
    return out


def _needed(name: str) -> tuple[Kernel, ...]:
    needed: dict[str, tuple[Kernel, ...]] = {"ntk": ("ntk", "nngp"), "nngp": ("nngp",), "ntkgp": ("ntk",)}
    return needed[name]


def _factor(inputs: Inputs, gram: GramStore, source: Kernel, ridge: float) -> CholeskyFactor:
    matrix = inputs.matrix(source, "train", gram)
    return cholesky(assemble(matrix, np.float64), ridge=ridge, overwrite=True)
