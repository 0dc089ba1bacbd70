"""Whatever the matrix: what is called converged meets its residual in float64, and what does not is called otherwise."""

from __future__ import annotations

import float32_factors
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.cg_recurrence import CgRecurrence
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator, tile_operator
from ntkpipe.linalg.preconditioner import Identity, nystrom, pivoted_cholesky
from ntkpipe.linalg.solution import Reason
from ntkpipe.storage.store import open_store
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

EPS = float(np.finfo(np.float64).eps)
UNIT_32 = float(np.finfo(np.float32).eps) / 2

PRECONDITIONERS = {
    "none": lambda operator, ridge: Identity(),
    "nystrom": lambda operator, ridge: nystrom(operator, ridge=ridge).at(ridge),
    "cholesky": lambda operator, ridge: pivoted_cholesky(operator, ridge=ridge).at(ridge),
    "float32_factor": float32_factors.make,
}


def true_residual(a, ridge, b, x) -> float:
    """Largest relative residual of a column that is not zero."""
    norms = np.linalg.norm(b, axis=0)
    residual = np.linalg.norm(b - a @ x - ridge * x, axis=0)
    assert (residual[norms == 0] == 0).all()
    return float((residual[norms > 0] / norms[norms > 0]).max(initial=0.0))


def is_honest(solution, a, ridge, b, tolerance) -> bool:
    """The residual is what it is said to be, to the rounding of computing it, and below the tolerance if converged."""
    x = solution.value
    norms = np.linalg.norm(b, axis=0)
    size = np.linalg.norm(x, axis=0) / np.where(norms > 0, norms, 1.0)
    slack = 8 * len(a) * EPS * (1 + (np.abs(a).sum(0).max() + ridge) * size.max(initial=0.0))
    residual = true_residual(a, ridge, b, x)
    assert abs(solution.residual - residual) <= slack
    assert solution.residual == solution.residuals.max(initial=0.0)
    assert (solution.reason is Reason.CONVERGED) == (solution.residual <= tolerance)
    return solution.reason.ok


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("products", ["float32", "float64"])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
def test_prescribed_spectra(spectrum, make_matrix, make_labels, kind, products, ridge):
    n, tolerance = 120, 1e-8
    values = spectrum(n)
    a, b = make_matrix(values), make_labels(n, 5)
    operator, exact = DenseOperator(a, products), DenseOperator(a)
    unit = UNIT_32 if products == "float32" else EPS
    solution = block_cg(
        operator,
        b,
        ridge=ridge,
        preconditioner=PRECONDITIONERS[kind](operator, ridge),
        tolerance=tolerance,
        exact=exact.matmul,
        rounding=unit,
    )
    converged = is_honest(solution, a, ridge, b, tolerance)
    condition = (values.max() + ridge) / max(values.min() + ridge, 1e-300)
    # An answer is attainable if the products resolve the smallest eigenvalue with some digits to spare.
    if condition * unit * n < 1e-2:
        assert converged, solution.explain(ridge)
        x = np.linalg.solve(a + ridge * np.eye(n), b)
        error = np.linalg.norm(solution.value - x, axis=0) / np.linalg.norm(x, axis=0)
        assert error.max() <= condition * (tolerance + n * EPS)
        # The smallest eigenvalue: never far above, of M >= I possibly below.
        assert 0 < solution.smallest <= (values.min() + ridge) * 2
    if not converged:
        assert solution.reason in (Reason.STAGNATED, Reason.INDEFINITE, Reason.MAX_STEPS)
        assert "residual" in solution.explain(ridge) or "ridge of at least" in solution.explain(ridge)


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("negative", [-1e-6, -1e-3, -1.0])
def test_an_indefinite_matrix_is_never_called_converged_wrongly(make_matrix, make_labels, kind, negative):
    n = 100
    a, b = make_matrix(np.append(negative, np.logspace(-2, 1, n - 1))), make_labels(n, 4)
    operator = DenseOperator(a)
    try:
        preconditioner = PRECONDITIONERS[kind](operator, 0.0)
    except NumericalError:
        with pytest.raises(NumericalError, match=r"solver\.preconditioner=none"):
            PRECONDITIONERS[kind](operator, 0.0)
        return
    solution = block_cg(operator, b, preconditioner=preconditioner, tolerance=1e-10)
    is_honest(solution, a, 0.0, b, 1e-10)


