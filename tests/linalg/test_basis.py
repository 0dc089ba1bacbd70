from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ntkpipe.errors import IncompleteError
from ntkpipe.linalg.basis import Basis, MemoryBasis
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.pool_basis import PoolBasis
from ntkpipe.tasks.serial import SerialExecutor, SerialPool

N = 91


class Memory:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, np.ndarray]] = []

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        self.records.append({name: array.copy() for name, array in arrays.items()})

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.records)


class MortalPool(SerialPool):
    """Workers die before some calls; the next call finds a new one, as the protocol of pools says."""

    def __init__(self, factory, args_per_worker, deaths):
        super().__init__(factory, args_per_worker)
        self.factory, self.args, self.deaths, self.calls = factory, args_per_worker, deaths, 0

    def call(self, worker, method, *args):
        self.calls += 1
        if self.calls in self.deaths:
            self._states[worker] = self.factory(*self.args[worker])
        return super().call(worker, method, *args)


class MortalExecutor(SerialExecutor):
    def __init__(self, workers, deaths):
        super().__init__(workers)
        self.deaths = deaths

    def pool(self, factory, args_per_worker):
        return MortalPool(factory, args_per_worker, self.deaths)


def pooled(workers=3, memory_bytes=1 << 30):
    return PoolBasis(N, SerialExecutor(workers), memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    "make", [lambda: MemoryBasis(N), lambda: pooled(1), lambda: pooled(3), lambda: pooled(200), lambda: pooled(2, 0)]
)
def test_every_basis_does_the_same(make):
    rng, basis = np.random.default_rng(0), make()
    assert isinstance(basis, Basis)
    blocks = [rng.normal(size=(k, N)) / 9 for k in (5, 70, 1, 3)]
    for block in blocks:
        basis.append(block)
    basis.append(np.zeros((0, N)))
    v = np.concatenate(blocks)
    assert (len(basis), basis.n) == (79, N)
    np.testing.assert_array_equal(basis.array(), v)
    np.testing.assert_array_equal(basis.array(66), v[:66])
    w = rng.normal(size=(4, N))
    expected = w - (v @ w.T).T @ v
    coefficients = basis.remove(w)
    np.testing.assert_allclose(w, expected, atol=1e-13)
    assert coefficients.shape == (79, 4)
    c = rng.normal(size=(66, 7))
    np.testing.assert_allclose(basis.combine(c), v[:66].T @ c, atol=1e-13)
    picked = np.array([0, 30, 31, 90])
    np.testing.assert_array_equal(basis.picked(picked), v[:, picked])
    np.testing.assert_array_equal(basis.picked(picked, 3), v[:3, picked])
    np.testing.assert_allclose(basis.times(w, 70), w @ v[:70].T, atol=1e-13)
    rotation = np.linalg.qr(rng.normal(size=(79, 66)))[0]
    basis.rotate(rotation)
    np.testing.assert_allclose(basis.array(), rotation.T @ v, atol=1e-13)
    basis.append(blocks[0])
    assert len(basis) == 71
    np.testing.assert_array_equal(basis.array()[66:], blocks[0])
    basis.close()
    basis.close()


def test_what_does_not_fit_goes_to_disk():
    basis = pooled(2, memory_bytes=8 * N * 64)  # one segment of 64 vectors in memory
    basis.append(np.ones((200, N)))
    assert basis.on_disk() == 2 * 3
    assert basis.array().sum() == 200 * N


def test_lanczos_on_a_pool_equals_lanczos_in_memory(make_matrix, make_labels):
    a, b = make_matrix(np.logspace(-5, 0, N)), make_labels(N, 5)
    here = block_lanczos(DenseOperator(a), b, max_steps=12)
    there = block_lanczos(DenseOperator(a), b, max_steps=12, basis=pooled(3, memory_bytes=0))
    assert there.orthogonality() <= 1e-13
    for name in ("basis", "projected", "coupling", "next_block"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_lost_workers_cost_no_step(make_matrix, make_labels, seed):
    a, b = make_matrix(np.logspace(-5, 0, N)), make_labels(N, 5)
    undisturbed = block_lanczos(DenseOperator(a), b, max_steps=14, basis=pooled(3))
    deaths = set(np.random.default_rng(seed).choice(np.arange(4, 120), 9, replace=False).tolist())
    basis, passes = PoolBasis(N, MortalExecutor(3, deaths), memory_bytes=1 << 30), []
    result = block_lanczos(
        DenseOperator(a),
        b,
        max_steps=14,
        basis=basis,
        checkpoint=Memory(),
        checkpoint_every=3,
        on_step=lambda record: passes.append(record.step),
    )
    assert passes == list(range(1, 15))
    for name in ("basis", "projected", "coupling"):
        np.testing.assert_array_equal(getattr(result, name), getattr(undisturbed, name))


def test_a_lost_worker_without_a_checkpoint_says_so(make_matrix, make_labels):
    a, b = make_matrix(np.linspace(1, 2, N)), make_labels(N, 5)
    basis = PoolBasis(N, MortalExecutor(2, {20}), memory_bytes=1 << 30)
    with pytest.raises(IncompleteError, match="run the same"):
        block_lanczos(DenseOperator(a), b, max_steps=14, basis=basis)
