"""Training on points and their images under an involution f: the even and odd parts of the kernel say all about it.

Kernels are made of features: `phi(f x) = J phi(x)` with an orthogonal involution J, hence `k(f x, f y) = k(x, y)`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ntkpipe.dynamics import gaussian_process as gp
from ntkpipe.dynamics.bounds import error_budget
from ntkpipe.dynamics.filters import make_filter
from ntkpipe.dynamics.krylov import KrylovSolution, means_from_basis
from ntkpipe.linalg.eigh import Eigensystem

N, P, C, FEATURES = 20, 7, 3, 60
DYNAMICS = ["gradient_flow", "gradient_descent", "momentum"]


def kernels(seed):
    """A kernel on train and test points (`plain`), on points and their images (`doubled`), and its two parts."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
    involution = (basis * rng.choice([-1.0, 1.0], FEATURES)) @ basis.T
    scale = np.geomspace(1, 0.03, FEATURES)  # a spectrum like that of images, condition 1e3
    train, test = (rng.standard_normal((k, FEATURES)) * scale @ basis.T for k in (N, P))
    both = np.concatenate([train, train @ involution])

    def part(sign):
        mean = [(x + sign * x @ involution) / math.sqrt(2) for x in (train, test)]
        return SimpleNamespace(train=mean[0] @ mean[0].T, cross=mean[1] @ mean[0].T, test=mean[1] @ mean[1].T)

    return SimpleNamespace(
        doubled=SimpleNamespace(train=both @ both.T, cross=test @ both.T, test=test @ test.T),
        plain=SimpleNamespace(train=train @ train.T, flipped=train @ involution @ train.T),
        parts=[part(1.0), part(-1.0)],
    )


def targets():
    return np.random.default_rng(5).standard_normal((N, C))


def close(found, wanted):
    # n eps condition: 40 * 2e-16 * 1e3.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * np.abs(wanted).max())


def test_parts_are_sums_and_differences():
    k = kernels(0)
    for part, sign in zip(k.parts, (1, -1), strict=True):
        close(part.train, k.plain.train + sign * k.plain.flipped)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_means_are_those_of_the_even_part_with_every_point_counted_twice(dynamics, ridge):
    k, y = kernels(0), targets()
    f = make_filter(dynamics, 2 * N, C, learning_rate=0.5)
    times = [0.0, 3.0, 40.0, math.inf]
    even = gp.means(Eigensystem.of(k.parts[0].train), k.parts[0].cross, y, f, times, [ridge])
    doubled = Eigensystem.of(k.doubled.train)
    close(even, gp.means(doubled, k.doubled.cross, np.concatenate([y, y]), f, times, [ridge]))


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("time", [0.0, 3.0, 40.0, math.inf])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_covariances_are_the_mean_of_those_of_the_parts(dynamics, time, ridge):
    ntk, nngp = kernels(0), kernels(1)
    f = make_filter(dynamics, 2 * N, C, learning_rate=0.5)

    def ensemble(t, k):
        return gp.ntk_covariance(Eigensystem.of(t.train), t.cross, k.train, k.cross, k.test, f, time, ridge)

    def readout(k):
        return gp.nngp_covariance(Eigensystem.of(k.train), k.cross, k.test, f, time, ridge)

    close(sum(map(ensemble, ntk.parts, nngp.parts)) / 2, ensemble(ntk.doubled, nngp.doubled))
    close(sum(map(readout, nngp.parts)) / 2, readout(nngp.doubled))


@pytest.mark.parametrize("ridge", [0.0, 0.01])
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_bounds_of_the_even_part_hold_for_the_doubled_problem(block_lanczos, dynamics, ridge):
    """The even kernel is one of features `(phi(x) + phi(f x)) / sqrt 2`: its own test diagonal belongs into the bound."""
    k, y = kernels(0), targets()
    f = make_filter(dynamics, 2 * N, C, learning_rate=0.5)
    times = [1.0, 10.0, 100.0, 1000.0, math.inf]
    even, doubled = k.parts[0], Eigensystem.of(k.doubled.train)
    wanted = gp.means(doubled, k.doubled.cross, np.concatenate([y, y]), f, times, [ridge])
    errors = []
    for steps in (1, 2, 3, 4):
        solution = KrylovSolution.from_lanczos(block_lanczos(even.train, y, steps))
        coordinates = solution.coordinates(f, times, [ridge])
        means = means_from_basis(even.cross @ solution.basis.T, coordinates)
        bound = error_budget(solution, f, times, [ridge]).bound(np.diagonal(even.test))
        errors.append(np.abs(means - wanted).max())
        # What the reference itself rounds comes on top: see `close`.
        assert (np.abs(means - wanted) <= bound + 1e-11 * np.abs(wanted).max()).all()
    assert errors[0] > 1e-3  # there was something to bound
