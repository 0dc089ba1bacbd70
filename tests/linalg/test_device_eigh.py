"""Eigendecompositions on an accelerator; here JAX's CPU device takes its place."""

from __future__ import annotations

import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from ntkpipe.errors import NumericalError
from ntkpipe.linalg import device_eigh, eigh


@pytest.fixture
def device(monkeypatch):
    """The CPU as an accelerator, for matrices of any size."""
    monkeypatch.setattr(device_eigh, "default_platform", lambda: "gpu")
    monkeypatch.setattr(eigh, "_DEVICE_ROWS", 1)
    calls = []
    real = device_eigh.device_eigh
    monkeypatch.setattr(device_eigh, "device_eigh", lambda array: calls.append(array.shape) or real(array))
    return calls


def prescribed(n, rng):
    """A matrix with eigenvalues from 1e-8 to 1, and these."""
    values = np.geomspace(1e-8, 1.0, n)
    vectors = np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = (vectors * values) @ vectors.T
    return 0.5 * (matrix + matrix.T), values


def test_a_prescribed_spectrum(device):
    n = 120
    matrix, values = prescribed(n, np.random.default_rng(0))
    found = eigh.eigh(matrix)
    assert device == [(n, n)]
    assert found.values.dtype == found.vectors.dtype == np.float64
    rounding = n * np.finfo(np.float64).eps
    np.testing.assert_allclose(found.values, values, rtol=0, atol=rounding)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(n), rtol=0, atol=rounding)
    np.testing.assert_allclose(matrix @ found.vectors, found.vectors * found.values, rtol=0, atol=rounding)


@pytest.mark.parametrize("order", ["C", "F"])
def test_only_the_lower_triangle_counts_and_the_matrix_stays(device, order):
    matrix, values = prescribed(30, np.random.default_rng(1))
    lower = np.array(np.tril(matrix) + 7.0 * np.triu(np.ones_like(matrix), 1), order=order)
    kept = lower.copy()
    np.testing.assert_allclose(eigh.eigh(lower).values, values, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(lower, kept)


def test_values_that_are_not_finite_are_refused(device):
    matrix, _ = prescribed(20, np.random.default_rng(2))
    matrix[3, 2] = matrix[2, 3] = np.nan
    with pytest.raises(NumericalError, match="not finite"):
        eigh.eigh(matrix)


def test_without_memory_on_the_device_the_host_decomposes(device, monkeypatch):
    def full(*_, **__):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 80000000000 bytes.")

    monkeypatch.setattr(device_eigh.jax.lax.linalg, "eigh", full)
    matrix, values = prescribed(25, np.random.default_rng(3))
    np.testing.assert_allclose(eigh.eigh(matrix).values, values, rtol=0, atol=1e-13)
    assert device == [(25, 25)]


def test_few_rows_and_processors_stay_on_the_host(monkeypatch):
    monkeypatch.setattr(device_eigh, "device_eigh", lambda array: pytest.fail("no accelerator"))
    matrix, values = prescribed(20, np.random.default_rng(4))
    np.testing.assert_allclose(eigh.eigh(matrix).values, values, rtol=0, atol=1e-13)
    monkeypatch.setattr(eigh, "_DEVICE_ROWS", 1)
    np.testing.assert_allclose(eigh.eigh(matrix).values, values, rtol=0, atol=1e-13)
