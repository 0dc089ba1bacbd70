"""Quadrature of one-dimensional Gaussian integrals, with a Gauss rule on each half of the line."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float


@lru_cache(maxsize=16)
def half_line_rule(nodes: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return a Gauss quadrature rule for the standard normal density, joined from one rule per half of the line.

    It is exact for functions that are a polynomial of degree below `nodes` on each side of zero. A kink or jump at zero
    (ReLU, ELU, a step) therefore costs no accuracy, while the Gauss-Hermite rule converges as 1 / nodes. The nodes also
    lie closer together near zero, which helps with steep sigmoids at large variances.

    The rule comes from the recurrence of the orthogonal polynomials on the half line, found by the Stieltjes procedure
    on a fine discretisation (Gautschi 2004, section 2.2), and from its Jacobi matrix (Golub and Welsch 1969).

    Args:
        nodes: total number of nodes, even.

    Returns:
        Nodes, ascending and symmetric about zero, and weights with sum 1; float64.
    """
    half = nodes // 2
    # The weight e^(-z^2 / 2) is below 1e-290 at 37. The Gauss-Legendre panels have many more points than the rule.
    points, weights = np.polynomial.legendre.leggauss(64)
    edges = np.linspace(0.0, 37.0, 1 + max(32, half))
    width = np.diff(edges)[:, None] / 2.0
    x = (edges[:-1, None] + width * (1.0 + points)).ravel()
    measure = (width * weights).ravel() * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    diagonal, off_diagonal = np.zeros(half), np.zeros(half - 1)
    before, current = np.zeros_like(x), np.full_like(x, math.sqrt(2.0))
    root = np.sqrt(measure)
    before, current = before * root, current * root  # orthonormal functions stay of order one
    for n in range(half):
        diagonal[n] = np.sum(x * current * current)
        if n + 1 < half:
            following = (x - diagonal[n]) * current - (off_diagonal[n - 1] if n else 0.0) * before
            off_diagonal[n] = np.sqrt(np.sum(following * following))
            before, current = current, following / off_diagonal[n]
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    # The weights come from the polynomials at the nodes, scaled by e^(-z^2 / 4). The first entries of the eigenvectors
    # would lose weights below 1e-32, and the squares of high polynomials multiply these by as much.
    before, current = np.zeros(half), np.exp(-0.25 * values * values) * math.sqrt(2.0)
    total = current * current
    for n in range(half - 1):
        following = (values - diagonal[n]) * current - (off_diagonal[n - 1] if n else 0.0) * before
        before, current = current, following / off_diagonal[n]
        total += current * current
    half_weights = np.exp(-0.5 * values * values) / total
    z = np.concatenate([-values[::-1], values])
    w = np.concatenate([half_weights[::-1], half_weights])
    return z, w / w.sum()


@lru_cache(maxsize=16)
def hermite_rule(degree: int, nodes: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n d"]]:
    """Return nodes z_i and the matrix `w_i h_j(z_i)`, j = 0 to `degree`, which maps function values to coefficients.

    h_j = He_j / sqrt(j!) is orthonormal under the normal density. The recurrence runs on `sqrt(w_i) h_j(z_i)`, the
    entries of an orthonormal matrix, in float64. It does not overflow, and it is stable in the direction of growing j.

    Args:
        degree: degree of the last polynomial.
        nodes: number of nodes, even and at least `2 degree + 2`, so products of two polynomials are integrated exactly.
    """
    z, w = half_line_rule(nodes)
    columns = [np.sqrt(w), z * np.sqrt(w)]
    for j in range(1, degree):
        columns.append((z * columns[j] - math.sqrt(j) * columns[j - 1]) / math.sqrt(j + 1))
    return z, np.stack(columns[: degree + 1], axis=1) * np.sqrt(w)[:, None]
