"""Sequences of different lengths in one array, with NaN after the end of each, and the mask layers that they need.

A sequence of length L in an array of N positions has the same kernels as the sequence alone: every layer ends it where
it would end by itself, and has zeros after that. This module works with specs of layers and NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.kernels.geometry import Window, Windows, out_lengths
from ntkpipe.kernels.parameters import ACTIVATIONS, acting_filter
from ntkpipe.kernels.spec import inner_lists, name_layer


def lengths_of(x: np.ndarray) -> np.ndarray | None:
    """Return the number of positions before the NaN of each sequence, `(n,)` int64; None if NaN does not mark ends.

    Args:
        x: `(n, length, width, channels)`.
    """
    if x.ndim != 4 or x.dtype.kind != "f" or not np.isnan(x[:, -1, 0, 0]).any():
        return None
    present = ~np.isnan(x[:, :, 0, 0])
    lengths = present.sum(axis=1)
    inside = np.arange(x.shape[1]) < lengths[:, None]
    if lengths.min() < 1 or (np.isnan(x) == inside[:, :, None, None]).any():
        return None
    return lengths


def filled(x: np.ndarray) -> np.ndarray:
    """Return sequences with NaN replaced by zeros, and any other array unchanged."""
    return x if lengths_of(x) is None else np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf)


def filled_to_flatten(x: np.ndarray) -> np.ndarray:
    """Return filled sequences for networks that flatten first, scaled by sqrt(N / L) to average over their own
    positions.
    """
    lengths = lengths_of(x)
    if lengths is None:
        return x
    scale = np.sqrt(x.shape[1] / lengths.astype(np.float64)).astype(x.dtype)
    return filled(x) * scale[:, None, None, None]


def with_ends(x: np.ndarray, mask: Any, name: str) -> np.ndarray:
    """Return sequences with NaN after their ends.

    Args:
        x: sequences, `(n, length, width, channels)` floats.
        mask: see `stated_lengths`.
        name: name of the mask, for messages.

    Raises:
        DataError: if `x` does not hold sequences of floats, or for the reasons of `stated_lengths`.
    """
    if x.ndim != 4:
        raise DataError(f"{name} is for sequences (n, length, channels), but the points have shape {x.shape}")
    if x.dtype.kind != "f":
        raise DataError(f"{name} is for sequences of floats, but the points are {x.dtype}: convert them to float32")
    lengths = stated_lengths(mask, x.shape[0], x.shape[1], name)
    return np.where((np.arange(x.shape[1]) < lengths[:, None])[:, :, None, None], x, np.asarray(np.nan, x.dtype))


def stated_lengths(mask: Any, n: int, size: int, name: str) -> np.ndarray:
    """Return the lengths of the sequences, `(n,)` int64.

    Args:
        mask: `(n,)` whole numbers, the lengths; or `(n, size)` booleans, true up to the end of each sequence.
        n: number of sequences.
        size: number of positions in the array.
        name: name of the mask, for messages.

    Raises:
        DataError: if the mask is neither, or a sequence is empty; the message names the first such row.
    """
    mask = np.asarray(mask)
    if mask.shape == (n,) and mask.dtype.kind in "iu":
        lengths = mask.astype(np.int64)
    elif mask.shape == (n, size) and mask.dtype == np.bool_:
        lengths = mask.sum(axis=1)
        broken = np.flatnonzero((mask != (np.arange(size) < lengths[:, None])).any(axis=1))
        if broken.size:
            raise DataError(
                f"{name} has a gap in row {broken[0]}: a mask must be true up to the end of a sequence and false "
                "after it. Move missing positions to the end, or fill them in"
            )
    else:
        raise DataError(
            f"{name} has shape {mask.shape} and dtype {mask.dtype}: give ({n},) lengths, whole numbers, or ({n}, {size}) of bool"
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > size))
    if bad.size:
        raise DataError(
            f"{name} gives row {bad[0]} a length of {lengths[bad[0]]}, but lengths must be from 1 to {size}"
        )
    return lengths


def masked_spec(spec: Sequence[Mapping[str, Any]], positions: int) -> list[dict[str, Any]]:
    """Return the spec with mask layers that end every sequence at its own length.

    The result has two more ops than users' specs may have: `mask` and `masked_attention`.

    Args:
        spec: canonical list of layers.
        positions: number of positions in the array of sequences.

    Raises:
        ConfigError: if a layer does not support sequences of different lengths; the message names it and the reason.
    """
    return _Walk(positions).layers(spec, (), "")[0]


def shortest(spec: Sequence[Mapping[str, Any]], positions: int) -> int:
    """Return the smallest length of a sequence for which every window of the network fits."""
    found = 1

    def look(layers: Sequence[Mapping[str, Any]]) -> None:
        nonlocal found
        for layer in layers:
            if "windows" in layer:
                left = out_lengths(layer["windows"], np.arange(1, positions + 1))
                found = max(found, int(np.flatnonzero(left >= 1)[0]) + 1 if (left >= 1).any() else positions + 1)
            for inner in inner_lists(layer):
                look(inner)

    look(masked_spec(spec, positions))
    return found


def split_ends(x: Any, spec: Sequence[Mapping[str, Any]]) -> tuple[Any, np.ndarray | None]:
    """Return sequences with zeros after their ends and their lengths, `(n,)` int32; other images unchanged, and None.

    Args:
        x: `(n, ...)`.
        spec: canonical spec of the network.

    Raises:
        ConfigError: if a layer does not support sequences of different lengths; the message names it.
        DataError: if one is shorter than the network's windows.
    """
    host = np.asarray(x)
    lengths = lengths_of(host)
    if lengths is None:
        return x, None
    check_lengths(lengths, spec, host.shape[1])
    return filled(host), lengths.astype(np.int32)


def check_lengths(lengths: np.ndarray, spec: Sequence[Mapping[str, Any]], positions: int) -> None:
    """Check that no sequence is shorter than the windows of the network.

    Raises:
        DataError: if one is; the message names the shortest.
    """
    least = shortest(spec, positions)
    if lengths.min() < least:
        raise DataError(
            f"row {int(lengths.argmin())} is a sequence of length {lengths.min()}, but the network's windows need "
            f"{least}: leave such sequences out, or set padding to SAME"
        )


_UNTOUCHED = ("identity", "dropout")


class _Walk:
    def __init__(self, positions: int) -> None:
        self._every = np.arange(1, positions + 1)
        self._flattened = False

    def layers(
        self, spec: Sequence[Mapping[str, Any]], windows: Windows | None, place: str
    ) -> tuple[list[dict[str, Any]], Windows | None]:
        """Return the layers with masks, and the windows so far, which are None once activations are flat."""
        made: list[dict[str, Any]] = []
        for index, layer in enumerate(spec):
            name = place + name_layer(index, layer)
            try:
                more, windows = self._layer(dict(layer), windows, name)
            except _RefusedError as error:
                raise ConfigError(f"{name} {error}") from None
            made += more
        return made, windows

    def _layer(
        self, layer: dict[str, Any], windows: Windows | None, name: str
    ) -> tuple[list[dict[str, Any]], Windows | None]:
        op = layer["op"]
        if "branches" in layer:
            return self._branches(layer, windows, name)
        if op == "repeat":
            inner, after = self.layers(layer["layers"], windows, f"{name}, ")
            if (after is None) != (windows is None) or (windows is not None and not self._same(windows, after)):
                raise _RefusedError("repeats layers that change the lengths of sequences: write them out")
            return [layer | {"layers": inner}], windows
        if windows is None:
            if op == "dense" and self._flattened:
                self._flattened = False
                if layer["parameterization"] == "standard":
                    raise _RefusedError(
                        "depends on the number of inputs in the standard parameterization, which differs between "
                        "sequences: set parameterization to ntk, or replace flatten by global_avg_pool"
                    )
            return [layer], None
        if op == "flatten":
            self._flattened = True
            return [_mask(windows, 0.5), layer], None
        if op in ("global_avg_pool", "global_sum_pool"):
            return [_mask(windows, 1.0 if op == "global_avg_pool" else 0.0), layer], None
        if op == "layer_norm" and layer["axis"] != [-1]:
            raise _RefusedError(
                "takes the mean over all positions, of sequences of different lengths: set axis to [-1]"
            )
        if op in _UNTOUCHED:
            return [layer], windows
        if op in ACTIVATIONS or op == "layer_norm":
            return [layer, _mask(windows)], windows
        if op == "conv":
            windows = self._windowed(windows, acting_filter(layer)[0], layer["strides"][0], layer["padding"])
            return [layer, _mask(windows)], windows
        if op in ("avg_pool", "sum_pool"):
            windows = self._windowed(windows, layer["window"][0], layer["strides"][0], layer["padding"])
            if layer.get("normalize_edges") and layer["padding"] != "VALID":
                raise _RefusedError(
                    "counts the positions within each window, of sequences of different lengths: set normalize_edges to false, or "
                    "padding to VALID"
                )
            return [layer, _mask(windows)], windows
        if op == "global_self_attention" and "pos_emb_type" in layer:
            raise _RefusedError(
                "has positional embeddings, which do not support sequences of different lengths: give them one "
                "length, or set pos_emb_type to NONE"
            )
        if op == "global_self_attention":
            return [layer | {"op": "masked_attention", "windows": windows}, _mask(windows)], windows
        raise _RefusedError(
            "does not support sequences of different lengths: give them one length, or leave the layer out"
        )

    def _windowed(self, windows: Windows, size: int, stride: int, padding: str) -> Windows:
        if size == stride == 1:
            return windows
        if padding == "CIRCULAR":
            raise _RefusedError("wraps around, but sequences end at different positions: set padding to SAME or VALID")
        if padding == "SAME" and len({Window(int(n), size, stride, padding).pads[0] for n in self._every}) > 1:
            raise _RefusedError(
                f"has SAME windows of {size} with strides of {stride}, whose positions depend on the length of a "
                "sequence: set padding to VALID"
            )
        return (*windows, (size, stride, padding))

    def _branches(
        self, layer: dict[str, Any], windows: Windows | None, name: str
    ) -> tuple[list[dict[str, Any]], Windows | None]:
        each = [
            self.layers(branch, windows, f"{name}, branch {number}, ")
            for number, branch in enumerate(layer["branches"])
        ]
        ends = [after for _, after in each]
        first = ends[0]
        if any((end is None) != (first is None) for end in ends) or (
            first is not None and not all(self._same(first, end) for end in ends)
        ):
            raise _RefusedError(
                "joins branches in which sequences end at different positions: give them the same windows"
            )
        return [layer | {"branches": [made for made, _ in each]}], first

    def _same(self, one: Windows, other: Windows | None) -> bool:
        assert other is not None
        left = (np.maximum(out_lengths(windows, self._every), 0) for windows in (one, other))
        return np.array_equal(*left)


class _RefusedError(ConfigError):
    """An error whose message does not contain the place of the layer yet."""


def _mask(windows: Windows, power: float = 0.0) -> dict[str, Any]:
    return {"op": "mask", "windows": windows, "power": power}
