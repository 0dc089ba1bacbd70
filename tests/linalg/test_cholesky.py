"""The tiled factorisation against dense factors and prescribed spectra, with kills, damage and little memory."""

from __future__ import annotations

import pickle
import threading
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from tiled_factors import EPS, factored, tiled

from ntkpipe.errors import ConfigError, CorruptionError, NumericalError, ResourceError
from ntkpipe.linalg.factor import factorise as factorise_module
from ntkpipe.linalg.factor import workspace as workspace_module
from ntkpipe.linalg.factor.blas import divide_by_transpose, factor_in_place, subtract_product
from ntkpipe.linalg.factor.factorise import IndefiniteError, factorise, graph, plan_factor
from ntkpipe.linalg.factor.plan import FactorPlan, choose_edge
from ntkpipe.linalg.factor.posterior import inverse_diagonal
from ntkpipe.linalg.factor.task import PivotError
from ntkpipe.linalg.factor.tiles import FactorIdentity, FactorTiles, stored_identity
from ntkpipe.linalg.factor.triangle import Divisor
from ntkpipe.linalg.factor.workspace import FactorJob, release
from ntkpipe.linalg.lanes import Lanes
from ntkpipe.storage.local import LocalStore
from ntkpipe.storage.memory import MemoryStore
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.grid import TileGrid
from ntkpipe.tiles.matrix import InMemoryTiles

pytestmark = pytest.mark.usefixtures("no_workspace_left")


def dense(factor):
    """`L`, as it is stored."""
    out = np.zeros((factor.n, factor.n), factor.dtype)
    for t in factor.job.tiles.identity.grid:
        out[t.row_start : t.row_stop, t.col_start : t.col_stop] = factor.job.tiles.read(t.i, t.j)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("edge", [7, 16, 29, 48, 200])
def test_backward_error_of_prescribed_spectra(spectrum, make_matrix, dtype, edge):
    n = 75
    values = spectrum(n)
    a = make_matrix(values)
    # Theory: |A + E| with |E| <= c n eps |A|; a ridge above it makes every spectrum factorable (Higham 2002, theorem 10.7).
    rounding = n * EPS[dtype] * values.max()
    run = factored(a, edge=edge, dtype=dtype, ridge=4 * rounding)
    lower = dense(run.factor)
    assert lower.dtype == dtype
    assert not np.triu(lower, 1).any()
    lower = lower.astype(np.float64)
    shifted = a + 4 * rounding * np.eye(n)
    assert np.linalg.norm(lower @ lower.T - shifted, 2) <= 4 * rounding
    assert run.computed == run.plan.tasks == len(run.factor.job.tiles.finished())
    assert run.flops == pytest.approx(n**3 / 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(4, 70), st.integers(1, 4), st.data())
