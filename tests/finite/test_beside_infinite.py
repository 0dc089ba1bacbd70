"""A finite network's kernel beside the infinite one."""

from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.finite.beside_infinite import alignment, beside_infinite


def test_numbers_of_kernels_that_are_known():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    values = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    infinite = q * values @ q.T
    targets = q[:, :1]
    same = beside_infinite(infinite, infinite, targets)
    assert (same.deviation, same.trace_ratio) == (0.0, 1.0)
    np.testing.assert_allclose(same.ratios(), np.ones(6), rtol=1e-12)
    made = beside_infinite(q * (values * [1.5, 1, 1, 1, 1, 0]) @ q.T, infinite, targets)
    assert made.deviation == pytest.approx(np.hypot(4, 0.25) / np.linalg.norm(values))
    assert made.trace_ratio == pytest.approx((values.sum() + 4 - 0.25) / values.sum())
    np.testing.assert_allclose(made.ratios(), [1.5, 1, 1, 1, 1, 0], atol=1e-12)
    assert made.alignment_infinite == pytest.approx(8 / np.linalg.norm(values))
    assert made.alignment_finite == pytest.approx(12 / np.linalg.norm(values * [1.5, 1, 1, 1, 1, 0]))


def test_ratios_end_where_nothing_is_left():
    infinite = np.diag([3.0, 1.0, 0.0, 0.0])
    assert beside_infinite(np.eye(4), infinite, np.ones((4, 1))).ratios() == pytest.approx([1 / 3, 1.0])


def test_alignment_of_labels_with_themselves():
    y = np.random.default_rng(1).standard_normal((5, 2))
    assert alignment(y @ y.T, y) == pytest.approx(1.0)
    assert alignment(np.eye(5), np.zeros((5, 2))) == 0.0