@pytest.mark.parametrize("negative", [-1e-4, -1e-2, -1.0])
def test_indefinite_names_the_level_and_a_ridge_that_does(make_matrix, make_labels, negative):
    n = 100
    a, b = make_matrix(np.append([negative] * 5, np.linspace(1, 10, n - 5))), make_labels(n, 4)
    solution = block_cg(DenseOperator(a), b, tolerance=1e-12)
    assert solution.reason is Reason.INDEFINITE
    assert not solution.reason.ok
    assert negative * (1 + 1e-9) <= solution.curvature < 0  # a Rayleigh quotient
    text = solution.explain(0.0, mean_diagonal=2.0)
    assert "indefinite at the level of" in text
    assert "kernel.dtype=float64" in text
    needed = float(text.split("at least ")[1].split()[0])
    assert needed == pytest.approx(-2 * solution.curvature, rel=0.1)
    assert f"mean of the diagonal: {needed / 2:.0e}"[:-6] in text
    ridge = 2 * -negative
    assert block_cg(DenseOperator(a), b, ridge=ridge).reason is Reason.CONVERGED


def test_right_hand_sides_outside_a_singular_matrix_stagnate(make_matrix):
    n = 60
    a = make_matrix(np.concatenate([np.zeros(20), np.linspace(1, 3, 40)]))
    b = np.random.default_rng(0).standard_normal((n, 3))
    solution = block_cg(DenseOperator(a), b)
    assert solution.reason in (Reason.STAGNATED, Reason.INDEFINITE)
    is_honest(solution, a, 0.0, b, 1e-8)
    inside = block_cg(DenseOperator(a), a @ b)
    assert is_honest(inside, a, 0.0, a @ b, 1e-8)


@pytest.mark.parametrize("classes", [2, 10])
def test_rank_deficient_duplicate_and_zero_columns(make_matrix, make_labels, classes):
    n = 90
    a = make_matrix(np.logspace(-3, 0, n))
    labels = make_labels(n, classes)
    zero = np.zeros((n, 1))
    b = np.hstack([labels, labels[:, :1], zero, -1e6 * labels[:, 1:2], labels[:, :1] + 1e-9 * labels[:, -1:], zero])
    solution = block_cg(DenseOperator(a), b, tolerance=1e-10)
    assert is_honest(solution, a, 0.0, b, 1e-10)
    assert not solution.value[:, classes + 1].any()
    np.testing.assert_array_equal(solution.value[:, 0] != 0, True)
    np.testing.assert_allclose(
        solution.value[:, classes], solution.value[:, 0], rtol=0, atol=1e-9 * np.abs(solution.value[:, 0]).max()
    )


def test_a_dependent_direction_costs_no_passes(make_matrix, make_labels):
    """Centred labels have rank c - 1: their last direction is rounding, and must not be searched."""
    n = 300
    a, b = make_matrix(np.logspace(-4, 0, n)), make_labels(n, 10)
    full = block_cg(DenseOperator(a), b[:, :9])
    deficient = block_cg(DenseOperator(a), b)
    assert deficient.iterations <= full.iterations + 2
    assert deficient.reason is Reason.CONVERGED