def test_any_edges_and_any_memory_give_the_dense_factor_in_the_same_bits(n, edge, stored, workers, data):
    edge = max(edge, n // 7)
    a = np.random.default_rng(n).normal(size=(n, n))
    a = a @ a.T / n + np.eye(n)
    want = scipy.linalg.cholesky(a, lower=True)
    least = FactorPlan(n, min(edge, n), "float64", workers, min(stored, n), "float64", 0).working_bytes
    memory = (workers + 1) * (least + data.draw(st.integers(0, 8 * n * n)))
    got = dense(factored(a, edge=edge, stored=stored, memory=memory, executor=SerialExecutor(workers)).factor)
    assert np.linalg.norm(got - want) <= 20 * n * EPS["float64"] * np.linalg.norm(a)
    np.testing.assert_array_equal(got, dense(factored(a, edge=edge, stored=stored).factor))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored_dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_and_factored_dtypes_are_independent(make_matrix, dtype, stored_dtype, order):
    a = np.asarray(make_matrix(np.linspace(1, 10, 40)), dtype=stored_dtype, order=order)
    a = np.tril(a) + np.tril(a, -1).T
    lower = dense(factored(a, edge=13, dtype=dtype).factor).astype(np.float64)
    assert np.linalg.norm(lower @ lower.T - a, 2) <= 40 * EPS[dtype] * 10


def test_only_the_lower_triangle_is_read(make_matrix):
    a = make_matrix(np.linspace(1, 10, 40))
    want = dense(factored(a, edge=13).factor)
    a[np.triu_indices(40, 1)] = np.nan
    np.testing.assert_array_equal(dense(factored(a, edge=13).factor), want)


class _KilledError(Exception):
    pass


class _Killed(SerialExecutor):
    """Dies after so many tasks."""

    def __init__(self, after):
        super().__init__()
        self._left = after

    def run(self, graph):
        for result in super().run(graph):
            yield result
            self._left -= 1
            if self._left < 0:
                raise _KilledError


def test_killed_at_random_points_the_same_bits_come_out(make_matrix, tmp_path):
    a = make_matrix(np.logspace(-3, 0, 70))
    want = dense(factored(a, edge=13).factor)
    tasks = 6 * 7 // 2
    rng = np.random.default_rng(0)
    for kill in range(20):
        store = LocalStore(tmp_path / str(kill))
        made = 0
        while True:
            after = int(rng.integers(0, 6))
            try:
                run = factored(a, edge=13, store=store, executor=_Killed(after))
            except _KilledError:
                made += after + 1
                release()
                if rng.random() < 0.3:  # a power cut besides: a tile that was stored is torn
                    key = rng.choice(sorted(store.list("cholesky/k/tile-")))
                    store.put(key, store.get(key)[:-9], overwrite=True)
                continue
            break
        assert made + run.computed <= tasks + 1  # finished tiles are not made again
        for t in run.factor.job.tiles.identity.grid:
            with_damage = run.factor.job.tiles.read  # torn tiles that no later one has read are made again by the solve
            try:
                with_damage(t.i, t.j)
            except CorruptionError:
                run.factor.apply_inverse(np.ones((70, 1)))
        np.testing.assert_array_equal(dense(run.factor), want)
        assert factored(a, store=store).computed == 0  # and found, with the edge that it has


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "foreign", "gone"])
def test_damage_is_noticed_and_made_good(make_matrix, damage, monkeypatch):
    monkeypatch.setattr(workspace_module, "_PATIENCE", 0.0)
    a = make_matrix(np.linspace(1, 10, 60))
    store = MemoryStore(f"damaged-{damage}")
    made = factored(a, edge=13, store=store).factor
    want, b = dense(made), np.ones((60, 2))
    solution = made.apply_inverse(b)
    tiles = made.job.tiles
    key, other = tiles.key(3, 1), tiles.key(2, 1)
    data = bytearray(store.get(key))
    if damage == "flip":
        data[100] ^= 4
    elif damage == "cut":
        data = data[:-1]
    elif damage == "swap":
        store.put(key, store.get(other), overwrite=True)
        data = bytearray(store.get(other))
    elif damage == "foreign":
        elsewhere = MemoryStore("foreign")
        factored(a, edge=13, store=elsewhere, ridge=1.0)
        data = bytearray(elsewhere.get(key))
    if damage == "gone":
        store.delete(key)
    else:
        store.put(key, bytes(data), overwrite=True)
        with pytest.raises(CorruptionError, match="another factor"):
            tiles.read(3, 1)
    release()
    np.testing.assert_array_equal(made.apply_inverse(b), solution)
    np.testing.assert_array_equal(dense(made), want)


def test_another_matrix_ridge_dtype_or_edge_takes_the_place(make_matrix):
    a = make_matrix(np.linspace(1, 10, 40))
    store = MemoryStore("replaced")
    first = factored(a, edge=13, store=store)
    for changed in ({"ridge": 1.0}, {"dtype": "float32"}, {"edge": 20}):
        run = factored(a, **{"edge": 13, "store": store, **changed})
        assert run.computed == run.plan.tasks
        assert len(list(store.list("cholesky/k/tile-"))) == run.plan.tasks
    assert factored(a, edge=13, store=store).computed == first.plan.tasks


