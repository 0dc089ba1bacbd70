"""A kernel that is a user's function of two blocks of points: evaluated as networks are, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ntkpipe.errors import DataError
from ntkpipe.kernels.accelerator import precision_context

BlockFunction = Callable[[Any, Any], Any]
"""`k(x1, x2)`: blocks `(n1, h, w, c)` and `(n2, h, w, c)`, of tables `(n1, d)` and `(n2, d)`, to `(n1, n2)`, in their dtype."""

# Points of which only `k(x, x)` is wanted go through the function together.
_OWN_EDGE = 16
# How far apart `k(x, y)` and `k(y, x)` may be, in units of the largest entry: rounding in another order, and no more.
_SYMMETRY = {"float32": 1e-4, "float64": 1e-10}


class Evaluates(Protocol):
    """What gives tiles: a network's `Evaluation`, or a function's. Hashable, and cheap to pickle."""

    @property
    def flips(self) -> bool:
        """Whether pairs with a flipped image are needed."""
        ...

    def prepare(self, images: np.ndarray, *, flipped: bool = False) -> Any:
        """What pairs need of each image, computed once."""
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
        """The kernels of one tile by name, per result; `columns` None pairs the rows with themselves."""
        ...

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The kernels of every image with itself by name, per result: float64."""
        ...


class Evaluator(Protocol):
    """A kernel that no spec of an infinite network names: it gives its own evaluation. Hashable, and cheap to pickle."""

    def evaluation(self, dtype: str) -> Evaluates:
        """What gives tiles in `float32` or `float64`."""
        ...


@dataclass(frozen=True)
class FunctionKernel:
    """See `Evaluator`; of a user's function."""

    function: BlockFunction

    def evaluation(self, dtype: str) -> FunctionEvaluation:
        """See `Evaluator.evaluation`."""
        return FunctionEvaluation(self.function, dtype)


@dataclass(frozen=True)
class FunctionEvaluation:
    """Tiles of a function.

    Args:
        function: of two blocks.
        dtype: that blocks are handed to it in, and that it must answer in. JAX's precision is set accordingly.
    """

    function: BlockFunction
    dtype: str

    @property
    def flips(self) -> bool:
        """A function's kernel has no even and odd part."""
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
        """See `Evaluates.tile`; exactly symmetric where rows are paired with themselves.

        Raises:
            DataError: if the function returns another shape or dtype, or is not symmetric.
        """
        del flipped, pad_to, pairs_per_step
        made = self._call(rows, rows if columns is None else columns)
        if columns is None:
            far = float(np.abs(made - made.T).max(initial=0.0))
            if far > _SYMMETRY[self.dtype] * float(np.abs(made).max(initial=0.0)):
                raise DataError(f"the kernel function is not symmetric: k(x, y) and k(y, x) differ by {far:.1e}")
            made = (made + made.T) / 2
        return [{"gram": np.ascontiguousarray(made, dtype=out_dtype)}]

    def diagonal(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """See `Evaluates.diagonal`."""
        x = self.prepare(images)
        blocks = (x[start : start + _OWN_EDGE] for start in range(0, len(x), _OWN_EDGE))
        return [{"gram": np.concatenate([self._call(b, b).diagonal() for b in blocks]).astype(np.float64)}]

    def _call(self, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
        with precision_context(self.dtype):
            made = np.asarray(self.function(x1, x2))
        if made.shape != (len(x1), len(x2)) or made.dtype != np.dtype(self.dtype):
            raise DataError(
                f"the kernel function returned {made.dtype} of shape {made.shape} for blocks of {len(x1)} and {len(x2)} points in "
                f"{self.dtype}: it must return ({len(x1)}, {len(x2)}) in {self.dtype}. Error bounds compare its float32 and "
                "float64 values: it may not round to a dtype of its own"
            )
        return made