def test_zero_right_hand_sides_take_no_pass():
    solution = block_cg(DenseOperator(np.eye(5)), np.zeros((5, 3)))
    assert (solution.reason, solution.iterations, solution.residual) == (Reason.CONVERGED, 0, 0.0)
    assert not solution.value.any()


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_columns(make_matrix, kind, n):
    a = make_matrix(np.linspace(1, 2, n))
    b = np.random.default_rng(0).standard_normal((n, 9))
    operator = DenseOperator(a)
    solution = block_cg(operator, b, preconditioner=PRECONDITIONERS[kind](operator, 0.0), tolerance=1e-12)
    assert is_honest(solution, a, 0.0, b, 1e-12)
    assert solution.iterations <= 2  # the block spans the whole space


def test_max_steps_says_so(make_matrix, make_labels):
    a, b = make_matrix(np.logspace(-8, 0, 100)), make_labels(100, 3)
    solution = block_cg(DenseOperator(a), b, max_steps=4)
    assert solution.reason is Reason.MAX_STEPS
    assert solution.iterations == 4
    is_honest(solution, a, 0.0, b, 1e-8)


def test_float32_products_reach_a_float64_residual_by_replacing_it(make_matrix, make_labels):
    n = 200
    a, b = make_matrix(np.logspace(-4, 0, n)), make_labels(n, 10)
    exact = DenseOperator(a)
    solution = block_cg(
        DenseOperator(a, "float32"), b, tolerance=1e-11, exact=exact.matmul, rounding=UNIT_32, max_steps=2000
    )
    assert is_honest(solution, a, 0.0, b, 1e-11)
    assert solution.checks >= 2


def test_the_spectrum_is_that_of_lanczos(make_matrix, make_labels):
    """In exact arithmetic the coefficients are those of block Lanczos: on a well-separated spectrum to rounding."""
    n = 80
    values = np.linspace(1, 10, n)
    a, b = make_matrix(values), make_labels(n, 5)
    solution = block_cg(DenseOperator(a), b, tolerance=1e-13)
    result = block_lanczos(DenseOperator(a), b, max_steps=solution.iterations)
    ritz = np.linalg.eigvalsh(result.projected)[0]
    # Lowered by what its residual says that it may fall.
    assert ritz * (1 - 1e-4) <= solution.smallest <= ritz * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["nystrom", "cholesky", "float32_factor"])
def test_preconditioned_estimates_of_the_smallest_eigenvalue_are_safe(make_matrix, make_labels, kind):
    n = 300
    a, b = make_matrix(np.logspace(-5, 0, n)), make_labels(n, 5)
    operator = DenseOperator(a)
    solution = block_cg(operator, b, preconditioner=PRECONDITIONERS[kind](operator, 0.0), tolerance=1e-10)
    assert solution.reason is Reason.CONVERGED
    assert 1e-7 <= solution.smallest <= 1.1e-5


def test_a_warm_start_saves_passes(make_matrix, make_labels):
    n = 200
    a, b = make_matrix(np.logspace(-5, 0, n)), make_labels(n, 10)
    operator = DenseOperator(a)
    first = block_cg(operator, b, ridge=1.1e-3)
    cold, warm = block_cg(operator, b, ridge=1e-3), block_cg(operator, b, ridge=1e-3, start=first.value)
    assert is_honest(warm, a, 1e-3, b, 1e-8)
    assert warm.iterations < cold.iterations
    again = block_cg(operator, b, ridge=1e-3, start=warm.value, tolerance=1.01e-8)
    assert again.iterations == 0


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    rank=st.integers(0, 6),
    extra=st.integers(0, 4),
    decades=st.floats(0, 14),
    sign=st.sampled_from([1, 1, 1, -1]),
    ridge=st.sampled_from([0.0, 1e-10, 1e-3]),
    kind=st.sampled_from(sorted(PRECONDITIONERS)),
    seed=st.integers(0, 2**16),
)
def test_any_problem_has_an_honest_end(n, rank, extra, decades, sign, ridge, kind, seed):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    values = np.logspace(-decades, 0, n)
    values[0] *= sign
    a = (q * values) @ q.T
    a = (a + a.T) / 2
    b = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, rank + extra))
    operator = DenseOperator(a)
    try:
        preconditioner = PRECONDITIONERS[kind](operator, ridge)
    except NumericalError:
        if sign > 0:
            raise
        return
    solution = block_cg(operator, b, ridge=ridge, preconditioner=preconditioner, max_steps=400)
    converged = is_honest(solution, a, ridge, b, 1e-8)
    # |r_k| / |r_0| <= 2 sqrt(condition) exp(-2 k / sqrt(condition)), in floating point too (Greenbaum 1989); M >= I. Where
    # eps times the condition is far below the tolerance, one way through so small a space is enough as well.
    root = np.sqrt(1 / max(10.0**-decades, ridge))
    if sign > 0 and (decades < 5 or root / 2 * np.log(2 * root / 1e-8) < 400):
        assert converged


