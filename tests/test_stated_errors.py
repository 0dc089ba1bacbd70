"""As many predictions lie within their error estimates as users are told, and estimates are near: random problems and real images."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import ntkpipe as nk
from ntkpipe.data.points import Dataset
from ntkpipe.dynamics.estimates import STATED
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import KrylovSolution
from ntkpipe.errors import NtkpipeError
from ntkpipe.sources.gram import Gram
from ntkpipe.tasks.serial import SerialExecutor
from ntkpipe.tiles.layout import Kernel

PROBLEMS, N, P, SHAPE = 200, 96, 24, (4, 4, 1)
NEAR = 20.0
"""Times the error that an estimate is in the median, at most."""

Errors = tuple[np.ndarray, np.ndarray]


@lru_cache
def network(depth: int) -> Any:
    return nk.zoo.fcn(depth=depth)


def points(rng: np.random.Generator, count: int) -> np.ndarray:
    """Of few latent directions or many, in clusters or not, some close to others."""
    d, latent = math.prod(SHAPE), int(rng.choice([2, 4, 8, 16]))
    z = rng.standard_normal((count, latent))
    if rng.random() < 0.4:
        centres = 2.0 * rng.standard_normal((int(rng.integers(2, 7)), latent))
        z = centres[rng.integers(0, len(centres), count)] + 10.0 ** rng.uniform(-1.5, 0) * z
    x = z @ rng.standard_normal((latent, d)) + 10.0 ** rng.uniform(-2, 0) * rng.standard_normal((count, d))
    if rng.random() < 0.3:
        x[rng.integers(0, count, 4)] = x[0] + 10.0 ** rng.uniform(-3, -1) * rng.standard_normal((4, d))
    return x.reshape(count, *SHAPE).astype(np.float32)


def targets_of(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    c, flat = int(rng.choice([1, 2, 5, 10])), x.reshape(len(x), -1)
    how = rng.choice(["classes", "smooth", "noise"])
    if how == "classes":
        labels = np.argmax(flat @ rng.standard_normal((flat.shape[1], max(c, 2))), axis=1)
        return np.eye(max(c, 2))[labels] - 1 / max(c, 2)
    if how == "smooth":
        return np.sin(flat @ rng.standard_normal((flat.shape[1], c)) / 4) * 10.0 ** rng.uniform(-3, 3)
    return rng.standard_normal((len(x), c))


def solver_of(rng: np.random.Generator) -> nk.Krylov | nk.Eigh | nk.Cholesky | nk.ConjugateGradients:
    products = str(rng.choice(["float64", "float64", "float32"]))
    match int(rng.integers(4)):
        case 0:
            return nk.Krylov(tolerance=float(rng.choice([1e-2, 1e-4, 1e-7])), products=products)
        case 1:
            return nk.Cholesky(precision=str(rng.choice(["float64", "mixed"])), leave_one_out=False)
        case 2:
            return nk.ConjugateGradients(
                products=products, preconditioner=str(rng.choice(["cholesky", "nystrom"])), residual=1e-8
            )
        case _:
            return nk.Eigh()


def tried(seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The solver's name, and errors and estimates of all predictions of a random problem; none where it is refused, or told nothing."""
    rng = np.random.default_rng([17, seed])
    x = points(rng, N + P)
    y = targets_of(rng, x)
    data = Dataset(x[:N], y[:N], x[N:], y[N:])
    gram = Gram(network(int(rng.choice([1, 2, 4]))), data, edge=64)
    gram.compute(progress=False)
    solver = solver_of(rng)
    name: Kernel = "ntk" if rng.random() < 0.5 else "nngp"
    ridge = float(rng.choice([0.0, 0.0, 10.0 ** rng.uniform(-6, -1)]))
    scale = N * y.shape[1] / float(gram.train(name).diagonal().mean())
    whole = solver.kind in ("krylov", "eigh")
    times = (float(scale * 10.0 ** rng.uniform(0, 4)), math.inf) if whole else (math.inf,)
    try:
        found = solver.solve(gram.train(name), y[:N], times=times, ridges=(ridge,))
        made = found.evaluate(gram.test(name))
    except NtkpipeError:
        return solver.kind, np.zeros(0), np.zeros(0)
    if made.estimate is None:  # random vectors were not solved for in the passes that they are allowed
        return solver.kind, np.zeros(0), np.zeros(0)
    here, source = SerialExecutor(), gram.opened.source
    train = source.exact_rows("train", np.arange(N), N, here, 1)[name]
    along = source.exact_rows("test", np.arange(P), N, here, 1)[name]
    dense = KrylovSolution.from_eigensystem(*np.linalg.eigh((train + train.T) / 2), y[:N], 0.0)
    flow = make_filter("gradient_flow", N, y.shape[1])
    exact = along @ dense.basis.T @ dense.coordinates(flow, made.times, made.absolute_ridges)
    return solver.kind, np.abs(made.mean - exact).ravel(), made.estimate.ravel()


