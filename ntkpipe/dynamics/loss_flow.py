"""Gradient flow of any convex loss in function space. It needs only products with the kernel.

Outputs follow `f'(t) = -(rate / (n c)) T dl/df`. With dual weights u, outputs are `f = T u` on the training points and `T_* u` on test
points. Then

    u' = -(dl/df (T u) + ridge u),   in the scaled time s = rate t / (n c).

The state is (u, T u). An explicit integrator only forms linear combinations of states and slopes, so a stage costs one product, T u'.

The distance of two trajectories of a convex loss decreases in the norm of the kernel's function space, `|u|_T^2 = u^T T u`. So the error
of a prediction is at most `sqrt(T_**)` times the sum of the norms of the local errors. These norms are estimates, not bounds.

A kink of the gradient inside a step (Huber loss) lowers the order of this step, which the estimate of its method does not see. The
slopes of the step show which outputs have passed a kink, and how far. This gives a second estimate, which is added to the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ntkpipe.dynamics.losses import Loss
from ntkpipe.dynamics.stiff_steps import (
    ACCURATE_KINK,
    ACCURATE_REACH,
    ACCURATE_STAGES,
    CHEBYSHEV_KINK,
    MOST_STAGES,
    accurate_step,
    chebyshev_step,
    stages_for,
)

# Length of the first Chebyshev step, in units of the time reached. Error estimates then adapt it.
_FIRST_SHARE = 0.05


@dataclass(frozen=True)
class FlowState:
    """The state of an integration.

    Args:
        time: scaled time.
        x: (2, n, c) dual weights, and their product with the kernel.
        slope: (2, n, c) derivative of `x`; None if it is not evaluated yet.
        error: sum of the estimated local errors in the norm of the function space.
        accurate: length of the next step of the accurate method.
        share: length of the next Chebyshev step in units of `time + 1 / rho`.
        steps: number of steps.
        passes: number of products with the kernel.
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
        """The dual weights (n, c)."""
        return self.x[0]

    @property
    def outputs(self) -> np.ndarray:
        """The outputs (n, c) at the training points."""
        return self.x[1]