def test_a_stalled_solve_begins_anew(tmp_path, make_matrix, make_labels):
    """Lost directions, as rounding may lose them: what is left of the residual is searched from there."""
    values = np.logspace(-3, 0, 100)
    a, b = make_matrix(values), make_labels(100, 5)
    operator = DenseOperator(a)
    run = CgRecurrence(operator, b, 0.0, Identity(), operator.matmul, EPS)
    run.begin(None)
    for _ in range(6):
        run.advance(1e-8)
    stalled, reached = run.state(), run.worst
    assert reached > 1e-3
    stalled["p"], stalled["coordinates"] = np.zeros((100, 0)), np.zeros((0, 4))
    checkpoint = StoreCheckpoint(open_store(str(tmp_path)), "cg", "stalled")
    checkpoint.append(0, run.steps, stalled)
    solution = block_cg(operator, b, checkpoint=checkpoint)
    assert is_honest(solution, a, 0.0, b, 1e-8)
    assert values[0] / 20 < solution.smallest < values[0] * 2  # of both searches


def test_a_solve_that_beginning_anew_does_not_help_stagnates(make_matrix):
    a = make_matrix(np.concatenate([np.zeros(20), np.linspace(1, 3, 40)]))
    b = np.random.default_rng(0).standard_normal((60, 3))
    operator = DenseOperator(a)
    run = CgRecurrence(operator, b, 0.0, Identity(), operator.matmul, EPS)
    run.begin(None)
    began = []
    while run.verdict(1e-8, 1000) is Reason.RUNNING:
        began.append(run.anew)
        run.advance(1e-8)
    assert run.verdict(1e-8, 1000) in (Reason.STAGNATED, Reason.INDEFINITE)
    assert began == sorted(began)  # once


