"""A device that runs out of memory: the tile is evaluated in smaller pieces and is the same."""

from __future__ import annotations

import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from ntkpipe.errors import ResourceError
from ntkpipe.gram import out_of_memory
from ntkpipe.gram.worker import Evaluation
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.zoo import cnn_gap, fcn

FLAT = fcn(2, w_std=2**0.5, b_std=0.1)
SPATIAL = cnn_gap(1, w_std=2**0.5, b_std=0.1)


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch):
    monkeypatch.setattr(out_of_memory, "_limits", {})


@pytest.fixture
def small_device(monkeypatch):
    """Make the evaluation of more than so many pairs at once fail as XLA does; count the attempts."""
    whole = Architecture.tiles
    attempts: list[tuple[int, bool]] = []

    def limit(most: int) -> list[tuple[int, bool]]:
        def tiles(self, rows, columns, *, out_dtype=None, pad_to=None, pairs=None):
            n1 = max(len(rows.images), pad_to or 0)
            other = n1 if columns is None else max(len(columns.images), pad_to or 0)
            needed = n1 * other if rows.images.ndim == 2 else n1 * (pairs or other)
            attempts.append((needed, needed <= most))
            if needed > most:
                raise JaxRuntimeError(f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate {needed} bytes.")
            return whole(self, rows, columns, out_dtype=out_dtype, pad_to=pad_to, pairs=pairs)

        monkeypatch.setattr(Architecture, "tiles", tiles)
        return attempts

    return limit


def tile(spec, x, y, *, symmetric=False, pad_to=None, pairs=None):
    evaluation = Evaluation.of(spec, "none", "float64")
    rows, columns = evaluation.prepare(x), None if symmetric else evaluation.prepare(y)
    (made,) = evaluation.tile(rows, columns, out_dtype="float64", pad_to=pad_to, pairs_per_step=pairs)
    return made


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("spec", "n1", "n2", "most"), [(FLAT, 300, 260, 150 * 150), (SPATIAL, 40, 37, 40 * 5)])
def test_a_tile_in_pieces_is_the_tile(small_device, spec, n1, n2, most, symmetric):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n1, 6, 6, 2)), rng.standard_normal((n2, 6, 6, 2))
    whole = tile(spec, x, y, symmetric=symmetric, pad_to=n1 + 4)
    attempts = small_device(most)
    parts = tile(spec, x, y, symmetric=symmetric, pad_to=n1 + 4)
    assert not attempts[0][1]
    for name, kernel in whole.items():
        # The inner products of pieces may be summed in another order: d eps of the largest, a few times over.
        bound = 8 * 72 * np.finfo(float).eps * np.abs(kernel).max()
        assert parts[name].shape == kernel.shape
        assert parts[name].flags.c_contiguous
        np.testing.assert_allclose(parts[name], kernel, rtol=0, atol=bound)
        if symmetric:
            np.testing.assert_array_equal(parts[name], parts[name].T)
            np.testing.assert_array_equal(parts[name].diagonal(), kernel.diagonal())


@pytest.mark.parametrize(("spec", "most"), [(FLAT, 150 * 150), (SPATIAL, 200 * 5)])
def test_what_fits_is_remembered(small_device, spec, most):
    x = np.random.default_rng(1).standard_normal((200, 4, 4, 1))
    attempts = small_device(most)
    tile(spec, x[:150], x[:200])
    failures = sum(not fits for _, fits in attempts)
    assert failures
    attempts.clear()
    tile(spec, x[:150], x[:200])
    assert attempts
    assert all(fits for _, fits in attempts)


@pytest.mark.parametrize("spec", [FLAT, SPATIAL])
def test_a_device_without_memory_is_an_error_that_says_what_to_do(small_device, spec):
    x = np.random.default_rng(2).standard_normal((70, 4, 4, 1))
    small_device(1)
    with pytest.raises(ResourceError, match="gpus_per_task"):
        tile(spec, x, x)


def test_other_errors_of_the_device_pass(monkeypatch):
    def broken(self, *args, **options):
        raise JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(Architecture, "tiles", broken)
    x = np.ones((2, 4, 4, 1))
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        tile(FLAT, x, x)
