"""Exact predictions of infinitely wide neural networks, at any training time, on whole data sets.

From Python (docs/python.md): a `Gram` of a kernel and a `Dataset` is planned and computed, a solver solves with it, and the solution
predicts. `predict_in_memory` is the short form for what fits into memory.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkpipe import finite
    from ntkpipe.cluster.local import LocalExecutor
    from ntkpipe.data.points import Dataset, load_dataset
    from ntkpipe.dynamics.in_memory import predict_in_memory
    from ntkpipe.dynamics.learning_theory import learning_theory
    from ntkpipe.finite.kernel import EmpiricalKernel
    from ntkpipe.finite.sampling import sample
    from ntkpipe.finite.two_layers import catapult
    from ntkpipe.kernels import networks as zoo
    from ntkpipe.kernels.architecture import Architecture
    from ntkpipe.kernels.combined import KernelProduct, KernelSum
    from ntkpipe.planning.plan import RunPlan
    from ntkpipe.predictions.schema import Predictions
    from ntkpipe.propagation.phase import phase
    from ntkpipe.run.compare import compare
    from ntkpipe.run.opened import Run, open_run
    from ntkpipe.run.tuning import tune
    from ntkpipe.solvers.cg import ConjugateGradients
    from ntkpipe.solvers.cholesky import Cholesky
    from ntkpipe.solvers.eigh import Eigh
    from ntkpipe.solvers.flow import Flow
    from ntkpipe.solvers.krylov import Krylov
    from ntkpipe.solvers.problem import Dynamics
    from ntkpipe.solvers.solution import Solution
    from ntkpipe.solvers.spectrum import spectrum
    from ntkpipe.solvers.workspace import Workspace
    from ntkpipe.sources.gram import Gram
    from ntkpipe.tasks.serial import SerialExecutor

__version__ = "0.1.0"
inf = math.inf
"""Training to convergence, as a time."""

# Lazy (PEP 562): importing the package must not drag in JAX, Ray, Zarr or Hydra.
_PUBLIC = {
    "Cholesky": "ntkpipe.solvers.cholesky",
    "ConjugateGradients": "ntkpipe.solvers.cg",
    "Dynamics": "ntkpipe.solvers.problem",
    "Eigh": "ntkpipe.solvers.eigh",
    "KernelProduct": "ntkpipe.kernels.combined",
    "KernelSum": "ntkpipe.kernels.combined",
    "Krylov": "ntkpipe.solvers.krylov",
    "Solution": "ntkpipe.solvers.solution",
    "Workspace": "ntkpipe.solvers.workspace",
    "Architecture": "ntkpipe.kernels.architecture",
    "Dataset": "ntkpipe.data.points",
    "EmpiricalKernel": "ntkpipe.finite.kernel",
    "Flow": "ntkpipe.solvers.flow",
    "Gram": "ntkpipe.sources.gram",
    "LocalExecutor": "ntkpipe.cluster.local",
    "Predictions": "ntkpipe.predictions.schema",
    "Run": "ntkpipe.run.opened",
    "RunPlan": "ntkpipe.planning.plan",
    "SerialExecutor": "ntkpipe.tasks.serial",
    "catapult": "ntkpipe.finite.two_layers",
    "compare": "ntkpipe.run.compare",
    "learning_theory": "ntkpipe.dynamics.learning_theory",
    "load_dataset": "ntkpipe.data.points",
    "open_run": "ntkpipe.run.opened",
    "phase": "ntkpipe.propagation.phase",
    "spectrum": "ntkpipe.solvers.spectrum",
    "predict_in_memory": "ntkpipe.dynamics.in_memory",
    "sample": "ntkpipe.finite.sampling",
    "tune": "ntkpipe.run.tuning",
}
_MODULES = {"finite": "ntkpipe.finite", "zoo": "ntkpipe.kernels.networks"}

__all__ = [
    "Architecture",
    "Cholesky",
    "ConjugateGradients",
    "Dataset",
    "Dynamics",
    "Eigh",
    "EmpiricalKernel",
    "Flow",
    "Gram",
    "KernelProduct",
    "KernelSum",
    "Krylov",
    "LocalExecutor",
    "Predictions",
    "Run",
    "RunPlan",
    "SerialExecutor",
    "Solution",
    "Workspace",
    "__version__",
    "catapult",
    "compare",
    "finite",
    "inf",
    "learning_theory",
    "load_dataset",
    "open_run",
    "phase",
    "predict_in_memory",
    "sample",
    "spectrum",
    "tune",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
