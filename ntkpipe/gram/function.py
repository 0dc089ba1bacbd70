"""A kernel given as a user's function of two blocks of points, evaluated tile by tile like networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ntkpipe.errors import DataError
from ntkpipe.kernels.accelerator import precision_context

BlockFunction = Callable[[Any, Any], Any]
"""`k(x1, x2)`: maps blocks (n1, h, w, c) and (n2, h, w, c), or rows of tables (n1, d) and (n2, d), to (n1, n2) in their
dtype."""

# Block size of points for which only `k(x, x)` is needed.
_OWN_EDGE = 16
# Largest difference between `k(x, y)` and `k(y, x)`, relative to the largest entry, that counts as rounding.
_SYMMETRY = {"float32": 1e-4, "float64": 1e-10}


class Evaluates(Protocol):
    """Evaluates the tiles of a network or a function in one dtype. It is hashable and cheap to pickle."""

    @property
    def flips(self) -> bool:
        """Whether tiles need the mirror images of the columns."""
        ...

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> Any:
        """Compute the data of each image that all its pairs share."""
        ...

    def tile(
        self,
        rows: Any,
        columns: Any,
        flipped: Any = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """The kernels of one tile by name, for each result; `columns=None` pairs the rows with themselves."""
        ...

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The kernels of every image with itself by name, for each result: (n,) float64."""
        ...


def as_tile(made: np.ndarray, out_dtype: str, *, symmetric: bool) -> np.ndarray:
    """Return a computed tile in `out_dtype`; exactly symmetric if `symmetric`, which it then is up to rounding."""
    return np.ascontiguousarray((made + made.T) / 2 if symmetric else made, dtype=out_dtype)


def diagonal_of_tiles(evaluation: Evaluates, images: np.ndarray, edge: int) -> list[dict[str, np.ndarray]]:
    """Return the result of `Evaluates.diagonal` from the diagonals of square tiles of up to `edge` images."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), edge):
        block = evaluation.prepare(images[start : start + edge])
        for name, kernel in evaluation.tile(block, None, out_dtype="float64")[0].items():
            parts.setdefault(name, []).append(kernel.diagonal())
    return [{name: np.concatenate(part) for name, part in parts.items()}]


class Evaluator(Protocol):
    """A kernel that is not the spec of an infinite network. It is hashable and cheap to pickle."""

    def evaluation(self, dtype: str) -> Evaluates:
        """The evaluation of tiles in `float32` or `float64`."""
        ...


@dataclass(frozen=True)
class FunctionKernel:
    """An `Evaluator` of a user's function."""

    function: BlockFunction

    def evaluation(self, dtype: str) -> FunctionEvaluation:
        """See `Evaluator.evaluation`."""
        return FunctionEvaluation(self.function, dtype)


@dataclass(frozen=True)
class FunctionEvaluation:
    """The `Evaluates` of a user's function.

    Args:
        function: of two blocks of points.
        dtype: of the blocks that it receives and of the array that it must return. The precision of JAX is set
            accordingly.
    """

    function: BlockFunction
    dtype: str

    @property
    def flips(self) -> bool:
        """False: a function's kernel has no even and odd parts."""
        return False

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> np.ndarray:
        """The block in the dtype of the computation; images of one pixel are rows of a table."""
        del flipped
        rows = images[:, 0, 0] if images.shape[1:3] == (1, 1) else images
        return np.ascontiguousarray(rows, dtype=self.dtype)

    def tile(
        self,
        rows: np.ndarray,
        columns: np.ndarray | None,
        flipped: None = None,
        *,
        out_dtype: str,
        pad_to: int | None = None,
        pairs_per_step: int | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.tile`; exactly symmetric if the rows are paired with themselves.

        Raises:
            DataError: if the function returns another shape or dtype, or is not symmetric.
        """
        del flipped, pad_to, pairs_per_step
        made = self._call(rows, rows if columns is None else columns)
        if columns is None:
            far = float(np.abs(made - made.T).max(initial=0.0))
            if far > _SYMMETRY[self.dtype] * float(np.abs(made).max(initial=0.0)):
                raise DataError(
                    f"the kernel function is not symmetric: k(x, y) and k(y, x) differ by {far:.1e}. "
                    "Correct the function"
                )
        return [{"gram": as_tile(made, out_dtype, symmetric=columns is None)}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        x = self.prepare(images)
        blocks = (x[start : start + _OWN_EDGE] for start in range(0, len(x), _OWN_EDGE))
        return [{"gram": np.concatenate([self._call(b, b).diagonal() for b in blocks]).astype(np.float64)}]

    def _call(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        """Call the function and check the shape and dtype of its result."""
        with precision_context(self.dtype):
            made = np.asarray(self.function(x1, x2))
        if made.shape != (len(x1), len(x2)) or made.dtype != np.dtype(self.dtype):
            raise DataError(
                f"the kernel function returned {made.dtype} of shape {made.shape} for blocks of {len(x1)} and "
                f"{len(x2)} points in {self.dtype}: it must return ({len(x1)}, {len(x2)}) in {self.dtype}, without "
                "rounding to another dtype, because error bounds compare its float32 and float64 values"
            )
        return made
