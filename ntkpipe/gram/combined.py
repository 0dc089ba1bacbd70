"""Evaluation of several kernels at the same pairs: each for its own store, or combined into one kernel."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.gram.function import Evaluates
from ntkpipe.gram.worker import Evaluation, Wanted, architecture
from ntkpipe.kernels.combined import Combination

_Options = dict[str, Any]


@dataclass(frozen=True)
class SideBySide:
    """An `Evaluates` for networks without common layers, which are evaluated one after the other.

    Args:
        wanted: the results, in this order.
        groups: positions in `wanted`; the results of one group share one evaluation.
        dtype: of the computation.
    """

    wanted: tuple[Wanted, ...]
    groups: tuple[tuple[int, ...], ...]
    dtype: str

    @property
    def _members(self) -> tuple[Evaluation, ...]:
        return tuple(Evaluation(tuple(self.wanted[k] for k in group), self.dtype) for group in self.groups)

    @property
    def flips(self) -> bool:
        """See `Evaluates`."""
        return any(one.flips for one in self._members)

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> tuple[Any, ...]:
        """See `Evaluates`."""
        return tuple(one.prepare(images, flipped=flipped) for one in self._members)

    def tile(self, rows: Any, columns: Any, flipped: Any = None, **options: Any) -> list[dict[str, np.ndarray]]:
        """See `Evaluates`."""
        return self._in_order(_tiles(self._members, rows, columns, flipped, options))

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates`."""
        return self._in_order([one.diagonal(images) for one in self._members])

    def _in_order(self, made: Sequence[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
        found = {
            k: one
            for group, results in zip(self.groups, made, strict=True)
            for k, one in zip(group, results, strict=True)
        }
        return [found[k] for k in range(len(self.wanted))]


def evaluation_of_all(wanted: tuple[Wanted, ...], dtype: str) -> Evaluates:
    """An evaluation of all results, in which networks with the same first layers are evaluated together."""
    groups = _groups(tuple(one.spec for one in wanted))
    return Evaluation(wanted, dtype) if len(groups) == 1 else SideBySide(wanted, groups, dtype)


@functools.lru_cache(maxsize=64)
def _groups(specs: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups of positions of specs that can share one evaluation."""
    groups: list[list[int]] = []
    for k, spec in enumerate(specs):
        home = next((group for group in groups if _share([*(specs[i] for i in group), spec])), None)
        if home is None:
            groups.append([k])
        else:
            home.append(k)
    return tuple(map(tuple, groups))


def _share(specs: Sequence[str]) -> bool:
    """Whether the networks can share one evaluation."""
    try:
        architecture(*map(json.loads, specs))
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class CombinedEvaluation:
    """An `Evaluates` for a sum or product of kernels; their entries are combined in float64.

    Args:
        parts: a combination of evaluations with one result each.
    """

    parts: Combination

    @property
    def _leaves(self) -> tuple[Evaluates, ...]:
        return tuple(dict.fromkeys(self.parts.leaves()))

    @property
    def flips(self) -> bool:
        """See `Evaluates`."""
        return any(one.flips for one in self._leaves)

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> tuple[Any, ...]:
        """See `Evaluates`."""
        return tuple(one.prepare(images, flipped=flipped) for one in self._leaves)

    def tile(
        self, rows: Any, columns: Any, flipped: Any = None, *, out_dtype: str, **options: Any
    ) -> list[dict[str, np.ndarray]]:
        """See `Evaluates`. The parts are rounded to `out_dtype` first, like stored tiles."""
        made = _tiles(self._leaves, rows, columns, flipped, {"out_dtype": out_dtype, **options})
        return self._combined([results[0] for results in made], out_dtype)

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates`."""
        return self._combined([one.diagonal(images)[0] for one in self._leaves], "float64")

    def _combined(self, made: list[dict[str, np.ndarray]], dtype: str) -> list[dict[str, np.ndarray]]:
        of = dict(zip(self._leaves, made, strict=True))

        def entries(name: str) -> Callable[[Any], np.ndarray]:
            return lambda leaf: of[leaf][name]

        return [{name: np.ascontiguousarray(self.parts.combine(entries(name)), dtype=dtype) for name in made[0]}]


def _tiles(
    members: Sequence[Evaluates], rows: Any, columns: Any, flipped: Any, options: _Options
) -> list[list[dict[str, np.ndarray]]]:
    """The results of each member, from its own prepared images."""
    return [
        one.tile(rows[k], None if columns is None else columns[k], flipped[k] if one.flips else None, **options)
        for k, one in enumerate(members)
    ]
