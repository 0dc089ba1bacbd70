"""Computes tiles of Gram matrices from arrays. Needs only JAX and NumPy, without stores and schedulers.

The even and the odd part of a kernel under the horizontal flip f are `k(x, y) + k(x, f y)` and `k(x, y) - k(x, f y)`. Two
evaluations give both: one of the pair, and one with its second image flipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ntkpipe.errors import ConfigError
from ntkpipe.gram.out_of_memory import retry_smaller_on_oom
from ntkpipe.kernels.accelerator import precision_context
from ntkpipe.kernels.architecture import Architecture, Prepared
from ntkpipe.kernels.spec import canonical_json
from ntkpipe.tiles.identity import Symmetry
from ntkpipe.tiles.layout import PLAIN

Spec = Sequence[Mapping[str, Any]]

# Images per block of pairs (x, flipped x). Only the diagonal of the block is used, so the block is small, but large
# enough to hide the overhead of calls.
_MIRROR_EDGE = 16


@lru_cache(maxsize=16)
def _together(canonical: tuple[str, ...]) -> Architecture:
    """The architecture of canonical specs; cached, so that its compiled functions are reused."""
    return Architecture.sharing([json.loads(spec) for spec in canonical])


def architecture(*specs: Spec) -> Architecture:
    """The architecture of a spec, or of several specs that share evaluations. A process returns the same object each time."""
    return _together(tuple(dict.fromkeys(map(canonical_json, specs))))


class Wanted(NamedTuple):
    """Both kernels of a network, or their even or odd part under flips; `spec` is canonical JSON."""

    spec: str
    symmetry: Symmetry


@dataclass(frozen=True)
class Evaluation:
    """Evaluates several kernels together.

    Args:
        wanted: the results, in order. Their specs may be equal, or differ in depth and readout.
        dtype: of the computation, `float32` or `float64`.

    Raises:
        ConfigError: if `dtype` is neither.
    """

    wanted: tuple[Wanted, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check_dtype("dtype", self.dtype)

    @staticmethod
    def of(spec: Spec, symmetry: Symmetry, dtype: str) -> Evaluation:
        """The evaluation of one network, or of its even or odd part."""
        return Evaluation((Wanted(canonical_json(spec), symmetry),), dtype)

    @property
    def flips(self) -> bool:
        """Whether `tile` needs the mirror images of the columns."""
        return any(wanted.symmetry != "none" for wanted in self.wanted)

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> Prepared:
        """Compute the data of each image that all its pairs share.

        Args:
            images: `(n, height, width, channels)`; converted to the dtype of the computation.
            flipped: whether to prepare the mirror images instead.

        Raises:
            ConfigError: if a layer does not accept the images.
            ResourceError: if the device does not support the dtype.
        """
        x = np.ascontiguousarray(flip(images) if flipped else images, dtype=self.dtype)
        self._networks.check_arrays(x, None)
        with precision_context(self.dtype):
            return self._networks.prepare(x)

    def tile(
        self,
        rows: Prepared,
        columns: Prepared | None,
        flipped: Prepared | None = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Both kernels of one tile, for each result.

        Args:
            rows: row images.
            columns: column images; None pairs the rows with themselves, and the result is exactly symmetric with exact
                diagonals.
            flipped: mirror images of the columns, needed if `flips`.
            out_dtype: of the results, `float32` or `float64`.
            pad_to: edge of a full tile. Smaller tiles are padded to it internally, so that all share one compiled
                function.
            pairs_per_step: columns that go through the layers of a network on images at once; None chooses the number.

        Returns:
            `{"nngp": (n1, n2), "ntk": (n1, n2)}` each, contiguous.
        """
        _check_dtype("out_dtype", out_dtype)
        options: dict[str, Any] = {"out_dtype": np.dtype(out_dtype), "pad_to": pad_to, "pairs": pairs_per_step}
        with precision_context(self.dtype):
            direct = self._evaluate(rows, columns, options)
            mirrored = self._evaluate(rows, flipped, options) if self.flips else {}
        if columns is None:
            # k(x, f y) and k(y, f x) are equal except for rounding.
            mirrored = {
                spec: {name: (q + q.T) / 2 for name, q in kernels.items()} for spec, kernels in mirrored.items()
            }
        return [_part(w.symmetry, direct[w.spec], mirrored.get(w.spec, {})) for w in self.wanted]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Both kernels of every image with itself, for each result. They equal the diagonals of `tile`.

        Returns:
            `{"nngp": (n,), "ntk": (n,)}` each, float64. Even and odd parts also have `plain_nngp` and `plain_ntk`, the
            diagonals of the kernel before it is divided into parts.
        """
        x = np.ascontiguousarray(images, dtype=self.dtype)
        self._networks.check_arrays(x, None)
        with precision_context(self.dtype):
            made = self._networks.diagonals(x)
        direct = {
            spec: {name: np.asarray(kernel, dtype=np.float64) for name, kernel in kernels._asdict().items()}
            for spec, kernels in zip(self._specs, made, strict=True)
        }
        mirrored = self._mirrored_diagonal(x) if self.flips else {}
        results = []
        for wanted in self.wanted:
            plain = direct[wanted.spec]
            made_part = _part(wanted.symmetry, plain, mirrored.get(wanted.spec, {}))
            extra = {} if wanted.symmetry == "none" else {PLAIN + name: kernel for name, kernel in plain.items()}
            results.append(made_part | extra)
        return results

    def _mirrored_diagonal(self, x: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """`k(x, f x)` of every image, for each spec, in float64."""
        parts: list[dict[str, dict[str, np.ndarray]]] = []
        options: dict[str, Any] = {"out_dtype": np.dtype("float64"), "pad_to": _MIRROR_EDGE, "pairs": None}
        for start in range(0, len(x), _MIRROR_EDGE):
            block = x[start : start + _MIRROR_EDGE]
            rows, flipped = self.prepare(block), self.prepare(block, flipped=True)
            with precision_context(self.dtype):
                made = self._evaluate(rows, flipped, options)
            parts.append(made)
        return {
            spec: {name: np.concatenate([part[spec][name].diagonal() for part in parts]) for name in parts[0][spec]}
            for spec in self._specs
        }

    def _evaluate(
        self, rows: Prepared, columns: Prepared | None, options: dict[str, Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Both kernels of the pairs, for each spec."""
        made = retry_smaller_on_oom(self._networks.tiles, self._specs, rows, columns, **options)
        return {
            spec: {name: np.ascontiguousarray(kernel) for name, kernel in kernels._asdict().items()}
            for spec, kernels in zip(self._specs, made, strict=True)
        }

    @property
    def _specs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(wanted.spec for wanted in self.wanted))

    @property
    def _networks(self) -> Architecture:
        return _together(self._specs)