@dataclass(frozen=True)
class LossFlow:
    """The flow of one loss with one ridge.

    Args:
        product: multiplies T with an array (n, c).
        loss: the loss.
        targets: (n, c) targets in the format of the loss.
        ridge: absolute.
        rho: bound on the eigenvalues of T times the curvature of the loss, plus the ridge.
        tolerance: largest sum of local errors at the last time, in the norm of the function space.
    """

    product: Callable[[np.ndarray], np.ndarray]
    loss: Loss
    targets: np.ndarray
    ridge: float
    rho: float
    tolerance: float

    def start(self) -> FlowState:
        """The state at time 0, with outputs of zero."""
        return FlowState(0.0, np.zeros((2, *self.targets.shape)), None, 0.0, 0.5 / self.rho, _FIRST_SHARE, 0, 0)

    def field(self, x: np.ndarray) -> np.ndarray:
        """The derivative of `x`, which takes one product."""
        slope = -self.loss.gradient(x[1], self.targets)
        if self.ridge:
            slope -= self.ridge * x[0]
        return np.stack([slope, self.product(slope)])

    def advance(
        self, state: FlowState, time: float, end: float, on_step: Callable[[FlowState], None] | None = None
    ) -> FlowState:
        """The state at a scaled time.

        Args:
            state: the state to start from, at most at this time.
            time: the scaled time to reach.
            end: the last of all times. The tolerance is distributed up to it, evenly in the logarithm of time.
            on_step: called after every step.
        """
        while state.time < time:
            state = self._step(state, time, end)
            if on_step is not None:
                on_step(state)
        return state

    def passes_left(self, state: FlowState, end: float) -> int:
        """Estimated number of products up to the time `end`, if local errors stay at the present level."""
        t, left, total = max(state.time, 1 / self.rho), max(end - state.time, 0.0), 0.0
        while left > 0:
            h, stages, _ = self._choice(replace(state, time=t))
            piece = min(left, max(h, 0.1 * t))
            total, t, left = total + stages * piece / h, t + piece, left - piece
        return math.ceil(total)

    def _choice(self, state: FlowState) -> tuple[float, int, bool]:
        """Length and number of products of the next step, and whether it is a Chebyshev step.

        The method is the one that advances farther with one product.
        """
        short = min(state.accurate, ACCURATE_REACH / self.rho)
        long = state.share * (state.time + 1 / self.rho)
        stages = stages_for(long, self.rho)
        if stages > MOST_STAGES:
            stages, long = MOST_STAGES, (MOST_STAGES - 2) ** 2 / (1.54 * self.rho)
        return (long, stages, True) if long / stages > short / ACCURATE_STAGES else (short, ACCURATE_STAGES, False)

    def _step(self, state: FlowState, until: float, end: float) -> FlowState:
        """Take one accepted step, at most up to `until`."""
        passes, slope = state.passes, state.slope
        if slope is None:
            slope, passes = self.field(state.x), passes + 1
        while True:
            wished, stages, chebyshev = self._choice(state)
            # The step does not leave a tiny remainder before the requested time.
            left = until - state.time
            h = left if wished >= left else min(wished, 0.5 * left if wished > 0.75 * left else wished)
            kinks = _Kinks(self, state.outputs)
            if chebyshev:
                stages = stages_for(h, self.rho)
                made = chebyshev_step(kinks.field, state.x, slope, h, stages)
            else:
                made = accurate_step(kinks.field, state.x, slope, h)
            passes += stages
            smooth, kinked = _norm(*made.error), 0.0
            if (passed := kinks.passed()) is not None:
                passed *= h * (CHEBYSHEV_KINK if chebyshev else ACCURATE_KINK)
                kinked, passes = _norm(passed, self.product(passed)), passes + 1
            size = smooth + kinked
            allowed = self.tolerance * (math.log1p(self.rho * (state.time + h)) - math.log1p(self.rho * state.time))
            allowed /= math.log1p(self.rho * end)
            ratio = size / allowed if math.isfinite(size) else math.inf
            # The errors of a step are of third and fifth order in its length, and those of many kinks are of third order. The allowed
            # error is of first order.
            safety, power = (0.8, -0.5) if chebyshev or kinked > smooth else (0.9, -0.25)
            factor = min(max(safety * ratio**power, 0.2), 5.0) if ratio > 0 else 5.0
            if chebyshev:
                # A shortened step is no reason to reduce the next step.
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


class _Kinks:
    """Evaluates the field of one step, and records which outputs pass a kink of the loss.

    Args:
        flow: the flow.
        outputs: outputs (n, c) at the start of the step.
    """

    def __init__(self, flow: LossFlow, outputs: np.ndarray) -> None:
        self._flow, self._outputs = flow, outputs
        beyond = flow.loss.beyond_kink(outputs, flow.targets)
        self._sides = None if beyond is None else (beyond, -beyond)  # the largest distances on both sides of the kink

    def field(self, x: np.ndarray) -> np.ndarray:
        """See `LossFlow.field`."""
        beyond = None if self._sides is None else self._flow.loss.beyond_kink(x[1], self._flow.targets)
        if beyond is not None and self._sides is not None:
            for side, distance in zip(self._sides, (beyond, -beyond), strict=True):
                np.maximum(side, distance, out=side)
        return self._flow.field(x)

    def passed(self) -> np.ndarray | None:
        """Distances (n, c) of the slopes of the weights from their smooth continuation, with their signs; None if no kink was passed."""
        if self._sides is None:
            return None
        distance = np.maximum(np.minimum(*self._sides), 0.0)
        return (
            -np.sign(self._flow.loss.gradient(self._outputs, self._flow.targets)) * distance if distance.any() else None
        )


def _norm(error: np.ndarray, image: np.ndarray) -> float:
    """Norm of an error of the weights in the kernel's function space, `sqrt(e^T T e)`, over all outputs, from e and T e."""
    return math.sqrt(max(float(np.vdot(error, image)), 0.0))