@pytest.mark.slow
def test_of_200_random_problems_as_many_predictions_are_within_as_is_stated_and_estimates_are_near() -> None:
    errors: dict[str, list[Errors]] = {}
    for seed in range(PROBLEMS):
        kind, error, estimate = tried(seed)
        errors.setdefault(kind, []).append((error, estimate))
    assert sum(not len(error) for each in errors.values() for error, _ in each) < PROBLEMS / 5
    joined = {kind: tuple(map(np.concatenate, zip(*each, strict=True))) for kind, each in errors.items()}
    assert set(joined) == {"krylov", "eigh", "cholesky", "cg"}
    for kind, (error, estimate) in joined.items():
        known = np.isfinite(estimate)
        assert np.mean(known) > 0.8, kind
        assert np.mean(error > estimate) <= 1 - STATED, kind
        ratio = float(np.median(estimate[known] / np.maximum(error[known], 1e-300)))
        assert 1 < ratio <= NEAR, (kind, ratio)


def images() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    return (x / 16.0).reshape(-1, 8, 8, 1).astype(np.float32)[:400], np.eye(10)[labels][:400] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ntk", "nngp"])
@pytest.mark.parametrize("refine", [0, 1])
def test_of_real_images_as_well_also_refined(name: Kernel, refine: int) -> None:
    x, y = images()
    n, p = 300, 100
    gram = Gram(network(4), Dataset(x[:n], y[:n], x[n:], y[n:]), edge=128)
    gram.compute(progress=False)
    here, source = SerialExecutor(), gram.opened.source
    train = source.exact_rows("train", np.arange(n), n, here, 1)[name]
    along = source.exact_rows("test", np.arange(p), n, here, 1)[name]
    factor, weights = np.linalg.inv(train), np.zeros((n, 10), dtype=np.longdouble)
    for _ in range(6):  # refined beyond float64
        weights = weights + factor @ np.asarray(y[:n] - train.astype(np.longdouble) @ weights, dtype=np.float64)
    exact = along.astype(np.longdouble) @ weights
    for solver in (
        nk.Krylov(refine=refine),
        nk.Eigh(refine=refine),
        nk.Cholesky(refine=refine),
        nk.ConjugateGradients(refine=refine),
    ):
        found = solver.solve(gram.train(name), y[:n], times=(math.inf,), ridges=(0.0,))
        made = found.evaluate(gram.test(name))
        assert made.estimate is not None
        error = np.abs(np.asarray(made.mean[0, 0] - exact, dtype=np.float64))
        assert np.mean(error > made.estimate[0, 0]) <= 1 - STATED, solver.kind
        assert 1 < np.median(made.estimate[0, 0] / np.maximum(error, 1e-300)) <= NEAR, solver.kind
        if refine:
            assert np.median(error) < 1e-9, solver.kind
