"""Sensitivities of predictions to errors in the equation of the weights, from random vectors; see `dynamics.estimates`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.dynamics.estimates import RowFacts, row_scales
from ntkpipe.dynamics.krylov import BlockKrylov, KrylovSolution
from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.copies import AnyOperator
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import LinearMap
from ntkpipe.linalg.solution import Reason
from ntkpipe.planning.passes import ESTIMATE_SHARE
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.storage.checksum import digest
from ntkpipe.units import human_seconds

SMALL = 10_000
"""Largest number of training points for which `error_estimate=auto` does not limit the cost of estimates to a share of the solve."""
# Number of random vectors for small problems and for others. With 8, an error exceeds five estimated standard deviations once in 1,000
# cases.
_PROBES = (16, 8)
# The space is large enough if the sum of squared sensitivities has grown by at most the first share since the last check. A space that
# reached its largest size is used if the sum has grown by at most the second share; a factor then makes up for the missing part.
_ENOUGH, _USABLE = 0.05, 0.2
_GROWTH = 0.2
# Memory that the vectors may use in any case.
_LEAST_BYTES = 64 << 20


def wanted(problem: Problem) -> bool:
    """Whether errors are estimated if the cost is negligible."""
    return problem.error_estimate != "false"


def probes(problem: Problem) -> np.ndarray:
    """(n, q) Gaussian vectors, the same for every solve. The entries are scaled like the errors of the kernel's rows."""
    n = problem.kernel.n
    made = np.random.default_rng(41).standard_normal((n, _PROBES[n > SMALL]))
    scaled = np.sqrt(row_scales(problem.kernel.diagonal()))[:, None] * made
    return problem.kernel.copies.average(scaled)


def row_facts(problem: Problem, indices: np.ndarray, noise: float, products: str) -> RowFacts:
    """The facts that turn sampled rows into an estimate for all rows; see `RowFacts`.

    Args:
        problem: the problem of the solve.
        indices: (k,) sampled rows.
        noise: norm of the errors of the tiles.
        products: precision of products, `float64` or `float32`.
    """
    kernel = problem.kernel
    diagonal = kernel.diagonal()
    scales = row_scales(diagonal)[indices] / kernel.copies.sizes[indices]
    return RowFacts(scales, float(np.mean(diagonal)), kernel.n, noise, float(np.finfo(products).eps))


