"""Files with the arrays of saved solutions."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.errors import IncompleteError
from ntkpipe.storage.replace import replacing


def write_arrays(target: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as one `.npz` file, atomically."""
    with replacing(target) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an `.npz` file that `Solution.save` has written.

    Raises:
        IncompleteError: if the file is missing or damaged.
    """
    try:
        # Open the file here, because np.load leaves a file that it opened open if it fails.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        if missing := {"indices", "stored", "exact", "history", "spectrum"} - set(arrays):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IncompleteError(f"{path} cannot be read: {error}") from error
    return arrays
