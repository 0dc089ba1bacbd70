"""The solution of block Lanczos: a Krylov basis with its small problem, or the weights that restarts have added up."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntkpipe.dynamics.bounds import krylov_factors
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.dynamics.stopping import resolved
from ntkpipe.dynamics.variance_truncation import quadratic_truncation
from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.solution import Reason
from ntkpipe.solvers.correcting import Inverse, krylov_inverse
from ntkpipe.solvers.solution import LeaveOneOut
from ntkpipe.solvers.spectral import SpectralSolution
from ntkpipe.solvers.stochastic import sampled_leave_one_out
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.uncertainty.filters import Filters, Part, SpaceFilters

if TYPE_CHECKING:
    from ntkpipe.solvers.krylov import Krylov

# Relative growth of the number of steps between checks of the stopping rule for variances. Each check takes an eigendecomposition of the
# projected kernel, of some hundred to some thousand rows. All checks together cost 2.4 times the last one, because the cost is cubic,
# and on average a tenth of the steps is wasted.
_GROWTH = 0.2


@dataclass(frozen=True, repr=False)
class BasisSolution(SpectralSolution):
    """A Krylov basis with its projected kernel, or the weights of a restarted solve."""

    solver: Krylov

    def leave_one_out(self, *, workspace: Workspace | None = None) -> LeaveOneOut:
        """See `Solution.leave_one_out`. It uses a random sample of points."""
        return sampled_leave_one_out(self, workspace or self.workspace)

    def inverse(self, operator: AnyOperator, workspace: Workspace) -> Inverse:
        """See `Solution.inverse`. It uses conjugate gradients, preconditioned with the Ritz vectors of the basis."""
        key, products = self.facts["key"], self.solver.products
        return krylov_inverse(self.name, key, self.space, operator, workspace, products)

    @contextlib.contextmanager
    def filters(self, part: Part, ridges: tuple[float, ...]) -> Iterator[Filters]:
        """See `Solution.filters`. Every batch has its own Krylov space."""
        yield SpaceFilters(self._spaces(part, ridges), self.problem.filter, part.times, ridges, part.rows)

    def state(self) -> dict[str, np.ndarray]:
        """See `Solution.state`."""
        probed = {} if self.probed is None else self.probed.state()
        return self.space.state() | {f"probed_{name}": array for name, array in probed.items()}

    def _spaces(self, part: Part, ridges: tuple[float, ...]) -> Callable[[np.ndarray, bool], KrylovSolution]:
        settings, trained = self.solver, self.problem.filter

        def space(columns: np.ndarray, quadratic: bool) -> KrylovSolution:
            worst = math.inf

            def stop(result: LanczosResult) -> bool:
                nonlocal worst
                solution = KrylovSolution.from_lanczos(result, part.noise, resolved(part.ceiling, part.noise))
                worst = 0.0
                if quadratic and not part.full:
                    for ridge in ridges:
                        found = quadratic_truncation(solution, trained, part.times, ridge)
                        worst = max(worst, float(found.max(initial=0.0)))
                else:
                    kappa = krylov_factors(solution, trained, part.times, ridges)
                    worst = float((2.0 * math.sqrt(part.largest_prior) * kappa + kappa**2).max(initial=0.0))
                return worst <= settings.tolerance

            result = block_lanczos(
                part.operator,
                columns,
                max_steps=settings.max_steps,
                stop=stop,
                check_every=lambda step: step + max(1, math.ceil(_GROWTH * step)),
            )
            if result.reason is Reason.MAX_STEPS:
                raise IncompleteError(
                    f"krylov has not converged for variances of {self.name} after {result.steps} passes: their error bound is "
                    f"{worst:.1e}, above solver.tolerance={settings.tolerance:g} (the largest prior variance is {part.largest_prior:.2g}). "
                    "Run with a larger solver.max_steps or solver.tolerance in a new run_dir, or add a ridge. Finished batches are "
                    "kept."
                )
            return KrylovSolution.from_lanczos(result, part.noise, part.ceiling)

        return space
