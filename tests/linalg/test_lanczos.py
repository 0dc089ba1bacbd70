from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.lanczos import LanczosResult, block_lanczos, growing_schedule, largest_eigenvalue
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.linalg.solution import Reason

EPS = np.finfo(np.float64).eps


class Memory:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, np.ndarray]] = []

    def append(self, start: int, step: int, arrays: dict[str, np.ndarray]) -> None:
        assert start < step
        self.records.append({name: array.copy() for name, array in arrays.items()})

    def replay(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.records)


def defect(a: np.ndarray, result: LanczosResult) -> float:
    """Norm of A V - V H - V_next B E^T, which the recurrence claims to be rounding."""
    v = result.basis.T
    ahead = np.zeros_like(v)
    last = result.coupling.shape[1]
    if last:
        ahead[:, -last:] = result.next_block.T @ result.coupling
    return float(np.linalg.norm(a @ v - v @ result.projected - ahead, 2))


def solve(result: LanczosResult, f) -> np.ndarray:
    values, vectors = np.linalg.eigh(result.projected)
    first = np.zeros((len(values), result.start.shape[1]))
    first[: len(result.start)] = result.start
    return result.basis.T @ (vectors @ (f(values)[:, None] * (vectors.T @ first)))


def check(a: np.ndarray, b: np.ndarray, result: LanczosResult) -> None:
    n, m = len(a), len(result.basis)
    norm = np.linalg.norm(a, 2) or 1.0
    assert result.orthogonality() <= 1e-13
    assert defect(a, result) <= 4 * EPS * norm * np.sqrt(n * max(1, m)) + result.dropped
    np.testing.assert_allclose(
        result.basis[: len(result.start)].T @ result.start, b, atol=8 * n * EPS * np.abs(b).max()
    )
    assert sum(result.block_sizes) == m == len(result.projected)
    assert all(later <= earlier for earlier, later in zip(result.block_sizes, result.block_sizes[1:], strict=False))
    np.testing.assert_array_equal(result.projected, result.projected.T)
    offsets = np.repeat(np.arange(len(result.block_sizes)), result.block_sizes)
    assert not result.projected[np.abs(offsets[:, None] - offsets) > 1].any()


@pytest.mark.parametrize("steps", [1, 4, 20, 1000])
def test_the_recurrence_holds_for_every_spectrum(spectrum, make_matrix, make_labels, steps):
    n = 150
    a, b = make_matrix(spectrum(n)), make_labels(n, 10)
    result = block_lanczos(DenseOperator(a), b, max_steps=steps)
    check(a, b, result)
    assert result.block_sizes[0] == 9  # one-hot minus 1/10 has rank 9


def test_an_exhausted_space_gives_the_dense_answer_at_every_time(make_matrix, make_labels):
    n = 120
    values = np.logspace(-4, 0, n)
    a, b = make_matrix(values), make_labels(n, 7)
    result = block_lanczos(DenseOperator(a), b, max_steps=10**6)
    assert result.reason is Reason.INVARIANT
    assert result.invariant
    exact, vectors = np.linalg.eigh(a)
    for time in (1e-2, 1.0, 1e3):

        def f(x, time=time):
            return -np.expm1(-x * time) / x

        expected = vectors @ (f(exact)[:, None] * (vectors.T @ b))
        # phi is bounded by time and 1/l, its relative sensitivity by the condition number.
        bound = 20 * n * EPS * min(time, 1e4) * max(1.0, min(time, 1e4)) * np.linalg.norm(b)
        assert np.linalg.norm(solve(result, f) - expected) <= bound


