from __future__ import annotations

import numpy as np
import pytest

from ntkpipe.errors import NumericalError
from ntkpipe.linalg.eigh import eigh

EPS = np.finfo(np.float64).eps


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_eigh_of_prescribed_spectra(spectrum, make_matrix, order, dtype, overwrite):
    n = 60
    a = np.asarray(make_matrix(spectrum(n)), dtype=dtype, order=order)
    kept = a.copy()
    result = eigh(a, overwrite=overwrite)
    rounding = (EPS if dtype == "float64" else np.finfo(np.float32).eps) * n * np.abs(kept).max() * n
    np.testing.assert_allclose(result.values, np.sort(spectrum(n)), rtol=0, atol=rounding)
    rebuilt = (result.vectors * result.values) @ result.vectors.T
    np.testing.assert_allclose(rebuilt, kept, rtol=0, atol=20 * n * EPS * np.linalg.norm(kept, 2))
    if not overwrite:
        np.testing.assert_array_equal(a, kept)


def test_eigh_refuses_non_finite_entries():
    a = np.eye(4)
    a[2, 1] = a[1, 2] = np.nan
    with pytest.raises(NumericalError, match="ntkpipe verify"):
        eigh(a)
