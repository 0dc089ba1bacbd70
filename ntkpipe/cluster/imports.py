"""What workers may import: what the driver may, and no file that only happens to lie in its working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ray.job_config import JobConfig


class _Importable(list[str]):
    """Folders of the driver that Ray puts first on its workers' path; the working directory is among them, whatever it holds.

    A `numpy.py` of the user's there, a script of his own, would be the NumPy of every worker.
    """

    def extend(self, folders: Iterable[str], /) -> None:
        """Take those that this process imports from itself."""
        own = {os.path.abspath(folder or os.curdir) for folder in sys.path}
        super().extend(folder for folder in folders if folder in own)


def job_config() -> JobConfig:
    """For `ray.init`."""
    made = JobConfig()
    made._py_driver_sys_path = _Importable()  # there is no public way to keep the working directory out
    return made