def test_breakdown_at_few_distinct_eigenvalues_is_convergence(make_matrix, make_labels):
    n = 90
    a, b = make_matrix(np.repeat([1.0, 4.0, 9.0], n // 3)), make_labels(n, 4)
    result = block_lanczos(DenseOperator(a), b, max_steps=50)
    assert result.reason is Reason.INVARIANT
    assert len(result.basis) <= 3 * 3
    np.testing.assert_allclose(a @ solve(result, lambda x: 1 / x), b, atol=100 * n * EPS)


def test_blocks_shrink_where_a_direction_is_exhausted(make_matrix):
    n = 60
    values, rng = np.linspace(1, 5, n), np.random.default_rng(0)
    a = make_matrix(values)
    _, vectors = np.linalg.eigh(a)
    b = np.column_stack([rng.normal(size=n), vectors[:, 3], rng.normal(size=n), vectors[:, 3] + vectors[:, 8]])
    result = block_lanczos(DenseOperator(a), b, max_steps=10)
    check(a, b, result)
    assert result.block_sizes[:3] == [4, 2, 2]


def test_duplicated_columns_and_zero_start(make_matrix):
    a = make_matrix(np.linspace(1, 2, 30))
    column = np.random.default_rng(1).normal(size=(30, 1))
    assert block_lanczos(DenseOperator(a), np.tile(column, 3), max_steps=3).block_sizes == [1, 1, 1]
    zero = block_lanczos(DenseOperator(a), np.zeros((30, 3)), max_steps=3)
    assert zero.reason is Reason.INVARIANT
    assert zero.steps == 0
    assert zero.basis.shape == (0, 30)
    assert zero.start.shape == (0, 3)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_by_one_and_zero_matrices(value):
    result = block_lanczos(DenseOperator(np.array([[value]])), np.array([[2.0, -2.0]]), max_steps=5)
    assert result.reason is Reason.INVARIANT
    np.testing.assert_allclose(result.projected, [[value]])
    assert block_lanczos(DenseOperator(np.zeros((5, 5))), np.ones((5, 1)), max_steps=5).steps == 1


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 40),
    c=st.integers(1, 12),
    rank=st.integers(0, 12),
    steps=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_any_size_and_rank(n, c, rank, steps, seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(n, rng.integers(1, n + 1)))
    a = g @ g.T
    b = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, c))
    result = block_lanczos(DenseOperator(a), b, max_steps=steps)
    check(a, b, result)
    assert len(result.basis) + len(result.next_block) <= n


def test_stop_is_asked_on_the_schedule_and_ends_the_run(make_matrix, make_labels):
    a, b = make_matrix(np.linspace(1, 100, 200)), make_labels(200, 3)
    asked = []

    def stop(result: LanczosResult) -> bool:
        asked.append(result.steps)
        return result.steps >= 30

    result = block_lanczos(DenseOperator(a), b, max_steps=90, stop=stop)
    assert result.reason is Reason.CONVERGED
    assert asked == [*range(1, 22), 23, 25, 27, 29, 31]
    assert result.steps == growing_schedule(29) == 31
    never = block_lanczos(DenseOperator(a), b, max_steps=25, stop=lambda _: False)
    assert never.reason is Reason.MAX_STEPS
    assert "solver.max_steps" in str(never.reason)


def test_snapshots_do_not_change_afterwards(make_matrix, make_labels):
    a, b = make_matrix(np.linspace(1, 100, 80)), make_labels(80, 3)
    kept = []
    block_lanczos(DenseOperator(a), b, max_steps=12, stop=lambda r: kept.append((r, r.basis.copy())) or False)
    for result, basis in kept:
        np.testing.assert_array_equal(result.basis, basis)


@pytest.mark.parametrize("interrupted_at", [1, 7, 10, 13])
def test_a_resumed_run_equals_the_undisturbed_one(make_matrix, make_labels, interrupted_at):
    a, b = make_matrix(np.logspace(-5, 0, 200)), make_labels(200, 5)
    undisturbed = block_lanczos(DenseOperator(a), b, max_steps=17)

    class KilledError(Exception):
        pass

    def kill(record):
        if record.step == interrupted_at:
            raise KilledError

    memory = Memory()
    with pytest.raises(KilledError):
        block_lanczos(DenseOperator(a), b, max_steps=17, checkpoint=memory, checkpoint_every=3, on_step=kill)
    steps = []
    resumed = block_lanczos(
        DenseOperator(a),
        b,
        max_steps=17,
        checkpoint=memory,
        checkpoint_every=3,
        on_step=lambda record: steps.append(record.step),
    )
    assert steps[0] == (interrupted_at - 1) // 3 * 3 + 1
    assert resumed.block_sizes == undisturbed.block_sizes
    for name in ("basis", "projected", "coupling", "next_block", "start"):
        np.testing.assert_allclose(getattr(resumed, name), getattr(undisturbed, name), rtol=0, atol=1e-12)
    again = block_lanczos(DenseOperator(a), b, max_steps=17, checkpoint=memory, on_step=lambda _: pytest.fail("a pass"))
    np.testing.assert_array_equal(again.basis, resumed.basis)