def test_a_manifest_that_cannot_be_read_is_no_factor():
    identity = FactorIdentity("m", 10, 0.1, "float64", 4)
    assert FactorIdentity.from_json(identity.to_json()) == identity
    store = MemoryStore("manifest")
    assert stored_identity(store, "p") is None
    for text in (b"", b"[]", b"{}", b'{"format": 2}', b"\xff", identity.to_json().replace("float64", "what").encode()):
        store.put("p/manifest.json", text, overwrite=True)
        assert stored_identity(store, "p") is None
    FactorTiles(store, "p", identity).open()
    assert stored_identity(store, "p") == identity


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dense_limit", [2000, 0])
@pytest.mark.parametrize("smallest", [-1e-3, -1.0, 0.0])
def test_an_indefinite_matrix_names_tile_pivot_and_a_ridge_that_does(
    make_matrix, dtype, dense_limit, smallest, monkeypatch
):
    monkeypatch.setattr(factorise_module, "_DENSE_EIGENVALUE", dense_limit)
    n = 60
    # Zero is met as a duplicated image: two equal rows and columns, whose second pivot is exactly zero or rounding.
    a = (
        make_matrix(np.linspace(1, 2, n))
        if smallest == 0
        else make_matrix(np.append(smallest, np.linspace(1, 2, n - 1)))
    )
    if smallest == 0:
        a[1], a[:, 1], a[1, 1] = a[0], a[:, 0], a[0, 0]
        a[0, 1] = a[1, 0] = a[0, 0] * (1 + 1e-4)
    tried = []

    class Watching(SerialExecutor):
        def run(self, graph):
            for result in super().run(graph):
                tried.append(result)
                yield result

    with pytest.raises(IndefiniteError, match=r"pivot \d+ of 60, in tile .* predict\.ridges=\[") as caught:
        factored(a, edge=13, dtype=dtype, executor=Watching())
    error = caught.value
    assert error.tile == (error.pivot - 1) // 13
    assert [r.error for r in tried if not r.ok] == [tried[-1].error]  # once, and nothing after it
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.pivot, copy.ridge) == (str(error), error.pivot, error.ridge)
    true = -np.linalg.eigvalsh(a)[0]
    assert true * 0.9 <= error.ridge <= 2 * true + 1e-2
    factored(a, edge=13, dtype=dtype, ridge=1.1 * error.ridge)
    with pytest.raises(PivotError):
        factored(a, edge=13, dtype=dtype, diagnose=False)


def test_values_that_are_not_finite_are_named(make_matrix):
    a = make_matrix(np.linspace(1, 2, 40))
    a[30, 5] = np.nan
    with pytest.raises(NumericalError, match=r"rows 26-38, columns 0-12 .*ntkpipe verify"):
        factored(a, edge=13)
    a[30, 5] = 1e300
    with pytest.raises(NumericalError, match="precision=float64"):
        factored(a, edge=13, dtype="float32")


