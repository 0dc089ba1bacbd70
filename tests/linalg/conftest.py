"""Matrices with prescribed spectra, so that every tolerance follows from the condition number."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.linalg.factor.workspace import release

SPECTRA = {
    "well_conditioned": lambda n: np.linspace(1, 10, n),
    "decaying_1e6": lambda n: np.logspace(-6, 0, n),
    "decaying_1e14": lambda n: np.logspace(-14, 0, n),
    "clustered": lambda n: np.repeat([1.0, 2.0, 50.0], [n - n // 2 - n // 4, n // 2, n // 4]),
    "singular": lambda n: np.concatenate([np.zeros(n // 3), np.linspace(1, 3, n - n // 3)]),
    "one_outlier": lambda n: np.concatenate([np.linspace(0.3, 1, n - 1), [1e4]]),
}


def matrix_with(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2


def centred_labels(n: int, classes: int, seed: int = 0) -> np.ndarray:
    """One-hot minus 1/classes: rank classes - 1."""
    rng = np.random.default_rng(seed)
    return np.eye(classes)[rng.permutation(np.arange(n) % classes)] - 1 / classes


@pytest.fixture(params=SPECTRA)
def spectrum(request: pytest.FixtureRequest):
    return SPECTRA[request.param]


@pytest.fixture
def make_matrix():
    return matrix_with


@pytest.fixture
def make_labels():
    return centred_labels


@pytest.fixture
def no_workspace_left():
    """Threads and tiles of factors, which a process keeps from task to task, go with the test."""
    yield
    release()
