"""Apply the steps of a network to covariances, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.evaluation.readouts import Tap
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.layers.repeat import Repeat
from ntkpipe.kernels.layers.residual import Branching
from ntkpipe.kernels.state import Array, KernelState, Signature, View

PerImageFeatures = tuple[Any, ...]
"""The features of each step: None, a tuple of arrays, or one entry per branch of a join or a repeat.

The last entry of a repeat holds all repetitions after the first ones, in arrays with one more axis.
"""


Leave = Callable[[Sequence[Step], KernelState], None]


def fold(
    steps: Sequence[Step],
    state: KernelState,
    rows: PerImageFeatures,
    columns: PerImageFeatures,
    leave: Leave | None = None,
) -> KernelState:
    """Return the state after all steps.

    Args:
        steps: steps of a network or a part of it.
        state: state before the first step.
        rows: features of the first images for each step, as `View`s.
        columns: features of the second images for each step, as `View`s.
        leave: called at each tap with the steps and the state of every network that ends there.
    """
    for step, row, column in zip(steps, rows, columns, strict=True):
        if isinstance(step.layer, Tap):
            state = state.settled()
            _leave(step, state, leave)
            state = _restricted(state, step.outgoing)
        elif isinstance(step.layer, Repeat):
            state = _repeated(step, state, row, column)
        elif step.branches:
            ends = [
                fold(branch, entering(branch, step, state), row[number], column[number])
                for number, branch in enumerate(step.branches)
            ]
            state = joined(ends, step)
        else:
            state = step.layer(state.replace(row=row, column=column), step.outgoing)
    return state


def fold_own(
    steps: Sequence[Step], state: KernelState, leave: Leave | None = None
) -> tuple[KernelState, PerImageFeatures]:
    """Return the state of images with themselves after all steps, and the per-image features; see `fold`."""
    seen: list[Any] = []
    for step in steps:
        if isinstance(step.layer, Tap):
            _leave(step, state, leave)
            seen.append(None)
            state = _restricted(state, step.outgoing)
        elif isinstance(step.layer, Repeat):
            state, of_repeat = _repeated_own(step, state)
            seen.append(of_repeat)
        elif step.branches:
            made = [fold_own(branch, entering(branch, step, state)) for branch in step.branches]
            state = joined([end for end, _ in made], step)
            seen.append(tuple(inner for _, inner in made))
        else:
            seen.append(step.layer.image_features(state) if step.has_features else None)
            state = step.layer(state, step.outgoing)
    return state, tuple(seen)


@dataclass(frozen=True)
class Stacked:
    """Features of many repetitions; `at(k)` returns those of the k-th."""

    at: Callable[[Array], PerImageFeatures]


def repetitions(step: Step) -> tuple[tuple[tuple[Step, ...], ...], tuple[Step, ...], int]:
    """Return, for a repeat, the steps of the first repetitions, those of all others, and the number of others."""
    more = step.more
    return (step.branches[:-1], step.branches[-1], more) if more else (step.branches, (), 0)


def _repeated(step: Step, state: KernelState, rows: Any, columns: Any) -> KernelState:
    first, body, more = repetitions(step)
    for number, branch in enumerate(first):
        state = fold(branch, entering(branch, step, state), rows[number], columns[number])
    if more:

        def one(state: KernelState, k: Array) -> tuple[KernelState, None]:
            of_rows, of_columns = (
                seen.at(k) if isinstance(seen, Stacked) else seen for seen in (rows[-1], columns[-1])
            )
            return fold(body, entering(body, step, state), of_rows, of_columns), None

        state = _scanned(one, state, more)[0].replace(signature=body[-1].outgoing)
    return _restricted(state, step.outgoing)


def _repeated_own(step: Step, state: KernelState) -> tuple[KernelState, PerImageFeatures]:
    first, body, more = repetitions(step)
    seen: list[Any] = []
    for branch in first:
        state, of_branch = fold_own(branch, entering(branch, step, state))
        seen.append(of_branch)
    if more:
        state, of_all = _scanned(lambda state, _: fold_own(body, entering(body, step, state)), state, more)
        state = state.replace(signature=body[-1].outgoing)
        seen.append(of_all)
    return _restricted(state, step.outgoing), tuple(seen)


def _scanned(
    one: Callable[[KernelState, Array], tuple[KernelState, Any]], state: KernelState, times: int
) -> tuple[KernelState, Any]:
    """Apply `one` `times` times in a loop that is compiled once; also return its other results, stacked."""

    def step(kernels: tuple[Array, Array | None], k: Array) -> tuple[tuple[Array, Array | None], Any]:
        after, more = one(state.replace(nngp=kernels[0], ntk=kernels[1]), k)
        return (after.nngp, after.ntk), more

    (nngp, ntk), more = lax.scan(step, (state.nngp, state.ntk), jnp.arange(times))
    return state.replace(nngp=nngp, ntk=ntk), more


def kernels_of(state: KernelState) -> tuple[Array, Array]:
    """Return both kernels. A network without trainable layers has an NTK of zero."""
    return state.nngp, jnp.zeros_like(state.nngp) if state.ntk is None else state.ntk


def views(
    steps: Sequence[Step],
    seen: PerImageFeatures,
    view: Callable[[Step, tuple[Array, ...]], View],
    at: Callable[[Array, Array], Array],
) -> PerImageFeatures:
    """Return the features with a `View` in place of each tuple of arrays.

    Args:
        steps: steps of a network or a part of it.
        seen: features for these steps.
        view: makes the view of a step from its arrays.
        at: returns the k-th repetition's part of a stacked array.
    """
    made: list[Any] = []
    for step, of_step in zip(steps, seen, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            pairs = list(zip(step.branches, of_step, strict=True))
            together = [pairs.pop()] if step.more else []
            of_branches: list[Any] = [views(branch, inner, view, at) for branch, inner in pairs]
            made.append((*of_branches, *(_stacked(branch, inner, view, at) for branch, inner in together)))
        else:
            made.append(view(step, of_step))
    return tuple(made)


def _stacked(
    steps: Sequence[Step],
    seen: PerImageFeatures,
    view: Callable[[Step, tuple[Array, ...]], View],
    at: Callable[[Array, Array], Array],
) -> Stacked:
    return Stacked(lambda k: views(steps, jax.tree.map(lambda a: at(a, k), seen), view, at))


def images_first(
    steps: Sequence[Step], seen: PerImageFeatures, moved: Callable[[Array, int, int], Array], stacked: int = 0
) -> PerImageFeatures:
    """Return the features from `fold_own` with the images on the first axis, `(n, ...)`.

    Args:
        steps: steps that the features belong to.
        seen: features of images paired with themselves.
        moved: moves an axis, as NumPy's `moveaxis` does.
        stacked: number of leading axes that count repetitions.
    """
    made: list[Any] = []
    for step, of_step in zip(steps, seen, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            axes = [stacked + (number == len(step.branches) - 1 and step.more > 0) for number in range(len(of_step))]
            each = zip(step.branches, of_step, axes, strict=True)
            made.append(tuple(images_first(branch, inner, moved, count) for branch, inner, count in each))
        else:
            axis = stacked if step.layer.feature_scope == "matrices" else -1
            made.append(tuple(moved(a, axis, 0) for a in of_step))
    return tuple(made)


def _leave(step: Step, state: KernelState, leave: Leave | None) -> None:
    assert leave is not None, "a network with taps needs somewhere to leave to"
    for branch in step.branches:
        leave(branch, entering(branch, step, state))


def no_features(steps: Sequence[Step]) -> PerImageFeatures:
    """Return the structure of features for steps that need none."""
    return tuple(tuple(no_features(branch) for branch in step.branches) or None for step in steps)


def entering(branch: Sequence[Step], step: Step, state: KernelState) -> KernelState:
    """Return the state restricted to the classes that a branch needs."""
    return _restricted(state, step.entering(branch))


def _restricted(state: KernelState, wanted: Signature) -> KernelState:
    has = state.signature.support
    if wanted.support == has:
        return state.replace(signature=wanted)

    def chosen(x: Array) -> Array:
        # A chunk has one class of rows, and it is the same class in all branches.
        return layout.restrict(x, has if state.chunk is None else (wanted.support[0], has[1]), wanted.support)

    return state.map(chosen, wanted)


def joined(ends: Sequence[KernelState], step: Step) -> KernelState:
    """Join the states at the ends of the branches by their layer."""
    assert isinstance(step.layer, Branching)
    # The result is read both by the next branch and by its shortcut.
    return step.layer.join(ends, step.outgoing).settled()