@pytest.mark.parametrize("at", [1, 5, 23])
@pytest.mark.parametrize("products", ["float32", "float64"])
def test_kill_and_resume_gives_the_same(tmp_path, make_matrix, make_labels, at, products):
    decades = 5 if products == "float64" else 3.5
    a, b = make_matrix(np.logspace(-decades, 0, 150)), make_labels(150, 10)
    store = open_store(str(tmp_path))
    operator, exact = DenseOperator(a, products), DenseOperator(a)
    sketch = nystrom(exact, ridge=0.0, rank=10)
    given = {"tolerance": 1e-9, "exact": exact.matmul, "rounding": UNIT_32 if products == "float32" else EPS}

    def run(checkpoint, stop_at=None):
        made = []

        def on_step(record):
            made.append(record.step)
            if record.step == stop_at:
                raise KeyboardInterrupt

        solution = block_cg(
            operator,
            b,
            preconditioner=sketch.at(0.0),
            checkpoint=checkpoint,
            checkpoint_every=4,
            on_step=on_step,
            **given,
        )
        return solution, made

    undisturbed, steps = run(None)
    assert undisturbed.reason is Reason.CONVERGED
    assert len(steps) > 23
    with pytest.raises(KeyboardInterrupt):
        run(StoreCheckpoint(store, "cg/a", "key"), stop_at=at)
    solution, made = run(StoreCheckpoint(store, "cg/a", "key"))
    assert made == list(range((at - 1) // 4 * 4 + 1, len(steps) + 1))
    np.testing.assert_allclose(solution.value, undisturbed.value, rtol=0, atol=1e-12 * np.abs(solution.value).max())
    assert solution.smallest == pytest.approx(undisturbed.smallest, rel=1e-9)
    assert len(list(store.list("cg/a/"))) == 1
    again, made = run(StoreCheckpoint(store, "cg/a", "key"))
    assert made == []  # only its residual is computed again
    np.testing.assert_array_equal(again.value, solution.value)
    with pytest.raises(ValueError, match="other right-hand sides"):
        block_cg(operator, make_labels(150, 10, seed=1), checkpoint=StoreCheckpoint(store, "cg/a", "key"))


def test_a_finished_checkpoint_goes_on_to_a_smaller_tolerance(tmp_path, make_matrix, make_labels):
    a, b = make_matrix(np.logspace(-4, 0, 100)), make_labels(100, 3)
    checkpoint = StoreCheckpoint(open_store(str(tmp_path)), "cg/a", "key")
    rough = block_cg(DenseOperator(a), b, tolerance=1e-3, checkpoint=checkpoint)
    fine = block_cg(DenseOperator(a), b, tolerance=1e-9, checkpoint=checkpoint)
    assert is_honest(fine, a, 0.0, b, 1e-9)
    assert fine.iterations > rough.iterations
    short = block_cg(DenseOperator(a), b, tolerance=1e-12, max_steps=fine.iterations, checkpoint=checkpoint)
    assert short.reason is Reason.MAX_STEPS
    more = block_cg(DenseOperator(a), b, tolerance=1e-12, checkpoint=checkpoint)
    assert is_honest(more, a, 0.0, b, 1e-12)


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_tiles_as_dense(make_matrix, make_labels, kind, dtype):
    n = 130
    a = make_matrix(np.logspace(-3, 0, n)).astype(dtype)
    b = make_labels(n, 10)
    matrix = InMemoryTiles(a, TileGrid(n, n, 32, symmetric=True))
    with tile_operator(matrix, SerialExecutor(), products="float64", memory_bytes=1 << 20) as operator:
        solution = block_cg(operator, b, preconditioner=PRECONDITIONERS[kind](operator, 0.0), tolerance=1e-10)
    assert is_honest(solution, a.astype(np.float64), 0.0, b, 1e-10)


def test_arguments_are_checked():
    operator, b = DenseOperator(np.eye(4)), np.ones((4, 2))
    for given_b in (np.ones((3, 2)), np.full((4, 2), np.nan)):
        with pytest.raises(ValueError, match="right-hand sides"):
            block_cg(operator, given_b)
    for wrong in ({"tolerance": 0.0}, {"max_steps": 0}, {"ridge": -1.0}, {"checkpoint_every": 0}, {"ridge": np.inf}):
        with pytest.raises(ValueError, match="must be positive"):
            block_cg(operator, b, **wrong)
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        block_cg(DenseOperator(np.full((4, 4), np.nan)), b)


def test_a_larger_residual_may_do(make_matrix, make_labels):
    n = 120
    operator, b = DenseOperator(make_matrix(np.logspace(-4, 0, n))), make_labels(n, 3)
    seen = []

    def settle_for(x):
        seen.append(x)
        return 1e-3 if len(seen) > 1 else 0.0  # nothing is known of the first

    strict, loose = block_cg(operator, b), block_cg(operator, b, settle_for=settle_for)
    assert loose.reason is Reason.CONVERGED
    assert loose.iterations < strict.iterations
    assert strict.residual <= 1e-8 < loose.residual <= 1e-3
    np.testing.assert_array_equal(seen[-1], loose.value)
    # Never less than what was asked for.
    assert block_cg(operator, b, settle_for=lambda _: 0.0).iterations == strict.iterations
