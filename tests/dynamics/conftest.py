"""A block Lanczos and kernels with prescribed spectra, small and independent of the package's own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest


def lanczos(a, b, steps):
    """Block Lanczos, reorthogonalised fully and twice; deflates the start and stops at an invariant space."""
    n = len(a)

    def orthonormal(block, scale):
        u, s, vt = np.linalg.svd(block, full_matrices=False)
        keep = s > n * np.finfo(float).eps * scale
        return u[:, keep], s[keep, None] * vt[keep]

    v, start = orthonormal(b, np.linalg.norm(b, 2))
    blocks, basis = [v.shape[1]], v
    projected = np.zeros((0, 0))
    scale = np.linalg.norm(a, 2)
    for step in range(steps):
        w = a @ v
        coefficients = basis.T @ w
        w = w - basis @ coefficients
        w = w - basis @ (basis.T @ w)
        m, k = basis.shape[1], v.shape[1]
        grown = np.zeros((m, m))
        grown[: m - k, : m - k] = projected
        grown[:, m - k :] = coefficients
        grown[m - k :, :] = coefficients.T
        projected = grown
        following, coupling = orthonormal(w, scale)
        following = following - basis @ (basis.T @ following)
        following = np.linalg.qr(following)[0] if following.size else following
        coupling = following.T @ w
        if not following.shape[1] or step == steps - 1:
            break
        basis, v = np.concatenate([basis, following], 1), following
        blocks.append(v.shape[1])
    return SimpleNamespace(
        basis=np.ascontiguousarray(basis.T),
        block_sizes=blocks,
        projected=(projected + projected.T) / 2,
        coupling=coupling,
        start=start,
        next_block=np.ascontiguousarray(following.T),
        steps=len(blocks),
    )


def kernel_problem(eigenvalues, p=12, c=4, seed=0):
    """A kernel on n train and p test images, positive semi-definite on all, with these train eigenvalues.

    Returns train-train, test-train, test diagonal and centred one-hot targets.
    """
    rng = np.random.default_rng(seed)
    n = len(eigenvalues)
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    root = q * np.sqrt(eigenvalues)  # features of the training images
    train = root @ root.T
    directions = rng.standard_normal((p, n)) / np.sqrt(n)  # features of the test images, as if from the same map
    # half of the test features mix training features, as similar images do
    mix = rng.standard_normal((p, n)) / np.sqrt(n)
    features = np.sqrt(np.mean(eigenvalues)) * directions + mix @ root
    test_train = features @ root.T
    labels = rng.integers(0, c, n)
    targets = np.eye(c)[labels] - 1 / c
    return SimpleNamespace(
        train=(train + train.T) / 2, test_train=test_train, diagonal=np.sum(features**2, 1), targets=targets, n=n, c=c
    )


@pytest.fixture
def block_lanczos():
    return lanczos


@pytest.fixture
def make_problem():
    return kernel_problem
