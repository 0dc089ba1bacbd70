"""Solves with the stored kernel for right-hand sides other than the targets. They reuse what a solve has stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.restarted import RestartedSolution
from ntkpipe.errors import NumericalError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.cg_recurrence import CgStep
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.preconditioner import Preconditioner, nystrom
from ntkpipe.linalg.ritz import RitzPreconditioner
from ntkpipe.linalg.solution import Reason
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.sources.exact_products import PREFIX
from ntkpipe.storage.checksum import content_hash, digest

# Relative residual of a correction. The errors that the stored tiles cause in a correction are 1e-5 to 1e-3 of it, so a smaller residual
# would gain little. The estimates and bounds contain the remaining residual, which is known.
_TOLERANCE = 1e-5
_MAX_STEPS = 1000
_EVERY = 20


class Inverse(Protocol):
    """A function that multiplies columns (n, k) with `(A + ridge)^-1`."""

    def __call__(self, columns: np.ndarray, ridge: float, tolerance: float = _TOLERANCE, /) -> np.ndarray:
        """Solve for columns.

        Args:
            columns: (n, k) right-hand sides.
            ridge: the absolute ridge.
            tolerance: relative residual at which an iterative solver stops. Direct solvers ignore it.

        Returns:
            (n, k).
        """
        ...


def cg_inverse(
    name: str,
    key: str,
    operator: AnyOperator,
    workspace: Workspace,
    products: str,
    preconditioner: Callable[[float], Preconditioner],
) -> Inverse:
    """An `Inverse` by conjugate gradients.

    Args:
        name: name of the kernel, for lines of progress.
        key: key of the kernel; keys of checkpoints add the ridge and the right-hand sides.
        operator: the kernel.
        workspace: stores the vectors, so that an interrupted solve can continue.
        products: precision of the operator's products.
        preconditioner: a function from a ridge to its preconditioner.
    """
    rounding = float(np.finfo(products).eps) / 2

    def solve(columns: np.ndarray, ridge: float, tolerance: float = _TOLERANCE) -> np.ndarray:
        asked = content_hash(np.ascontiguousarray(columns).tobytes())
        part = digest({"key": key, "ridge": ridge.hex(), "columns": asked})
        checkpoint = StoreCheckpoint(workspace.store, f"{PREFIX}/cg.{part}", part)

        what = "correction" if tolerance <= _TOLERANCE else "estimate of the correction's error"

        def tell(step: CgStep) -> None:
            workspace.tell(f"{name}: {what}, {step.step} passes, residual {step.residual:.1e}, wanted {tolerance:.0e}")

        found = block_cg(
            operator,
            columns,
            ridge=ridge,
            preconditioner=preconditioner(ridge),
            tolerance=tolerance,
            max_steps=_MAX_STEPS,
            exact=lambda x: operator.matmul(x, products="float64"),
            rounding=rounding,
            checkpoint=checkpoint,
            checkpoint_every=_EVERY,
            on_step=tell,
        )
        if found.reason is Reason.INDEFINITE:
            raise NumericalError(found.explain(ridge, float(operator.diagonal().mean())))
        workspace.tell(f"{name}: solved for the {what} in {found.iterations} passes", force=True)
        checkpoint.clear()
        return found.value

    return solve


def krylov_inverse(
    name: str,
    key: str,
    space: KrylovSolution | RestartedSolution,
    operator: AnyOperator,
    workspace: Workspace,
    products: str,
) -> Inverse:
    """An `Inverse` by conjugate gradients, preconditioned with the Ritz vectors of a Krylov space.

    A restarted solve keeps no Ritz vectors, so a Nystrom sketch of the kernel takes their place. `space` is the Krylov space, or the
    restarted weights. The other arguments are those of `cg_inverse`.
    """

    def of_space(ridge: float) -> Preconditioner:
        assert isinstance(space, KrylovSolution)
        off = np.linalg.norm(space.tail, axis=0) if len(space.tail) else np.zeros(len(space.values))
        return RitzPreconditioner(space.basis, space.values, space.rotation, off, ridge)

    def sketched(ridge: float) -> Preconditioner:
        return nystrom(operator, ridge=ridge, rounding=float(np.finfo(products).eps) / 2).at(ridge)

    made = of_space if isinstance(space, KrylovSolution) else sketched
    return cg_inverse(name, key, operator, workspace, products, made)