def flip(images: np.ndarray) -> np.ndarray:
    """Mirror images (n, height, width, channels) horizontally.

    Raises:
        ConfigError: if the array does not have four axes.
    """
    if images.ndim != 4:
        raise ConfigError(f"images of shape {list(images.shape[1:])} have no width to flip: set augment=none")
    return images[:, :, ::-1]


def compute_tile(
    spec: Spec,
    x1: np.ndarray,
    x2: np.ndarray | None,
    *,
    diagonal: bool,
    dtype: str,
    out_dtype: str,
    pad_to: int | None = None,
    symmetry: Symmetry = "none",
) -> dict[str, np.ndarray]:
    """Both kernels of one tile of given images; see `Evaluation`.

    Args:
        spec: the layers.
        x1: row images, (n1, height, width, channels); converted to `dtype`.
        x2: column images, (n2, height, width, channels); ignored for a diagonal tile.
        diagonal: whether rows and columns are the same images; the result is then exactly symmetric with exact
            diagonals.
        dtype: of the computation, `float32` or `float64`.
        out_dtype: of the result, `float32` or `float64`.
        pad_to: edge of a full tile.
        symmetry: `none` for the kernels, `even` or `odd` for their part under flips.

    Returns:
        `{"nngp": (n1, n2), "ntk": (n1, n2)}`, contiguous.

    Raises:
        ConfigError: if a dtype is unknown, `x2` is missing, or a layer does not accept the images.
        ResourceError: if the device does not support the dtype.
    """
    evaluation = Evaluation.of(spec, symmetry, dtype)
    _check_dtype("out_dtype", out_dtype)
    if x2 is None and not diagonal:
        raise ConfigError("a tile off the diagonal needs both blocks of images")
    other = x1 if diagonal or x2 is None else x2
    if x1.shape[1:] != other.shape[1:]:
        raise ConfigError(
            f"the images of a tile's rows have shape {x1.shape[1:]}, but those of its columns have {other.shape[1:]}"
        )
    (made,) = evaluation.tile(
        evaluation.prepare(x1),
        None if diagonal else evaluation.prepare(other),
        evaluation.prepare(other, flipped=True) if evaluation.flips else None,
        out_dtype=out_dtype,
        pad_to=pad_to,
    )
    return made


def compute_diagonal(spec: Spec, x: np.ndarray, *, dtype: str, symmetry: Symmetry = "none") -> dict[str, np.ndarray]:
    """Both kernels of every image with itself, computed in `dtype`; see `Evaluation.diagonal`."""
    return Evaluation.of(spec, symmetry, dtype).diagonal(x)[0]


def _part(symmetry: Symmetry, direct: dict[str, np.ndarray], mirrored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kernels, or their even or odd part, from `k(x, y)` and `k(x, f y)`."""
    if symmetry == "none":
        return direct
    combine = np.add if symmetry == "even" else np.subtract
    return {name: combine(kernel, mirrored[name]) for name, kernel in direct.items()}


def _check_dtype(name: str, value: str) -> None:
    if value not in ("float32", "float64"):
        raise ConfigError(f"{name}={value!r} is not one of float32, float64")
