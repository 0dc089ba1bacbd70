"""How far the kernel of a finite network is from that of the infinite one, on the same points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class BesideInfinite:
    """Two kernels of the same points.

    Args:
        finite: (m,) eigenvalues of the finite network's kernel, descending.
        infinite: (m,) of the infinite one's.
        deviation: `|T^ - T| / |T|` in Frobenius norms.
        trace_ratio: `tr T^ / tr T`.
        alignment_finite: of the finite network's kernel with the labels, see `alignment`.
        alignment_infinite: of the infinite one.
    """

    finite: np.ndarray
    infinite: np.ndarray
    deviation: float
    trace_ratio: float
    alignment_finite: float
    alignment_infinite: float

    def ratios(self) -> np.ndarray:
        """(k,) eigenvalues of the finite network's kernel over the infinite one's, of the same place, down to what float64 tells from 0."""
        floor = len(self.infinite) * np.finfo(np.float64).eps * max(self.infinite[0], self.finite[0])
        count = int(np.argmin(self.infinite > floor)) if (self.infinite <= floor).any() else len(self.infinite)
        return np.maximum(self.finite[:count], 0.0) / self.infinite[:count]


def beside_infinite(finite: np.ndarray, infinite: np.ndarray, targets: np.ndarray) -> BesideInfinite:
    """Compare two kernels.

    Args:
        finite: (m, m) of a finite network.
        infinite: (m, m) of the infinite one.
        targets: (m, c), labels as they are trained on.
    """
    finite, infinite = finite.astype(np.float64), infinite.astype(np.float64)
    return BesideInfinite(
        np.linalg.eigvalsh(finite)[::-1],
        np.linalg.eigvalsh(infinite)[::-1],
        float(np.linalg.norm(finite - infinite) / np.linalg.norm(infinite)),
        float(np.trace(finite) / np.trace(infinite)),
        alignment(finite, targets),
        alignment(infinite, targets),
    )


def alignment(kernel: np.ndarray, targets: np.ndarray) -> float:
    """`<K, Y Y^T> / (|K| |Y Y^T|)`, 1 where the kernel is the product of the labels; 0 if there are no labels to tell apart."""
    size = np.linalg.norm(kernel) * np.linalg.norm(targets.T @ targets)
    return float(np.sum(targets * (kernel @ targets)) / size) if size > 0 else 0.0
