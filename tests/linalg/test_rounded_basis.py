"""A basis in float32: the projection is that of the stored vectors, and a resumed solve has equal bits."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.linalg.basis import spanned
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.rounded_basis import UNIT, RoundedBasis, along
from ntkpipe.storage.store import open_store

EPS = float(np.finfo(np.float64).eps)


def run(a: np.ndarray, b: np.ndarray, steps: int = 20, checkpoint=None, every: int = 5) -> LanczosResult:
    basis = RoundedBasis(len(a))
    return block_lanczos(
        DenseOperator(a), b, max_steps=steps, checkpoint=checkpoint, checkpoint_every=every, basis=basis
    )


def test_the_pencil_is_that_of_the_stored_vectors(make_matrix, make_labels, spectrum) -> None:
    n, a, b = 150, make_matrix(spectrum(150)), make_labels(150, 4)
    found = run(a, b)
    q = found.basis.astype(np.float64)
    assert found.basis.dtype == np.float32
    assert found.pencil is not None
    kernel, gram = found.pencil
    largest = float(np.linalg.norm(a, 2))
    np.testing.assert_allclose(kernel, q @ a @ q.T, rtol=0, atol=50 * n * EPS * largest)
    np.testing.assert_allclose(gram, q @ q.T, rtol=0, atol=50 * EPS)
    # Rounding alone keeps the vectors from being orthonormal.
    assert np.abs(gram - np.eye(len(q))).max() <= 2 * UNIT
    assert found.start_error is not None
    np.testing.assert_allclose(found.start_error, np.linalg.norm(b - q[:3].T @ found.start, axis=0), atol=1e-13)
    assert (found.start_error <= 2 * UNIT * np.linalg.norm(b, axis=0)).all()


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_a_resumed_solve_has_equal_bits(tmp_path, make_matrix, make_labels, cut: int) -> None:
    a, b = make_matrix(np.logspace(-4, 0, 120)), make_labels(120, 10)
    wanted = run(a, b, 12)
    run(a, b, cut, StoreCheckpoint(open_store(str(tmp_path)), "s", "key"))
    found = run(a, b, 12, StoreCheckpoint(open_store(str(tmp_path)), "s", "key"), 3)
    restored = run(a, b, 12, StoreCheckpoint(open_store(str(tmp_path)), "s", "key"))
    for one in (found, restored):
        for name in ("basis", "coupling", "start", "next_block", "projected"):
            np.testing.assert_array_equal(getattr(one, name), getattr(wanted, name))
        assert one.pencil is not None
        assert wanted.pencil is not None
        np.testing.assert_array_equal(one.pencil[0], wanted.pencil[0])
        np.testing.assert_array_equal(one.pencil[1], wanted.pencil[1])


def test_products_with_rounded_vectors_are_in_float64() -> None:
    rng = np.random.default_rng(0)
    n, m = 9000, 300  # several parts of both
    basis, rows, columns = rng.standard_normal((m, n)), rng.standard_normal((3, n)), rng.standard_normal((m, 2))
    stored = basis.astype(np.float32)
    np.testing.assert_allclose(along(rows, stored), rows @ stored.astype(float).T, atol=n * EPS * 10)
    np.testing.assert_allclose(spanned(stored, columns), stored.astype(float).T @ columns, atol=m * EPS * 10)
    np.testing.assert_array_equal(along(rows, basis), rows @ basis.T)
    np.testing.assert_allclose(spanned(basis, columns), basis.T @ columns, atol=m * EPS * 10)


def test_vectors_are_not_combined() -> None:
    basis = RoundedBasis(10)
    basis.append(np.eye(10)[:3])
    with pytest.raises(ValueError, match="cannot be combined"):
        basis.rotate(np.eye(3)[:, :2])
    basis.rotate(np.zeros((3, 0)))
    assert len(basis) == 0
