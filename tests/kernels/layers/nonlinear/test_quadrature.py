"""The Gauss rule of both halves of the line, and the matrix of Hermite polynomials on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ntkpipe.kernels.layers.nonlinear.quadrature import half_line_rule, hermite_rule


def absolute_moment(n):
    """E|z|^n of a standard normal z."""
    return math.exp(0.5 * n * math.log(2) + math.lgamma((n + 1) / 2) - 0.5 * math.log(math.pi))


@pytest.mark.parametrize("nodes", [4, 16, 130, 512])
def test_exact_for_polynomials_on_either_side(nodes):
    """A sum of positive terms, each with the rounding of its node's power n."""
    z, w = half_line_rule(nodes)
    assert (z == -z[::-1]).all()
    assert (w == w[::-1]).all()
    assert (w > 0).all()
    for n in range(min(nodes, 24)):
        error = abs((w * np.abs(z) ** n).sum() / absolute_moment(n) - 1)
        assert error <= 16 * (n + 1) * np.finfo(np.float64).eps, n


@pytest.mark.parametrize(("degree", "nodes"), [(1, 4), (7, 16), (64, 130), (64, 400), (255, 512)])
def test_hermite_polynomials_are_orthonormal(degree, nodes):
    z, matrix = hermite_rule(degree, nodes)
    _, w = half_line_rule(nodes)
    gram = matrix.T @ (matrix / w[:, None])
    assert matrix.shape == (nodes, degree + 1)
    # Forward recurrence: its error grows linearly with the number of steps.
    np.testing.assert_allclose(gram, np.eye(degree + 1), atol=4 * (degree + 1) * np.finfo(np.float64).eps, rtol=0)
    np.testing.assert_allclose(matrix[:, 1], w * z, rtol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_kink_elsewhere_converges_as_stated(shift):
    """E relu(z - s): exact for a kink at 0, of order 1 / nodes (times the density's scale, 0.4) for one elsewhere."""
    exact = math.exp(-0.5 * shift**2) / math.sqrt(2 * math.pi) - shift * 0.5 * math.erfc(shift / math.sqrt(2))
    for nodes in (32, 128, 512):
        z, w = half_line_rule(nodes)
        error = abs((w * np.maximum(z - shift, 0)).sum() - exact)
        assert error <= (1e-14 if shift == 0 else 0.4 / nodes)
