"""Sensitivities of predictions to errors of the weights' equation, from random vectors; see `dynamics.estimates`."""

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
from ntkpipe.solvers.problem import Problem
from ntkpipe.solvers.workspace import Workspace
from ntkpipe.storage.checksum import digest
from ntkpipe.units import human_seconds

SMALL = 10_000
"""Training points up to which estimates are made whatever they cost."""
SHARE = 0.15
"""Of the passes of a larger solve, counted in columns, that they may take."""
# Random vectors, of small problems and of others. With 8, five standard deviations are exceeded once in 1,000 times.
_PROBES = (16, 8)
# A space is large enough when it has added no more to the sum of squared sensitivities since it was last looked at; and one that had to
# stop is used when it has added no more than the second, with what is missing made up for.
_ENOUGH, _USABLE = 0.05, 0.2
_GROWTH = 0.2
# Vectors of so many bytes fit in any case.
_LEAST_BYTES = 64 << 20


def wanted(problem: Problem) -> bool:
    """Whether errors are estimated where that costs next to nothing."""
    return problem.error_estimate != "false"


def probes(problem: Problem) -> np.ndarray:
    """(n, q) Gaussian vectors, the same for every solve: entries grow as errors of the kernel's rows do."""
    n = problem.kernel.n
    made = np.random.default_rng(41).standard_normal((n, _PROBES[n > SMALL]))
    scaled = np.sqrt(row_scales(problem.kernel.diagonal()))[:, None] * made
    return problem.kernel.copies.average(scaled)


def row_facts(problem: Problem, indices: np.ndarray, noise: float, products: str) -> RowFacts:
    """Of the sampled rows, noise and precision of products of a solve."""
    kernel = problem.kernel
    diagonal = kernel.diagonal()
    scales = row_scales(diagonal)[indices] / kernel.copies.sizes[indices]
    return RowFacts(scales, float(np.mean(diagonal)), kernel.n, noise, float(np.finfo(products).eps))


@dataclass(frozen=True)
class Probed:
    """The space of the random vectors, and what is kept of how it was made.

    Args:
        space: whose targets the vectors are; None where it would have taken too much.
        facts: JSON-ready.
    """

    space: KrylovSolution | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class ProbeSolve:
    """Solves for the random vectors in a Krylov space of their own, to a tenth.

    Args:
        problem: with its times and ridges.
        workspace: where.
        key: names the basis of the targets; this one's name follows from it.
        noise: norm of the errors of the tiles.
        ceiling: an upper bound on the smallest eigenvalue.
    """

    problem: Problem
    workspace: Workspace
    key: str
    noise: float
    ceiling: float

    def checkpoint(self, columns: int) -> StoreCheckpoint:
        """Where the basis is kept."""
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
        """Solve, or take up a solve.

        Args:
            operator: the kernel.
            passes: that the solve for the targets has made.
            columns: of each.
            capacity: vectors that fit.
            checkpoint_every: passes between checkpoints; None keeps nothing.
        """
        problem = self.problem
        if problem.error_estimate == "false":
            return Probed(None, {})
        began, start = time.monotonic(), probes(problem)
        most = max(passes, 1) * 2
        if problem.error_estimate == "auto" and problem.kernel.n > SMALL:
            most = max(1, math.floor(SHARE * passes * columns / start.shape[1]))
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
                f"errors of predictions are not estimated: {result.steps} passes do not tell "
                "(predict.error_estimate=true makes as many as it takes)"
            )
            return Probed(None, facts)
        # What has been missed is made up for, in the root of the sum.
        facts["estimate_factor"] = 1.0 if result.invariant else 1.0 + rule.moved
        self._tell(f"errors estimated in {result.steps} passes, {human_seconds(facts['seconds_estimate'])}")
        return Probed(KrylovSolution.from_lanczos(result, self.noise, self.ceiling), facts)

    def restore(self, facts: dict[str, Any], otherwise: Callable[[str], LinearMap]) -> KrylovSolution | None:
        """The space that an earlier process has made.

        Args:
            facts: of the solve.
            otherwise: from a text to what stands for the kernel; it raises where a pass would have to be made.

        Raises:
            IncompleteError: if it is gone.
        """
        if "estimate_factor" not in facts:
            return None
        start, name = probes(self.problem), self.problem.name
        stub = otherwise(f"the estimates of errors of {name} are incomplete: solve again")
        if not len(self.checkpoint(start.shape[1]).restore()):
            raise IncompleteError(f"the estimates of errors of {name} are gone: solve again")
        steps = int(facts["estimate_passes"])
        result = block_lanczos(stub, start, max_steps=steps, checkpoint=self.checkpoint(start.shape[1]))
        # Another run may have taken more steps on it.
        return KrylovSolution.from_lanczos(_Leading(result, steps), self.noise, self.ceiling)

    def _tell(self, line: str) -> None:
        self.workspace.tell(f"{self.problem.name}: {line}")


def _schedule(step: int) -> int:
    return step + max(1, math.ceil(_GROWTH * step))


def _look_before(step: int) -> int:
    """The last step of the schedule before this one; 0 if there is none."""
    before, at = 0, 1
    while at < step:
        before, at = at, _schedule(at)
    return before


@dataclass(frozen=True)
class _Leading:
    """What block Lanczos had after its first steps, a `BlockKrylov`.

    Args:
        result: of at least so many steps.
        steps: above 0.
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
    """Says when a space of the random vectors is large enough: `z^T F A F z` over them, F the filter, grows from below with every
    step, at the rate at which sensitivities do. It looks at the recurrence alone: a resumed solve stops where another does.

    Attributes:
        moved: the largest relative growth since the look before, over times and ridges.
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
        """(T R,)."""
        problem, space = self.problem, KrylovSolution.from_lanczos(result, self.noise, self.ceiling)
        sums = []
        for time_ in (math.inf,) if problem.times is None else problem.times:
            for ridge in problem.ridges:
                values, cutoff = space.shifted(ridge)
                phi = problem.filter.weights(values, time_, cutoff=cutoff)
                sums.append(float(np.sum(np.abs(space.values) * phi**2 * np.sum(space.targets**2, axis=1))))
        return np.array(sums)
