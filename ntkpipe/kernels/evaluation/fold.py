"""The fold of a network's steps over covariances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from ntkpipe.kernels import layout
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.state import Array, KernelState, Signature, View

PerImageFeatures = tuple[Any, ...]
"""Per step: None, a tuple of arrays, or, of a residual sum, a tuple of these per branch."""


Leave = Callable[[Sequence[Step], KernelState], None]


def fold(
    steps: Sequence[Step],
    state: KernelState,
    rows: PerImageFeatures,
    columns: PerImageFeatures,
    leave: Leave | None = None,
) -> KernelState:
    """The state after all steps.

    Args:
        steps: of a network, or a part of it.
        state: before the first.
        rows: what each step has seen of the first images, as `View`s.
        columns: likewise of the second images.
        leave: called at each tap with the steps of every network that leaves there, and the state with which it does.
    """
    for step, row, column in zip(steps, rows, columns, strict=True):
        if isinstance(step.layer, Tap):
            state = state.settled()
            _leave(step, state, leave)
            state = _restricted(state, step.outgoing)
        elif step.branches:
            ends = [
                fold(branch, entering(branch, step, state), row[number], column[number])
                for number, branch in enumerate(step.branches)
            ]
            state = added(ends, step)
        else:
            state = step.layer(state.replace(row=row, column=column), step.outgoing)
    return state


def fold_own(
    steps: Sequence[Step], state: KernelState, leave: Leave | None = None
) -> tuple[KernelState, PerImageFeatures]:
    """The state of images with themselves after all steps, and what each step has seen of them; see `fold`."""
    seen: list[Any] = []
    for step in steps:
        if isinstance(step.layer, Tap):
            _leave(step, state, leave)
            seen.append(None)
            state = _restricted(state, step.outgoing)
        elif step.branches:
            made = [fold_own(branch, entering(branch, step, state)) for branch in step.branches]
            state = added([end for end, _ in made], step)
            seen.append(tuple(inner for _, inner in made))
        else:
            seen.append(step.layer.image_features(state) if step.has_features else None)
            state = step.layer(state, step.outgoing)
    return state, tuple(seen)


def kernels_of(state: KernelState) -> tuple[Array, Array]:
    """Both kernels; a network without trainable layers has an NTK of zero."""
    return state.nngp, jnp.zeros_like(state.nngp) if state.ntk is None else state.ntk


def views(
    steps: Sequence[Step], seen: PerImageFeatures, view: Callable[[Step, tuple[Array, ...]], View]
) -> PerImageFeatures:
    """The same structure with a `View` for each tuple of arrays."""
    made: list[Any] = []
    for step, of_step in zip(steps, seen, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            pairs = zip(step.branches, of_step, strict=True)
            made.append(tuple(views(branch, inner, view) for branch, inner in pairs))
        else:
            made.append(view(step, of_step))
    return tuple(made)


def _leave(step: Step, state: KernelState, leave: Leave | None) -> None:
    assert leave is not None, "a network with taps needs somewhere to leave to"
    for branch in step.branches:
        leave(branch, entering(branch, step, state))


def no_features(steps: Sequence[Step]) -> PerImageFeatures:
    """The same structure for steps that see nothing."""
    return tuple(tuple(no_features(branch) for branch in step.branches) or None for step in steps)


def entering(branch: Sequence[Step], step: Step, state: KernelState) -> KernelState:
    """The state as a branch needs it: of fewer classes, perhaps."""
    return _restricted(state, branch[0].incoming if branch else step.outgoing)


def _restricted(state: KernelState, wanted: Signature) -> KernelState:
    has = state.signature.support
    if wanted.support == has:
        return state.replace(signature=wanted)

    def chosen(x: Array) -> Array:
        # Of a chunk, which is of one class of rows, the rows are the same in all branches.
        return layout.restrict(x, has if state.chunk is None else (wanted.support[0], has[1]), wanted.support)

    return state.map(chosen, wanted)


def added(ends: Sequence[KernelState], step: Step) -> KernelState:
    """The sum of what the branches end with."""
    ntk = None
    for end in ends:
        if end.ntk is not None:
            ntk = end.ntk if ntk is None else ntk + end.ntk
    nngp = ends[0].nngp
    for end in ends[1:]:
        nngp = nngp + end.nngp
    # What is added up goes into the next branch and around it.
    return ends[0].replace(nngp=nngp, ntk=ntk, signature=step.outgoing).settled()
