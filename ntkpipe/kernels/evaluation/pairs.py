"""Evaluation of a network for pairs of images, with the classes of pixel pairs that its result needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from ntkpipe.kernels import layout
from ntkpipe.kernels.evaluation.blocks import Batch
from ntkpipe.kernels.evaluation.fold import PerImageFeatures, Stacked, fold, kernels_of, no_features, views
from ntkpipe.kernels.evaluation.resolve import Step
from ntkpipe.kernels.layers.pooling import Mixing
from ntkpipe.kernels.state import Array, FusionPolicy, KernelState, Signature, View


def section(steps: Sequence[Step]) -> tuple[Sequence[Step], Step | None, Sequence[Step]]:
    """Return the run of steps that keep classes, the pool that ends it (None if no pool does), and the other steps."""
    length = next((k for k, step in enumerate(steps) if not step.keeps_classes), len(steps))
    pooled = length < len(steps) and isinstance(steps[length].layer, Mixing)
    return steps[:length], steps[length] if pooled else None, steps[length + pooled :]


@dataclass(frozen=True)
class _Section:
    """Consecutive steps that are evaluated together.

    If `looped`, the classes of rows are evaluated one by one, and `mixing` is the pool that ends the run.
    """

    start: int
    run: Sequence[Step]
    mixing: Step | None
    looped: bool

    @property
    def stop(self) -> int:
        return self.start + len(self.run)


class Pairs:
    """Evaluates pairs of one row image with a batch of column images, under tracing.

    Args:
        steps: steps of the network.
        batch: number of columns and size of a block.
        fusion: see `FusionPolicy`.
        columns: column images, `(b, h, w, channels)`.
        seen: per-image features of the columns, `(b, ...)`.
    """

    def __init__(
        self, steps: Sequence[Step], batch: Batch, fusion: FusionPolicy, columns: Array, seen: PerImageFeatures
    ) -> None:
        self._steps, self._batch, self._fusion = steps, batch, fusion
        self._parts = self._sections()
        first = steps[0].incoming
        images = jnp.moveaxis(columns, 0, -1)  # (h, w, channels, b)
        whole = not self._parts[0].looped
        self._images = [self._column(first, images[:, :, k], whole) for k in range(images.shape[2])]
        self._nothing: Array | None = None
        self._columns = [
            self._column_views(part.run, seen[part.start : part.stop], whole=not part.looped) for part in self._parts
        ]

    def _sections(self) -> list[_Section]:
        made, steps = [], self._steps
        start = 0
        while start < len(steps):
            run, mixing, _ = section(steps[start:])
            classes = run[0].incoming.support[0] if run and run[0].incoming.spatial else ()
            looped = len(classes) > 1 and run[0].incoming.entries * self._batch.pairs > self._batch.limit
            if not looped:
                # With all classes present, the layer that ends the run needs no special treatment.
                run = steps[start : start + max(len(run) + (mixing is not None), 1)]
            made.append(_Section(start, run, mixing if looped else None, looped))
            start += len(run) + (looped and mixing is not None)
        return made

    def _column(self, signature: Signature, field: Array, whole: bool) -> Array:
        """Return a column field in the layout if all classes are `whole`, else skewed and doubled for `_at`."""
        if whole:
            return field if self._fusion.lays_out_anew else layout.spread_column(field, signature)
        skewed = layout.skew_columns(field, signature)
        return skewed if field.shape[0] == 1 else jnp.concatenate([skewed, skewed])

    def _everywhere(self, signature: Signature, column: Array) -> Array:
        """Return a column field in the layout."""
        return layout.spread_column(column, signature, self._nothing) if self._fusion.lays_out_anew else column

    def _at(self, signature: Signature, column: Array, chunk: Array) -> Array:
        """Return the part of a doubled column field that belongs to the class of rows with index `chunk`."""
        if column.shape[0] == 1:
            return column[None]
        extent = signature.spatial[0]
        cut = jnp.asarray(signature.support[0], jnp.int32)[chunk]
        return lax.dynamic_slice_in_dim(column, extent - cut, extent)[None]

    def _column_views(self, steps: Sequence[Step], seen: PerImageFeatures, *, whole: bool) -> Any:
        """Return functions from a class of rows to the columns' views; with `whole`, they ignore the class."""

        def prepare(step: Step, arrays: tuple[Array, ...]) -> Any:
            if step.layer.feature_scope == "matrices" or not step.incoming.spatial:
                return lambda chunk: lambda: arrays
            fields = [self._column(step.incoming, jnp.moveaxis(a, 0, -1), whole) for a in arrays]
            if whole:
                return lambda chunk: lambda: tuple(self._everywhere(step.incoming, field) for field in fields)
            return lambda chunk: lambda: tuple(self._at(step.incoming, field, chunk) for field in fields)

        return views(steps, seen, prepare, lambda a, k: a[:, k])

    def _row_views(self, steps: Sequence[Step], seen: PerImageFeatures) -> PerImageFeatures:
        def prepare(step: Step, arrays: tuple[Array, ...]) -> View:
            if step.layer.feature_scope == "matrices" or not step.incoming.spatial:
                return lambda: tuple(a[None] for a in arrays)
            return lambda: tuple(layout.spread_row(a[..., None]) for a in arrays)

        return views(steps, seen, prepare, lambda a, k: a[k])

    def __call__(self, number: Array, row: Array, seen: PerImageFeatures) -> list[tuple[Array, Array]]:
        """Return both kernels of a row image with each column, `(b,)` each, for every tap and then for the end.

        Args:
            number: index of the row, which differs between calls.
            row: the row image, `(h, w, channels)`.
            seen: per-image features of the row image.
        """
        self._nothing = (number < 0).astype(jnp.int32)
        results: list[tuple[Array, Array]] = []

        def leave(steps: Sequence[Step], state: KernelState) -> None:
            results.append(kernels_of(fold(steps, state, no_features(steps), no_features(steps))))

        state: KernelState | None = None
        for part, columns in zip(self._parts, self._columns, strict=True):
            rows = self._row_views(part.run, seen[part.start : part.stop])
            if part.looped:
                state, left = self._class_by_class(part, state, row, rows, columns)
                results += left
            else:
                state = self._begin(row, None) if state is None else state
                state = fold(part.run, state, rows, _of_chunk(part.run, columns, None), leave)
        assert state is not None
        return [*results, kernels_of(state)]

    def _begin(self, row: Array, chunk: Array | None) -> KernelState:
        signature = self._steps[0].incoming
        columns = [
            self._everywhere(signature, c) if chunk is None else self._at(signature, c, chunk) for c in self._images
        ]
        scale = 1.0 / signature.features
        nngp = layout.added(layout.spread_row((row[:, :, k] * scale)[..., None]) * c for k, c in enumerate(columns))
        return KernelState(nngp, None, signature, fusion=self._fusion, chunk=chunk)

    def _class_by_class(
        self, part: _Section, before: KernelState | None, row: Array, rows: PerImageFeatures, columns: Any
    ) -> tuple[KernelState, list[tuple[Array, Array]]]:
        """Evaluate a run for one class of rows at a time, with the part of the mixing layer that one class determines.

        Returns:
            The state after the run and the mixing layer, and the kernels of the networks that end in the run.
        """
        leaving: list[Sequence[Step]] = []

        def one(chunk: Array) -> list[tuple[Array, Array | None]]:
            leaving.clear()
            partial: list[KernelState] = []

            def leave(steps: Sequence[Step], state: KernelState) -> None:
                run, mixing, _ = section(steps)
                leaving.append(steps)
                partial.append(_within(mixing, fold(run, state, no_features(run), no_features(run))))

            if before is None:
                state = self._begin(row, chunk)
            else:
                cut = lambda x: lax.dynamic_slice_in_dim(x, chunk, 1)  # noqa: E731
                state = before.map(cut, before.signature).replace(chunk=chunk)
            state = fold(part.run, state, rows, _of_chunk(part.run, columns, chunk), leave)
            return [(s.nngp[0], None if s.ntk is None else s.ntk[0]) for s in (*partial, _within(part.mixing, state))]

        *left, (nngp, ntk) = lax.map(one, jnp.arange(len(part.run[0].incoming.support[0])))
        results = []
        for steps, (k, t) in zip(leaving, left, strict=True):
            run, mixing, rest = section(steps)
            entering = run[-1].outgoing if run else steps[0].incoming
            state = _across(mixing, KernelState(k, t, entering, fusion=self._fusion))
            results.append(kernels_of(fold(rest, state, no_features(rest), no_features(rest))))
        return _across(part.mixing, KernelState(nngp, ntk, part.run[-1].outgoing, fusion=self._fusion)), results


def _within(mixing: Step | None, state: KernelState) -> KernelState:
    return mixing.layer.within(state, mixing.outgoing) if mixing and isinstance(mixing.layer, Mixing) else state


def _across(mixing: Step | None, state: KernelState) -> KernelState:
    return mixing.layer.across(state, mixing.outgoing) if mixing and isinstance(mixing.layer, Mixing) else state


def _of_chunk(steps: Sequence[Step], columns: Any, chunk: Array | None) -> PerImageFeatures:
    made: list[Any] = []
    for step, of_step in zip(steps, columns, strict=True):
        if of_step is None:
            made.append(None)
        elif step.branches:
            each = zip(step.branches, of_step, strict=True)
            made.append(tuple(_of_branch(branch, columns, chunk) for branch, columns in each))
        else:
            made.append(of_step(chunk))
    return tuple(made)


def _of_branch(steps: Sequence[Step], columns: Any, chunk: Array | None) -> Any:
    if isinstance(columns, Stacked):
        return Stacked(lambda k: _of_chunk(steps, columns.at(k), chunk))
    return _of_chunk(steps, columns, chunk)
