"""A solve that is told to stop keeps every step that is whole, and goes on to the same end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ntkpipe.errors import RequeueError
from ntkpipe.linalg.cg import block_cg
from ntkpipe.linalg.checkpoint import StoreCheckpoint
from ntkpipe.linalg.lanczos import block_lanczos
from ntkpipe.linalg.operator import DenseOperator
from ntkpipe.storage.store import open_store

N = 60


class Stopped(DenseOperator):
    """Asks for another start in place of the pass after `passes`."""

    left = 0

    def matmul(self, block, **options):
        if self.left == 0:
            raise RequeueError("stopped by a test")
        self.left -= 1
        return super().matmul(block, **options)


def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((N, N)))
    return (q * np.geomspace(1e-2, 10, N)) @ q.T, rng.standard_normal((N, 2))


def solve(kind: str, operator, b, checkpoint, on_step=None):
    options = {"max_steps": 20, "checkpoint": checkpoint, "checkpoint_every": 10, "on_step": on_step}
    if kind == "lanczos":
        return block_lanczos(operator, b, **options).basis
    return block_cg(operator, b, tolerance=1e-14, **options).value


@pytest.mark.parametrize("kind", ["lanczos", "cg"])
@pytest.mark.parametrize("where", ["pass", "step"])
def test_whole_steps_are_kept(tmp_path: Path, kind: str, where: str) -> None:
    a, b = problem()
    undisturbed = solve(kind, DenseOperator(a), b, None)
    checkpoint = StoreCheckpoint(open_store(str(tmp_path)), "x", "x")
    operator = Stopped(a)
    operator.left = 7 if where == "pass" else -1
    seen = []

    def on_step(record) -> None:
        seen.append(record)
        if where == "step" and len(seen) == 7:
            raise RequeueError("stopped by a test")

    with pytest.raises(RequeueError):
        solve(kind, operator, b, checkpoint, on_step)
    after = Stopped(a)
    after.left = -1
    again = []
    resumed = solve(kind, after, b, checkpoint, again.append)
    assert len(seen) + len(again) == 20  # nothing is computed twice
    np.testing.assert_array_equal(resumed, undisturbed)
