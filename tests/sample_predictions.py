"""Random predictions of any shape, for the tests of `predictions` and `report`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ntkpipe.predictions.schema import Predictions


def build(
    *, kernels=("ntk", "nngp"), times=(1.0, 10.0, np.inf), ridges=(0.0, 1e-4), p=7, c=3, seed=0, regression=False,
    variance=True, covariance=False, class_names=None, estimate=False,
) -> Predictions:  # fmt: skip
    rng = np.random.default_rng(seed)
    grid = (len(kernels), len(times), len(ridges))
    label = rng.integers(0, c, p)
    target = rng.standard_normal((p, c)) if regression else np.eye(c)[label] - 1 / c
    kind = np.where(np.isinf(times), "estimate", "rigorous")
    return Predictions(
        kernels=kernels,
        times=np.array(times),
        ridges=np.array(ridges),
        ridge_scale="relative",
        test_index=np.sort(rng.choice(10 * p, p, replace=False)),
        class_names=class_names or tuple(f"class {i}" for i in range(c)),
        label=None if regression else label,
        target=target,
        mean=target + 0.5 * rng.standard_normal((*grid, p, c)),
        error_bound=np.abs(rng.standard_normal((*grid, p, c))) * 1e-6,
        error_estimate=np.abs(rng.standard_normal((*grid, p, c))) * 1e-8 if estimate else None,
        bound_kind=np.broadcast_to(kind[None, :, None], grid).copy(),
        bound_terms={"krylov": rng.random((*grid, c)), "product": rng.random((*grid, c))},
        variance=rng.random((*grid, p)) + 0.1 if variance else None,
        variance_bound=np.abs(rng.standard_normal((*grid, p))) * 1e-6 if variance else None,
        covariance=rng.standard_normal((*grid, p, p)) if covariance else None,
        attributes={"versions": {"ntkpipe": "0.1.0"}, "learning_rate": 1.0, "note": "naïve <b>"},
    )


@pytest.fixture
def make() -> Callable[..., Predictions]:
    return build