def test_what_cannot_be_factored_is_refused(make_matrix):
    a = make_matrix(np.linspace(1, 2, 40))
    with pytest.raises(ConfigError, match="ridge"):
        factored(a, ridge=-1.0)
    with pytest.raises(ConfigError, match="float32 or float64"):
        factored(a, dtype="int32")
    rectangular = InMemoryTiles(a, TileGrid(40, 40, 16))
    with pytest.raises(ConfigError, match="symmetric"):
        factorise(
            rectangular, name="r", store=MemoryStore("r"), prefix="p", executor=SerialExecutor(), memory_bytes=1 << 20
        )
    with pytest.raises(ResourceError, match=r"cluster\.memory_gib"):
        factored(a, memory=1000)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_every_task_comes_after_all_that_it_reads(rows, workers, data):
    tiles = FactorTiles(MemoryStore("graph"), "p", FactorIdentity("m", rows, 0.0, "float64", 1))
    every = {(i, j) for i in range(rows) for j in range(i + 1)}
    finished = data.draw(st.sets(st.sampled_from(sorted(every))))
    known = {key: {key} for key in finished}  # of a tile, all that is done once it is
    order = []
    for task in graph(FactorJob(tiles, tiled(np.eye(rows)), 0), finished, workers):
        i, j = task.key
        before = set().union(finished, *(known[key] for key in task.after)) | {*task.after}
        assert {(row, k) for row in (i, j) for k in range(j)} <= before | finished
        assert i == j or (j, j) in before | finished
        known[task.key] = before | {task.key}
        order.append(task.key)
    assert len(order) == len(set(order))
    assert set(order) == every - finished


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200_000),
    st.sampled_from(["float32", "float64"]),
    st.integers(1, 64),
    st.integers(128, 4096),
    st.integers(28, 38),
)
def test_the_edge_fits_the_memory_and_the_stored_tiles(n, dtype, workers, stored, log_memory):
    memory = 1 << log_memory
    try:
        edge = choose_edge(
            n, dtype=dtype, workers=workers, source_edge=stored, source_dtype="float32", memory_bytes=memory
        )
    except ResourceError:
        return
    plan = FactorPlan(n, edge, dtype, workers, min(stored, n), "float32", memory)
    assert 1 <= edge <= max(4096, n)
    assert plan.working_bytes * workers <= memory
    assert plan.peak_bytes <= memory
    assert edge % min(stored, n) == 0 or -(-min(stored, n) // (-(-min(stored, n) // edge))) == edge


@pytest.mark.parametrize("share", [0.0, 0.3, 2.0])
def test_memory_and_bytes_are_as_planned(share, tmp_path):
    n, edge, stored = 1500, 125, 250
    a = np.random.default_rng(0).normal(size=(n, n))
    a = a @ a.T / n + np.eye(n)
    matrix, store = tiled(a, stored), LocalStore(tmp_path)
    least = plan_factor(matrix, dtype="float64", workers=1, memory_bytes=1 << 30, edge=edge).working_bytes
    memory = least + int(share * 4 * n * n)
    plan = plan_factor(matrix, dtype="float64", workers=1, memory_bytes=memory, edge=edge)
    tracemalloc.start()
    try:
        run = factored(a, stored=stored, edge=edge, memory=memory, store=store)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.02 * plan.peak_bytes + 2e5  # Python's own
    assert peak >= 0.8 * plan.peak_bytes - 2e5 or share == 0.0
    assert run.read_bytes == pytest.approx(plan.read_bytes, rel=0.2)
    written = sum(store.size(key) for key in store.list("cholesky/k/tile-"))
    assert written == plan.stored_bytes + 4 * plan.tasks


def test_the_inverse_takes_the_memory_that_is_planned(tmp_path):
    n, edge = 1200, 400  # the batch of columns is the largest part
    a = np.random.default_rng(0).normal(size=(n, n))
    a = a @ a.T / n + np.eye(n)
    made = factored(a, stored=400, edge=edge, store=LocalStore(tmp_path))
    release()
    tracemalloc.start()
    try:
        inverse_diagonal(made.factor)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.02 * made.plan.inverse_bytes + 2e5  # Python's own
    assert peak >= 0.7 * made.plan.inverse_bytes
    assert made.plan.inverse_bytes >= made.plan.stored_bytes + edge * 8 * n


def test_a_workspace_that_is_closed_returns_its_memory_to_the_system(tmp_path, monkeypatch):
    given_back = []
    monkeypatch.setattr(workspace_module, "give_back_memory", lambda: given_back.append(True))
    factored(np.eye(40), edge=20, store=LocalStore(tmp_path))
    release()
    assert given_back


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 4, 5), (200, 193, 30), (33, 500, 64)])
def test_kernels_do_what_numpy_does_also_on_views(dtype, m, n, k):
    rng = np.random.default_rng(m)
    wide = rng.normal(size=(4, 600, 600)).astype(dtype)
    a, b, c, square = (
        wide[0, 1 : m + 1, 2 : k + 2],
        wide[1, :n, :k],
        wide[2, 3 : m + 3, 4 : n + 4],
        wide[3, :n, 5 : n + 5],
    )
    before = wide.copy()
    want = c - a @ b.T
    subtract_product(c, a, b)
    slack = 4 * (k + n) * EPS[dtype] * np.abs(wide).max() ** 2
    np.testing.assert_allclose(c, want, rtol=0, atol=slack * k)
    square[...] = b @ b.T + n * np.eye(n)
    want = np.tril(square - b @ b.T)
    work = square.copy()
    subtract_product(work, b, b)
    np.testing.assert_allclose(np.tril(work), want, rtol=0, atol=slack * k)
    np.testing.assert_array_equal(np.triu(work, 1), np.triu(square, 1))
    lower = square.copy()
    assert factor_in_place(lower) == 0
    np.testing.assert_allclose(np.tril(lower) @ np.tril(lower).T, square, rtol=0, atol=n * slack)
    right = c.copy()
    divide_by_transpose(c, lower)
    np.testing.assert_allclose(c @ np.tril(lower).T, right, rtol=0, atol=n * slack)
    outside = np.ones_like(wide, dtype=bool)
    outside[2, 3 : m + 3, 4 : n + 4] = outside[3, :n, 5 : n + 5] = False
    np.testing.assert_array_equal(wide[outside], before[outside])
    assert factor_in_place(-np.eye(3, dtype=dtype)) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_refuse_what_they_would_misread(dtype):
    c = np.eye(3, dtype=dtype)
    with pytest.raises(ValueError, match="contiguous rows"):
        subtract_product(np.ones((3, 3), dtype, order="F"), c, c)
    with pytest.raises(ValueError, match="fit"):
        subtract_product(c, np.ones((2, 3), dtype), c)
    with pytest.raises(ValueError, match="fit"):
        divide_by_transpose(c, np.ones((2, 2), dtype))
    with pytest.raises(ValueError, match="square"):
        factor_in_place(np.ones((3, 2), dtype))
    with pytest.raises(ValueError, match="all float32"):
        divide_by_transpose(c, np.eye(3, dtype="float32" if dtype == "float64" else "float64"))
    c.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        factor_in_place(c)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 100, 700])
