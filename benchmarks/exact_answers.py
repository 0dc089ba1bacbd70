"""The correct predictions of a finished run in extended precision, from the same floats that its workers used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from exact_kernels import Numbers, exact, is_exact
from exact_kernels import kernels as exact_kernels_of
from exact_predictions import Dynamics, Spectrum, ensemble_variances, is_reached, predictions, spectrum, variances
from flint import arb

from ntkpipe.run.context import RunContext

# Of kernels integrated in float64, relative to the root of both variances: what their reference may be off by.
_INTEGRATED = 6e-16
_SHAKEN = 3
_LARGEST = 1e300


@dataclass(frozen=True)
class Kernel:
    """Kernels among training points (n, n), test by training points (p, n), the training diagonal of relative ridges (n,), and
    the diagonal of the test points (p,), None where it is not known.
    """

    train: Numbers
    test: Numbers
    diagonal: Numbers
    own: Numbers | None


@dataclass(frozen=True)
class Answer:
    """The correct predictions of one kernel.

    Args:
        mean: means `(T, R, p, c)` as numbers, in the order of the exported test points; None without a correct answer.
        known: `(T, R)`, false where the flow has no limit, or grows.
        slack: largest error of the reference itself, `(T, R, p, c)` floats.
        negative: whether the given matrix has a negative eigenvalue.
        variance: variances `(T, R, p)` as numbers, or None.
        variance_slack: largest error of these variances, `(T, R, p)` floats.
    """

    mean: Numbers
    known: np.ndarray
    slack: np.ndarray
    negative: bool
    variance: Numbers | None
    variance_slack: np.ndarray


def _layers(context: RunContext) -> list:
    """Return the layers of a network, or none for a given kernel."""
    return context.opened.source.describe().get("layers", [])


def exact_kernels(context: RunContext) -> dict[str, Kernel]:
    """Return every kernel of a run, from its prepared points or its files."""
    n, p = context.kernels.n, context.kernels.p
    given = context.config.kernel
    if given.kind == "gram":
        train, test = (np.load(str(path)).astype(np.float64) for path in (given.train, given.test))
        lower = np.tril(train[:n, :n])
        whole = exact(lower + np.tril(lower, -1).T)
        own = None if given.test_diagonal is None else exact(np.load(str(given.test_diagonal)).astype(np.float64)[:p])
        return {"gram": Kernel(whole, exact(test[:p, :n]), np.diagonal(whole), own)}
    from ntkpipe.data.prepared import PreparedImages

    assert isinstance(context.data, PreparedImages)
    points = np.concatenate([context.data.read("train", 0, n), context.data.read("test", 0, p)]).astype(np.float64)
    flips = context.config.augment == "hflip"
    everything = np.concatenate([points, points[:n, :, ::-1]]) if flips else points
    # Copies are the same point: their rows are then equal in every digit.
    unique, which = np.unique(everything.reshape(len(everything), -1), axis=0, return_inverse=True)
    which = which.ravel()
    unique = unique.reshape(-1, *points.shape[1:])
    rows, cols = which[: n + p], which[:n]
    places = np.stack([np.repeat(rows, n), np.tile(cols, n + p)], -1)
    if flips:
        places = np.concatenate([places, np.stack([np.repeat(rows, n), np.tile(which[n + p :], n + p)], -1)])
    own = np.stack([which[n : n + p]] * 2, -1)
    pairs, back = np.unique(np.sort(np.concatenate([places, own]), axis=1), axis=0, return_inverse=True)
    found = {}
    for name, values in zip(("nngp", "ntk"), exact_kernels_of(_layers(context), unique, pairs), strict=True):
        everywhere = values[back.ravel()]
        square = everywhere[:-p].reshape(-1, n + p, n)
        whole = square.sum(0)
        found[name] = Kernel(whole[:n], whole[n:], np.diagonal(square[0][:n]), everywhere[-p:])
    return found


def stored_kernels(context: RunContext) -> dict[str, Kernel]:
    """Return the kernels as the solver reads them, with the errors of evaluation and storage."""
    found = {}
    for name in ("gram",) if context.config.kernel.kind == "gram" else ("nngp", "ntk"):
        blocks = {}
        for block, rows in (("train", context.kernels.n), ("test", context.kernels.p)):
            tiles = getattr(context.kernels, block)(name).matrix
            out = np.zeros((rows, context.kernels.n))
            for t in tiles.grid:
                out[t.row_start : t.row_stop, t.col_start : t.col_stop] = tiles.read(t.i, t.j)
            blocks[block] = np.tril(out) + np.tril(out, -1).T if block == "train" else out
        diagonal = exact(context.kernels.train(name).diagonal(plain=True))
        own = exact(context.kernels.test(name).diagonal())
        found[name] = Kernel(exact(blocks["train"]), exact(blocks["test"]), diagonal, own)
    return found


def answer(context: RunContext, name: str, kernels: dict[str, Kernel], times: np.ndarray) -> Answer:
    """Return the predictions of one kernel of a run, and its variances if the run has them, from the given kernels."""
    kernel = kernels["ntk" if name == "ntkgp" else name]
    config = context.config.predict
    labels = context.data.labels()
    targets = labels.y_train[: context.kernels.n]
    n, c = targets.shape
    dynamics = Dynamics(config.dynamics, config.learning_rate, config.momentum, n * context.config.copies * c)
    order = np.argsort(labels.test_index[: context.kernels.p], kind="stable")

    def made(kernel: Kernel, prior: Kernel) -> tuple[Spectrum, list[arb], Numbers, Numbers | None]:
        found = spectrum(kernel.train)
        mean = kernel.diagonal.sum() / n if config.ridge_scale == "relative" else arb(1)
        ridges, test, variance = [arb(ridge) * mean for ridge in config.ridges], kernel.test[order], None
        told = dynamics, times.tolist(), ridges
        if config.covariance != "none" and prior.own is not None:
            own = prior.own[order]
            if name == "ntk":
                variance = ensemble_variances(found, test, prior.train, prior.test[order], own, *told)
            else:
                variance = variances(found, test, own, *told)
        return found, ridges, predictions(found, test, targets, *told), variance

    prior = kernels["nngp"] if name == "ntk" else kernel
    found, ridges, mean, variance = made(kernel, prior)
    slack = np.zeros(mean.shape)
    variance_slack = np.zeros(mean.shape[:3])
    if not is_exact(_layers(context)):
        rng = np.random.default_rng(0)
        for _ in range(_SHAKEN):
            shaken = _shaken(kernel, rng)
            _, _, other, moved = made(shaken, _shaken(prior, rng) if name == "ntk" else shaken)
            slack = np.maximum(slack, 4 * np.abs((other - mean).astype(float)))
            if moved is not None:
                variance_slack = np.maximum(variance_slack, 4 * np.abs((moved - variance).astype(float)))
    known = np.ones((len(times), len(ridges)), dtype=bool)
    # Without a ridge, test points that see null directions have no limit.
    unlimited = found.doubtful or is_reached(found, kernel.test)
    for i, time in enumerate(times):
        for j, ridge in enumerate(ridges):
            if any(value + ridge < 0 for value in found.values) or (math.isinf(time) and ridge == 0 and unlimited):
                known[i, j] = False
            known[i, j] &= all(abs(v) < _LARGEST for v in mean[i, j].ravel())
    return Answer(mean, known, slack, any(value < 0 for value in found.values), variance, variance_slack)


def _shaken(kernel: Kernel, rng: np.random.Generator) -> Kernel:
    size = np.sqrt(np.diagonal(kernel.train).astype(float))
    error = rng.normal(size=kernel.train.shape) * np.outer(size, size) * _INTEGRATED
    # Copies stay copies.
    _, where = np.unique(kernel.train.astype(float), axis=0, return_inverse=True)
    first = np.array([np.flatnonzero(where == w)[0] for w in where.ravel()])
    error = (error + error.T)[first][:, first] / 2
    largest = float(size.max())
    test = rng.normal(size=kernel.test.shape)[:, first] * size * largest * _INTEGRATED
    own = None if kernel.own is None else kernel.own * exact(1 + rng.normal(size=len(kernel.own)) * _INTEGRATED)
    return Kernel(kernel.train + exact(error), kernel.test + exact(test), kernel.diagonal, own)


def distances(mean: np.ndarray, wanted: Numbers) -> np.ndarray:
    """Return `|mean - wanted|` as floats, subtracted in extended precision."""
    out: Any = np.frompyfunc(lambda a, b: float(abs(arb(float(a)) - b)) if math.isfinite(a) else math.inf, 2, 1)
    return np.asarray(out(mean, wanted), dtype=np.float64)
