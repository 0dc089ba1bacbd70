"""Predictions of a kernel in 120 digits, by filters of an eigendecomposition that is accurate for every spectrum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import exact_kernels  # noqa: F401 sets the precision
import numpy as np
from flint import acb, arb, arb_mat

# Eigenvalues below this share of the largest are those of exact null directions, or rounding of 120 digits.
NULL = arb(2) ** -280
_DONE = arb(2) ** -360
_SMALL = arb(2) ** -10
_ROUNDS = 60


@dataclass(frozen=True)
class Spectrum:
    """`A = vectors diag(values) vectors^T`; null directions have the value 0.

    Args:
        values: eigenvalues, n numbers.
        vectors: eigenvectors, `(n, n)`.
        doubtful: whether some eigenvalue is so small that it may be zero.
    """

    values: list[arb]
    vectors: arb_mat
    doubtful: bool


def matrix(numbers: np.ndarray) -> arb_mat:
    """Return the matrix of an array `(n, m)` of numbers or floats."""
    return arb_mat(
        *numbers.shape, [arb(float(x)) if isinstance(x, float) else arb(x) for x in numbers.ravel().tolist()]
    )


def spectrum(numbers: np.ndarray) -> Spectrum:
    """Return the eigenvalues and eigenvectors of a symmetric matrix, also with graded or clustered eigenvalues.

    LAPACK's eigenvectors make the matrix diagonal to 16 digits. The remainder has two parts. One part couples
    eigenvalues that differ by far more than the remainder, and a first-order rotation squares its size. The other part
    lies within groups of eigenvalues that are equal to 16 digits, and LAPACK resolves each block by another 16 digits.
    """
    b = matrix(numbers)
    n = b.nrows()
    w = _one(n)
    for _ in range(_ROUNDS):
        groups = [group for group in _groups(b) if len(group) > 1]
        if groups:
            b, w = _turned(b, w, _blocks(b, groups))
        angles = _angles(b)
        if angles is None:
            break
        b, w = _turned(b, w, angles)
    else:
        raise ArithmeticError("the eigendecomposition in extended precision does not converge")
    values = [b[i, i] for i in range(n)]
    floor = NULL * max((abs(v) for v in values), default=arb(0))
    noise = _DONE * floor / NULL * n
    doubtful = any(noise < abs(v) < floor for v in values)
    return Spectrum([arb(0) if abs(v) < floor else v for v in values], w, doubtful)


def _coupled(b: arb_mat) -> Iterator[tuple[int, int, arb, arb]]:
    """Return the entries below the diagonal that exceed rounding: positions, values and differences of eigenvalues."""
    n = b.nrows()
    least = (_DONE * max(abs(b[i, i]) for i in range(n))).mid()
    for i in range(n):
        for j in range(i):
            if abs(b[i, j]) > least:
                yield i, j, b[i, j], b[i, i] - b[j, j]


def _groups(b: arb_mat) -> list[list[int]]:
    """Return groups of rows that are coupled by entries not small against the difference of their eigenvalues."""
    parent = list(range(b.nrows()))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, value, gap in _coupled(b):
        if abs(value) > _SMALL * abs(gap):
            parent[root(i)] = root(j)
    found: dict[int, list[int]] = {}
    for i in range(len(parent)):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def _blocks(b: arb_mat, groups: list[list[int]]) -> arb_mat:
    """Return the eigenvectors of the block of every group, to 16 digits of its own scale."""
    x = _one(b.nrows())
    for group in groups:
        middle = sum((b[i, i] for i in group), arb(0)) / len(group)
        part = [[b[i, j] - (middle if i == j else 0) for j in group] for i in group]
        scale = max(abs(v) for row in part for v in row)
        _, vectors = np.linalg.eigh(np.array([[float(v / scale) for v in row] for row in part]))
        for column, j in enumerate(group):
            for row, i in enumerate(group):
                x[i, j] = float(vectors[row, column])
    return x


def _angles(b: arb_mat) -> arb_mat | None:
    """Return `1 + K + K^2 / 2` for the antisymmetric K that removes small couplings, or None if there are none."""
    n = b.nrows()
    k, some = arb_mat(n, n), False
    for i, j, value, gap in _coupled(b):
        some = True
        if abs(value) <= _SMALL * abs(gap):
            angle = (-value / gap).mid()
            k[i, j], k[j, i] = angle, -angle
    return _one(n) + k + k * k / 2 if some else None


def _turned(b: arb_mat, w: arb_mat, x: arb_mat) -> tuple[arb_mat, arb_mat]:
    x = _orthogonal(x)
    # The middle of a ball is an exact number: what the ball says of rounding is lost, and rounding is 2^-400.
    b = (x.transpose() * b * x).mid()
    return ((b + b.transpose()) / 2).mid(), (w * x).mid()


def _one(n: int) -> arb_mat:
    return arb_mat(n, n, [int(i == j) for i in range(n) for j in range(n)])


def _orthogonal(x: arb_mat) -> arb_mat:
    """Return the nearest orthogonal matrix, by an iteration of third order."""
    n = x.nrows()
    for _ in range(8):
        x = x.mid()
        product = (x.transpose() * x).mid()
        off = max(abs(product[i, j] - int(i == j)) for i in range(n) for j in range(n))
        if off < _DONE:
            break
        square = product * product
        factor = square * arb(0.375) - product * arb(1.25)
        for i in range(n):
            factor[i, i] += arb(1.875)
        x = x * factor
    return x


@dataclass(frozen=True)
class Dynamics:
    """Training on `|f - y|^2 / (2 n c)`.

    Args:
        kind: `gradient_flow`, `gradient_descent` or `momentum`.
        rate: learning rate.
        momentum: momentum of the third kind.
        count: number of training points times number of outputs, n c.
    """

    kind: str
    rate: float
    momentum: float
    count: int

    def learnt(self, value: arb, time: float) -> arb:
        """Return `(1 - residual after the time) / value` for an eigenvalue plus ridge; 0 for null directions at t = inf."""
        if math.isinf(time):
            return 1 / value if value != 0 else arb(0)
        unit = arb(self.rate) / self.count
        if self.kind == "gradient_flow":
            s = unit * arb(time)
            return -(-value * s).expm1() / value if value != 0 else s
        if self.kind == "gradient_descent":
            if value == 0:
                return unit * arb(time)
            return (1 - (1 - unit * value) ** int(time)) / value
        return self._heavy_ball(value, time)

    def _heavy_ball(self, value: arb, time: float) -> arb:
        """Return the solution of `h'' + 2 gamma h' + a h = 0` from rest, at `tau = sqrt(rate) t`."""
        gamma = (1 - arb(self.momentum)) / (2 * arb(self.rate).sqrt())
        tau = arb(self.rate).sqrt() * arb(time)
        if value == 0:
            x = 2 * gamma * tau
            return (x + (-x).expm1()) / (2 * gamma) ** 2 / self.count
        root = acb(gamma * gamma - value / self.count).sqrt()
        left = (-gamma * tau + root * tau).exp() / 2 * (1 + gamma / root)
        right = (-gamma * tau - root * tau).exp() / 2 * (1 - gamma / root)
        return (1 - (left + right).real) / value


def predictions(
    found: Spectrum, test: np.ndarray, targets: np.ndarray, dynamics: Dynamics, times: list[float], ridges: list[arb]
) -> np.ndarray:
    """Return the means as numbers, `(T, R, p, c)`.

    Args:
        found: spectrum of the train-train kernel.
        test: test-train kernel, `(p, n)` numbers.
        targets: targets, `(n, c)` floats.
        dynamics: dynamics of the training.
        times: T times.
        ridges: R absolute ridges.
    """
    n = found.vectors.nrows()
    right = found.vectors.transpose() * matrix(targets.astype(float))
    left = matrix(test) * found.vectors
    p, c = len(test), targets.shape[1]
    out = np.empty((len(times), len(ridges), p, c), dtype=object)
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            factors = [dynamics.learnt(value + ridge, time) for value in found.values]
            scaled = arb_mat(n, c, [right[k, m] * factors[k] for k in range(n) for m in range(c)])
            out[i, j] = np.array((left * scaled).table(), dtype=object).reshape(p, c)
    return out


def variances(
    found: Spectrum, test: np.ndarray, prior: np.ndarray, dynamics: Dynamics, times: list[float], ridges: list[arb]
) -> np.ndarray:
    """Return the variances of a posterior as numbers, `(T, R, p)`.

    They are `K_** - K_* psi K_*^T` with `psi = phi (1 + decay)`; `prior` is `K_**`, `(p,)`.
    """
    left = np.array((matrix(test) * found.vectors).table(), dtype=object).reshape(test.shape)
    out = np.empty((len(times), len(ridges), len(test)), dtype=object)
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            phi = [dynamics.learnt(value + ridge, time) for value in found.values]
            psi = np.array([f * (2 - (v + ridge) * f) for f, v in zip(phi, found.values, strict=True)], dtype=object)
            out[i, j] = prior - (left * left * psi).sum(axis=1)
    return out


def ensemble_variances(
    found: Spectrum,
    test: np.ndarray,
    nngp: np.ndarray,
    cross: np.ndarray,
    prior: np.ndarray,
    dynamics: Dynamics,
    times: list[float],
    ridges: list[arb],
) -> np.ndarray:
    """Return the variances of trained networks as numbers, `(T, R, p)`: `K_** + B K B^T - 2 B K_*^T`, `B = T_* phi`.

    Args:
        found: spectrum of the NTK.
        test: test-train NTK, `(p, n)`.
        nngp: train-train NNGP, `(n, n)`.
        cross: test-train NNGP, `(p, n)`.
        prior: NNGP of each test point with itself, `(p,)`.
        dynamics: dynamics of the training.
        times: T times.
        ridges: R absolute ridges.
    """
    n = found.vectors.nrows()
    left, middle, back = matrix(test) * found.vectors, matrix(nngp), found.vectors.transpose()
    out = np.empty((len(times), len(ridges), len(test)), dtype=object)
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            phi = [dynamics.learnt(value + ridge, time) for value in found.values]
            b = arb_mat(len(test), n, [left[r, k] * phi[k] for r in range(len(test)) for k in range(n)]) * back
            pushed = np.array((b * middle).table(), dtype=object).reshape(test.shape)
            weights = np.array(b.table(), dtype=object).reshape(test.shape)
            out[i, j] = prior + (weights * (pushed - 2 * cross)).sum(axis=1)
    return out


def is_reached(found: Spectrum, test: np.ndarray) -> bool:
    """Return whether predictions depend on null directions, so that t = inf without a ridge has no finite limit."""
    null = [k for k, value in enumerate(found.values) if value == 0]
    if not null:
        return False
    left = matrix(test) * found.vectors
    size = max(abs(left[i, k]) for i in range(left.nrows()) for k in range(left.ncols()))
    return any(abs(left[i, k]) > size * arb(2) ** -140 for i in range(left.nrows()) for k in null)
