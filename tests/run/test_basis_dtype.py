"""`solver.basis_dtype=float32` from end to end: killed and resumed to the same bits, restored, and not mixed with float64."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import RequeueError
from ntkpipe.linalg.recurrence import Recurrence

WORDS = ("cluster=serial", "data=npz", "data.path=images.npz", "grid.edge=64", "solver=krylov", "predict.kernels=[ntk]")
ASKED = ("predict.times=[1e3,inf]", "predict.ridges=[1e-3]", "solver.basis_dtype=float32", "solver.checkpoint_every=3")


@pytest.mark.slow
def test_a_rounded_basis_is_resumed_to_the_bit_and_kept_apart(work, real_images, monkeypatch) -> None:
    real_images(200, 40)
    for name in ("whole", "killed"):
        work.ok("gram", f"run_dir={name}", f"store.url=store-{name}", *WORDS, *ASKED)
    work.ok("solve", "run_dir=whole", "store.url=store-whole", *WORDS, *ASKED)
    advance, left = Recurrence.advance, [7]

    def killed(self: Recurrence):
        left[0] -= 1
        if left[0] < 0:
            raise RequeueError("stopped")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Recurrence, "advance", killed)
        assert work("solve", "run_dir=killed", "store.url=store-killed", *WORDS, *ASKED).code != 0
    work.ok("solve", "run_dir=killed", "store.url=store-killed", *WORDS, *ASKED)
    for name in ("whole", "killed"):  # the basis is restored from the store
        work.ok("predict", f"run_dir={name}", f"store.url=store-{name}", *WORDS, *ASKED)
    one, two = work.predictions("whole"), work.predictions("killed")
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.error_bound, two.error_bound)
    other = work("solve", "run_dir=whole", "store.url=store-whole", *WORDS, *ASKED[:2], ASKED[3])
    assert other.code != 0
    assert "solver.basis_dtype: float32 there, auto now" in other.err