@pytest.mark.parametrize("condition", [1.0, 1e5])  # blocks are divided by with their inverses, or by substitution
def test_a_divisor_divides_as_substitution_does(dtype, n, condition):
    rng = np.random.default_rng(n)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = (q * np.geomspace(1.0, condition**2, n)) @ q.T  # its factor has the condition
    triangle = np.linalg.cholesky(a).astype(dtype)
    divisor = Divisor.of(triangle, n)
    if n == 700:
        assert any(inverse is None for _, _, inverse in divisor.blocks) == (condition > 1)
    want = rng.normal(size=(33, n)).astype(dtype)
    c = (want.astype(np.float64) @ np.tril(triangle).astype(np.float64).T).astype(dtype)
    given, unit = c.copy(), float(np.finfo(dtype).eps)
    divisor.divide(c)
    # Backward stable, up to what the docstring of the module allows.
    residual = np.abs(c.astype(np.float64) @ triangle.astype(np.float64).T - given)
    assert (
        residual.max() <= 4 * n * unit * np.abs(c).max() * np.linalg.norm(triangle, 2) + 4 * unit * np.abs(given).max()
    )


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_strips_cover_the_rows_once_and_are_dealt_out_to_lanes(rows, threads):
    lanes = Lanes()
    with threadpool_limits(threads, user_api="blas"), lanes.open():
        seen, names = np.zeros(rows, int), set()

        def work(strip):
            names.add(threading.current_thread().name)
            seen[strip] += 1
            assert all(found["num_threads"] == 1 for found in threadpool_info() if found["user_api"] == "blas")

        lanes.each(work, lanes.strips(rows))
        assert (seen == 1).all()
        assert all(name.startswith("lane") for name in names) == (threads > 1 and rows > 1)
        with pytest.raises(ZeroDivisionError):
            lanes.each(lambda strip: 1 // 0, lanes.strips(rows))
    lanes.close()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_several_threads_make_the_same_factor(dtype, make_matrix, tmp_path):
    n = 1300  # several panels of a diagonal tile, and tiles of several strips
    a = make_matrix(np.geomspace(1e-3, 1.0, n))
    found = {}
    for threads in (1, 3):
        with threadpool_limits(threads, user_api="blas"):
            run = factored(a, edge=650, stored=325, dtype=dtype, store=LocalStore(tmp_path / f"{threads}"))
        found[threads] = dense(run.factor)
        release()
    unit = float(np.finfo(dtype).eps)
    for made in found.values():
        assert np.linalg.norm(made @ made.T - a) <= 4 * n * unit * np.linalg.norm(a, 2)
        assert not np.triu(made, 1).any()


def test_tiles_that_are_begun_early_have_the_same_bits(make_matrix, monkeypatch):
    n, edge = 300, 60
    a = make_matrix(np.geomspace(1e-2, 1.0, n))
    least = FactorPlan(n, edge, "float64", 1, edge, "float64", 0).working_bytes
    later, begun = Lanes.later, []
    monkeypatch.setattr(Lanes, "later", lambda self, work, parts: begun.append(len(parts)) or later(self, work, parts))
    found = {}
    with threadpool_limits(3, user_api="blas"):
        for memory in (least, 1 << 30):
            found[memory] = dense(factored(a, edge=edge, stored=edge, memory=memory).factor)
            release()
            assert bool(begun) == (memory > least)
        # What was begun for the next tile is given up with the factorisation, and BLAS has its threads again.
        a[100, 100] = -1.0
        with pytest.raises(PivotError):
            factored(a, edge=edge, stored=edge, memory=1 << 30, diagnose=False)
        assert max(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas") == 3
    release()
    np.testing.assert_array_equal(*found.values())
