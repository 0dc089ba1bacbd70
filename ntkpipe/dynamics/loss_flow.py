"""Gradient flow of any convex loss in function space, by products with the kernel alone.

Outputs follow `f'(t) = -(rate / (n c)) T dl/df`. With dual weights u, `f = T u` on the training points and `T_* u` on test points, that is

    u' = -(dl/df (T u) + ridge u),   in the scaled time s = rate t / (n c).

The state is (u, T u): everything an explicit integrator does is linear in it, so a stage costs one product, that of T with u'.

Errors: two trajectories of a convex loss come closer in the norm of the kernel's function space, `|u|_T^2 = u^T T u`. So local errors add
up at most: the error of a prediction is at most `sqrt(T_**)` times the sum of the local errors' norms. These are estimated, not proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.dynamics.losses import Loss
from ntkpipe.dynamics.stiff_steps import (
    ACCURATE_REACH,
    ACCURATE_STAGES,
    MOST_STAGES,
    Stepped,
    accurate_step,
    chebyshev_step,
    stages_for,
)

# Of a Chebyshev step in units of the time reached; refined by the errors that are met.
_FIRST_SHARE = 0.05


@dataclass(frozen=True)
class FlowState:
    """Where an integration is.

    Args:
        time: scaled.
        x: (2, n, c), dual weights and their product with the kernel.
        slope: likewise, of `x`; None where it is still to be evaluated.
        error: sum of the estimated local errors in the norm of the function space.
        accurate: next step of the accurate method.
        share: next Chebyshev step in units of `time + 1 / rho`.
        steps: taken.
        passes: products that were made.
    """

    time: float
    x: np.ndarray
    slope: np.ndarray | None
    error: float
    accurate: float
    share: float
    steps: int
    passes: int

    @property
    def weights(self) -> np.ndarray:
        """(n, c) dual weights."""
        return self.x[0]

    @property
    def outputs(self) -> np.ndarray:
        """(n, c) outputs at the training points."""
        return self.x[1]


@dataclass(frozen=True)
class LossFlow:
    """The flow of one loss with one ridge.

    Args:
        product: T times (n, c).
        loss: see there.
        targets: (n, c), as the loss takes them.
        ridge: absolute.
        rho: bound on the eigenvalues of T times the loss's curvature, plus the ridge.
        tolerance: of the sum of local errors at the last time, in the norm of the function space.
    """

    product: Callable[[np.ndarray], np.ndarray]
    loss: Loss
    targets: np.ndarray
    ridge: float
    rho: float
    tolerance: float

    def start(self) -> FlowState:
        """Outputs of zero at time 0."""
        return FlowState(0.0, np.zeros((2, *self.targets.shape)), None, 0.0, 0.5 / self.rho, _FIRST_SHARE, 0, 0)

    def field(self, x: np.ndarray) -> np.ndarray:
        """`x'`, with one product."""
        slope = -self.loss.gradient(x[1], self.targets)
        if self.ridge:
            slope -= self.ridge * x[0]
        return np.stack([slope, self.product(slope)])

    def advance(
        self, state: FlowState, time: float, end: float, on_step: Callable[[FlowState], None] | None = None
    ) -> FlowState:
        """The state at a scaled time.

        Args:
            state: to start from, not after it.
            time: to reach.
            end: the last time of all; the tolerance is spread up to it, evenly in the logarithm of time.
            on_step: called after every step.
        """
        while state.time < time:
            state = self._step(state, time, end)
            if on_step is not None:
                on_step(state)
        return state

    def passes_left(self, state: FlowState, end: float) -> int:
        """About how many products the rest takes, if local errors go on as they are."""
        t, left, total = max(state.time, 1 / self.rho), max(end - state.time, 0.0), 0.0
        while left > 0:
            h, stages, _ = self._choice(replace(state, time=t))
            piece = min(left, max(h, 0.1 * t))
            total, t, left = total + stages * piece / h, t + piece, left - piece
        return math.ceil(total)

    def _choice(self, state: FlowState) -> tuple[float, int, bool]:
        """Length and products of the next step, and whether it is a Chebyshev one: of the method that gets farther with one product."""
        short = min(state.accurate, ACCURATE_REACH / self.rho)
        long = state.share * (state.time + 1 / self.rho)
        stages = stages_for(long, self.rho)
        if stages > MOST_STAGES:
            stages, long = MOST_STAGES, (MOST_STAGES - 2) ** 2 / (1.54 * self.rho)
        return (long, stages, True) if long / stages > short / ACCURATE_STAGES else (short, ACCURATE_STAGES, False)

    def _step(self, state: FlowState, until: float, end: float) -> FlowState:
        """One accepted step, not beyond `until`."""
        passes, slope = state.passes, state.slope
        if slope is None:
            slope, passes = self.field(state.x), passes + 1
        while True:
            wished, stages, chebyshev = self._choice(state)
            # Not a step that leaves a tiny one before the time asked for.
            left = until - state.time
            h = left if wished >= left else min(wished, 0.5 * left if wished > 0.75 * left else wished)
            if chebyshev:
                stages = stages_for(h, self.rho)
                made = chebyshev_step(self.field, state.x, slope, h, stages)
            else:
                made = accurate_step(self.field, state.x, slope, h)
            passes += stages
            size = _norm(made)
            allowed = self.tolerance * (math.log1p(self.rho * (state.time + h)) - math.log1p(self.rho * state.time))
            allowed /= math.log1p(self.rho * end)
            ratio = size / allowed if math.isfinite(size) else math.inf
            # Errors of a step are of third and fifth order, what is allowed of first.
            safety, power = (0.8, -0.5) if chebyshev else (0.9, -0.25)
            factor = min(max(safety * ratio**power, 0.2), 5.0) if ratio > 0 else 5.0
            if chebyshev:
                # A step that was cut short proves nothing against the longer one.
                share = h * factor / (state.time + 1 / self.rho)
                state = replace(state, share=share if h == wished or ratio > 1 else max(share, state.share))
            else:
                grown = h * factor
                state = replace(state, accurate=grown if h == wished or ratio > 1 else max(grown, state.accurate))
            if ratio <= 1:
                time = until if h == left else state.time + h
                return replace(
                    state,
                    time=time,
                    x=made.x,
                    slope=made.slope,
                    error=state.error + size,
                    steps=state.steps + 1,
                    passes=passes,
                )


def _norm(made: Stepped) -> float:
    """Of the local error in the kernel's function space: `sqrt(e^T T e)`, all outputs together."""
    return math.sqrt(max(float(np.vdot(made.error[0], made.error[1])), 0.0))