def test_an_invariant_run_is_restored_without_a_pass(make_matrix, make_labels):
    a, b, memory = make_matrix(np.repeat([1.0, 4.0], 20)), make_labels(40, 3), Memory()
    first = block_lanczos(DenseOperator(a), b, max_steps=9, checkpoint=memory)
    again = block_lanczos(DenseOperator(a), b, max_steps=9, checkpoint=memory, on_step=lambda _: pytest.fail("a pass"))
    assert again.reason is first.reason is Reason.INVARIANT
    np.testing.assert_array_equal(again.projected, first.projected)


def test_a_checkpoint_of_another_start_is_refused(make_matrix, make_labels):
    a, memory = make_matrix(np.linspace(1, 3, 50)), Memory()
    block_lanczos(DenseOperator(a), make_labels(50, 3), max_steps=3, checkpoint=memory)
    for other in (make_labels(50, 3, seed=5), make_labels(50, 4)):
        with pytest.raises(ValueError, match="delete it"):
            block_lanczos(DenseOperator(a), other, max_steps=5, checkpoint=memory)


def test_bad_input_is_named(make_matrix):
    a = make_matrix(np.linspace(1, 3, 10))
    with pytest.raises(ValueError, match="size 10"):
        block_lanczos(DenseOperator(a), np.ones((9, 1)), max_steps=3)
    with pytest.raises(ValueError, match="non-finite"):
        block_lanczos(DenseOperator(a), np.full((10, 1), np.nan), max_steps=3)
    with pytest.raises(ValueError, match="max_steps"):
        block_lanczos(DenseOperator(a), np.ones((10, 1)), max_steps=0)
    a[3, 4] = np.inf
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        block_lanczos(DenseOperator(a), np.ones((10, 1)), max_steps=3)


def test_float32_products_keep_the_basis_orthonormal_and_reach_float32_accuracy(make_matrix, make_labels):
    n = 300
    a, b = make_matrix(np.linspace(1, 100, n)), make_labels(n, 10)
    result = block_lanczos(DenseOperator(a.astype(np.float32), products="float32"), b, max_steps=60)
    assert result.orthogonality() <= 1e-13
    x = solve(result, lambda v: 1 / v)
    residual = np.linalg.norm(a @ x - b) / np.linalg.norm(b)
    # |A| |x| / |b| <= condition = 100; float32 rounding per product, in the root mean square.
    assert residual <= 100 * np.finfo(np.float32).eps * np.sqrt(n)


@pytest.mark.parametrize("n", [1, 2, 150])
def test_the_largest_eigenvalue(spectrum, make_matrix, n):
    values = spectrum(n) if n > 2 else np.arange(1.0, n + 1)
    largest = largest_eigenvalue(DenseOperator(make_matrix(values)))
    assert largest == pytest.approx(values.max(), rel=1e-8)
    assert largest <= values.max() * (1 + 10 * n * EPS)


def test_a_checkpoint_that_went_further_is_used_as_it_is(make_matrix, make_labels):
    a, b, memory = make_matrix(np.linspace(1, 100, 80)), make_labels(80, 3), Memory()
    longer = block_lanczos(DenseOperator(a), b, max_steps=12, checkpoint=memory, checkpoint_every=5)
    again = block_lanczos(DenseOperator(a), b, max_steps=4, checkpoint=memory)
    assert again.steps == 12
    np.testing.assert_array_equal(again.basis, longer.basis)


@pytest.mark.parametrize("classes", [100, 299])
def test_hundreds_of_columns_shrink_to_what_is_independent(make_matrix, make_labels, classes):
    n = 300
    a = make_matrix(np.logspace(-3, 0, n))
    b = np.tile(make_labels(n, classes), 2)
    result = block_lanczos(DenseOperator(a), b, max_steps=10**6)
    check(a, b, result)
    assert result.reason is Reason.INVARIANT
    assert result.block_sizes[0] == classes - 1  # one-hot less its mean, and every column twice
    assert sum(result.block_sizes) == n
    exact = np.linalg.solve(a, b)
    np.testing.assert_allclose(solve(result, lambda v: 1 / v), exact, atol=1e-11 * np.abs(exact).max())


def test_columns_of_a_smooth_kernel_are_deflated(make_matrix):
    # What variances start from: 200 columns of a test-train kernel, of numerical rank far below.
    n = 250
    x = np.linspace(0, 1, n)[:, None]
    a = np.exp(-30 * (x - x.T) ** 2) + 1e-2 * make_matrix(np.linspace(1, 2, n))
    b = np.exp(-30 * (x - np.linspace(0, 1, 200)[None]) ** 2)
    result = block_lanczos(DenseOperator(a), b, max_steps=4)
    assert result.block_sizes[0] < 40
    check(a, b, result)
