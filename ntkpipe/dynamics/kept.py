"""Kernels and eigensystems of rows in an object store, which all processes share.

```
estimators/<digest of network, rows, dtype and formulas>.npz
```
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from ntkpipe.dynamics.gaussian_process import Eigensystem
from ntkpipe.dynamics.shared import SharedKernels, is_random, rows_digest
from ntkpipe.kernels.architecture import Architecture
from ntkpipe.kernels.spec import FORMULA_VERSION
from ntkpipe.kernels.state import Kernels
from ntkpipe.storage.checksum import digest
from ntkpipe.storage.protocol import MissingObjectError, ObjectStore

FOLDER = "estimators"


class KeptKernels:
    """`SharedKernels` that also stores its results.

    Args:
        store: stores the results.
        shared: computes missing results and shares them within the process.
    """

    def __init__(self, store: ObjectStore, shared: SharedKernels) -> None:
        self._store, self._shared = store, shared

    def kernels(self, architecture: Architecture, x1: np.ndarray, x2: np.ndarray | None = None) -> Kernels:
        """See `SharedKernels.kernels`."""

        def compute() -> dict[str, np.ndarray]:
            return self._shared.kernels(architecture, x1, x2)._asdict()

        if is_random(architecture):
            return Kernels(**compute())
        rows = [_rows(x1), None if x2 is None else _rows(x2)]
        return Kernels(**self._kept(architecture, ["kernels", rows], compute))

    def eigensystem(self, architecture: Architecture, x: np.ndarray, name: str) -> Eigensystem:
        """See `SharedKernels.eigensystem`."""

        def compute() -> dict[str, np.ndarray]:
            made = self._shared.eigensystem(architecture, x, name)
            return {"values": made.values, "vectors": made.vectors, "noise": np.array(made.noise)}

        # Files of float32 rows without noise are of earlier versions.
        what = ["eigensystem", name, _rows(x), *(["noise"] if x.dtype == np.float32 else [])]
        found = compute() if is_random(architecture) else self._kept(architecture, what, compute)
        return Eigensystem(found["values"], found["vectors"], float(found.get("noise", 0.0)))

    def _kept(
        self, architecture: Architecture, what: list[Any], compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        key = f"{FOLDER}/{digest([FORMULA_VERSION, architecture.fingerprint, *what])}.npz"
        try:
            with np.load(io.BytesIO(self._store.get(key)), allow_pickle=False) as arrays:  # checks each array's CRC
                return dict(arrays)
        except MissingObjectError:
            damaged = False
        except (ValueError, EOFError, OSError, zipfile.BadZipFile):
            damaged = True
        made, file = compute(), io.BytesIO()
        np.savez(file, allow_pickle=False, **{name: np.asarray(array, np.float64) for name, array in made.items()})
        self._store.put(key, file.getbuffer(), overwrite=damaged)
        return made


def _rows(x: np.ndarray) -> list[Any]:
    return [list(x.shape), x.dtype.str, rows_digest(x).hex()]