@dataclass(frozen=True)
class Probed:
    """The Krylov space of the random vectors.

    Args:
        space: the space; its targets are the random vectors. None without estimates, or if the space did not settle.
        facts: facts about the solve, JSON-ready.
    """

    space: KrylovSolution | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class ProbeSolve:
    """Solves for the random vectors in their own Krylov space, with a relative accuracy of about a tenth.

    Args:
        problem: the problem, with its times and ridges.
        workspace: the environment of the solve.
        key: key of the basis of the targets, from which the key of this basis is derived.
        noise: norm of the errors of the tiles.
        ceiling: an upper bound on the smallest eigenvalue.
    """

    problem: Problem
    workspace: Workspace
    key: str
    noise: float
    ceiling: float

    def checkpoint(self, columns: int) -> StoreCheckpoint:
        """The checkpoint of the basis for this number of random vectors."""
        name = digest({"key": self.key, "probes": columns})
        return StoreCheckpoint(self.workspace.store, f"krylov/{self.key}.{name}", name)

    def run(
        self,
        operator: AnyOperator,
        passes: int,
        columns: int,
        capacity: int,
        *,
        checkpoint_every: int | None = None,
    ) -> Probed:
        """Solve, or continue an interrupted solve.

        Args:
            operator: the kernel.
            passes: number of passes of the solve for the targets.
            columns: number of columns in each of these passes.
            capacity: number of vectors that fit into memory.
            checkpoint_every: number of passes between checkpoints; None stores nothing.
        """
        problem = self.problem
        if problem.error_estimate == "false":
            return Probed(None, {})
        began, start = time.monotonic(), probes(problem)
        # A solve with a good preconditioner takes few passes, and random vectors many: at most those that make the space complete.
        most = max(2 * passes, -(-problem.kernel.n // start.shape[1]) + 1)
        if problem.error_estimate == "auto" and problem.kernel.n > SMALL:
            most = max(1, math.floor(ESTIMATE_SHARE * passes * columns / start.shape[1]))
        rule = _Settled(problem, self.noise, self.ceiling)
        self._tell("estimating errors of predictions")
        result = block_lanczos(
            operator,
            start,
            max_steps=most,
            max_vectors=max(capacity, _LEAST_BYTES // (8 * operator.n)),
            stop=rule,
            check_every=_schedule,
            checkpoint=None if checkpoint_every is None else self.checkpoint(start.shape[1]),
            checkpoint_every=checkpoint_every or most,
            on_step=lambda record: self._tell(f"estimating errors of predictions, {record.step} passes"),
        )
        settled = result.reason in (Reason.CONVERGED, Reason.INVARIANT)
        facts: dict[str, Any] = {
            "estimate_passes": result.steps,
            "estimate_columns": start.shape[1],
            "seconds_estimate": time.monotonic() - began,
        }
        if not settled and rule.moved > _USABLE:
            self._tell(
                f"errors of predictions are not estimated: {result.steps} passes are too few "
                "(predict.error_estimate=true allows twice the passes of the solve)"
            )
            return Probed(None, facts)
        # The factor makes up for the part of the sum that the space has missed.
        facts["estimate_factor"] = 1.0 if result.invariant else 1.0 + rule.moved
        self._tell(f"errors estimated in {result.steps} passes, {human_seconds(facts['seconds_estimate'])}")
        return Probed(KrylovSolution.from_lanczos(result, self.noise, self.ceiling), facts)

    def restore(self, facts: dict[str, Any], otherwise: Callable[[str], LinearMap]) -> KrylovSolution | None:
        """The space that an earlier process has computed; None if it computed no estimates.

        Args:
            facts: facts of the solve.
            otherwise: makes a placeholder for the kernel from the text of an error, which it raises if a pass is needed.

        Raises:
            IncompleteError: if the stored space is missing or incomplete.
        """
        if "estimate_factor" not in facts:
            return None
        start, name = probes(self.problem), self.problem.name
        stub = otherwise(f"the estimates of errors of {name} are incomplete: solve again")
        if not len(self.checkpoint(start.shape[1]).restore()):
            raise IncompleteError(f"the estimates of errors of {name} are gone: solve again")
        steps = int(facts["estimate_passes"])
        result = block_lanczos(stub, start, max_steps=steps, checkpoint=self.checkpoint(start.shape[1]))
        # Another run may have extended the space, so only its first steps are used.
        return KrylovSolution.from_lanczos(_Leading(result, steps), self.noise, self.ceiling)

    def _tell(self, line: str) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}")


def _schedule(step: int) -> int:
    return step + max(1, math.ceil(_GROWTH * step))


def _look_before(step: int) -> int:
    """The last step of the schedule before `step`; 0 if there is none."""
    before, at = 0, 1
    while at < step:
        before, at = at, _schedule(at)
    return before


@dataclass(frozen=True)
class _Leading:
    """The first steps of a block Lanczos result, as a `BlockKrylov`.

    Args:
        result: a result of at least `steps` steps.
        steps: number of steps, above 0.
    """

    result: LanczosResult
    steps: int

    @property
    def block_sizes(self) -> list[int]:
        """See `BlockKrylov`."""
        return self.result.block_sizes[: self.steps]

    @property
    def basis(self) -> np.ndarray:
        """See `BlockKrylov`."""
        return self.result.basis[: sum(self.block_sizes)]

    @property
    def projected(self) -> np.ndarray:
        """See `BlockKrylov`."""
        m = sum(self.block_sizes)
        return self.result.projected[:m, :m]

    @property
    def coupling(self) -> np.ndarray:
        """See `BlockKrylov`."""
        if self.steps >= len(self.result.block_sizes):
            return self.result.coupling
        m, (last, following) = sum(self.block_sizes), self.result.block_sizes[self.steps - 1 : self.steps + 1]
        return self.result.projected[m : m + following, m - last : m]

    @property
    def start(self) -> np.ndarray:
        """See `BlockKrylov`."""
        return self.result.start

    @property
    def next_block(self) -> np.ndarray:
        """See `BlockKrylov`."""
        if self.steps >= len(self.result.block_sizes):
            return self.result.next_block
        m = sum(self.block_sizes)
        return self.result.basis[m : m + self.result.block_sizes[self.steps]]


@dataclass
class _Settled:
    """The rule that stops when the space of the random vectors z is large enough.

    With the filter F, the sum of `z^T F A F z` over the vectors grows with every step, at the same rate as the squared sensitivities.
    The rule depends only on the recurrence, so a resumed solve stops at the same step.

    Attributes:
        moved: largest relative growth of the sum since the last check, over times and ridges.
    """

    problem: Problem
    noise: float
    ceiling: float
    moved: float = math.inf

    def __call__(self, result: LanczosResult) -> bool:
        before = _look_before(len(result.block_sizes))
        if not before:
            return False
        now, last = self._sums(result), self._sums(_Leading(result, before))
        self.moved = float(np.max(np.abs(now - last) / np.where(now > 0, now, 1.0), initial=0.0))
        return self.moved <= _ENOUGH

    def _sums(self, result: BlockKrylov) -> np.ndarray:
        """The sums (T R,) of `z^T F A F z` over the random vectors."""
        problem, space = self.problem, KrylovSolution.from_lanczos(result, self.noise, self.ceiling)
        sums = []
        for time_ in (math.inf,) if problem.times is None else problem.times:
            for ridge in problem.ridges:
                values, cutoff = space.shifted(ridge)
                phi = problem.filter.weights(values, time_, cutoff=cutoff)
                sums.append(float(np.sum(np.abs(space.values) * phi**2 * np.sum(space.targets**2, axis=1))))
        return np.array(sums)
