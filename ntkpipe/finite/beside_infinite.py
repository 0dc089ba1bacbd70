"""Comparison of the kernel of a finite network with that of the infinite network on the same points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class BesideInfinite:
    """A finite network's kernel T^ and the infinite network's kernel T on the same points.

    Args:
        finite: (m,) eigenvalues of T^, descending.
        infinite: (m,) eigenvalues of T, descending.
        deviation: `|T^ - T| / |T|` in Frobenius norms.
        trace_ratio: `tr T^ / tr T`.
        alignment_finite: alignment of T^ with the labels, see `alignment`.
        alignment_infinite: alignment of T with the labels.
    """

    finite: np.ndarray
    infinite: np.ndarray
    deviation: float
    trace_ratio: float
    alignment_finite: float
    alignment_infinite: float

    def ratios(self) -> np.ndarray:
        """(k,) ratios of the eigenvalues of T^ and T of equal rank, for eigenvalues that float64 distinguishes from
        0.
        """
        floor = len(self.infinite) * np.finfo(np.float64).eps * max(self.infinite[0], self.finite[0])
        count = int(np.argmin(self.infinite > floor)) if (self.infinite <= floor).any() else len(self.infinite)
        return np.maximum(self.finite[:count], 0.0) / self.infinite[:count]


def beside_infinite(finite: np.ndarray, infinite: np.ndarray, targets: np.ndarray) -> BesideInfinite:
    """Compare two kernels.

    Args:
        finite: (m, m) kernel of a finite network.
        infinite: (m, m) kernel of the infinite network.
        targets: (m, c) training targets.
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
    """Return `<K, Y Y^T> / (|K| |Y Y^T|)`: 1 if K is proportional to Y Y^T, and 0 if all targets are 0."""
    size = np.linalg.norm(kernel) * np.linalg.norm(targets.T @ targets)
    return float(np.sum(targets * (kernel @ targets)) / size) if size > 0 else 0.0
