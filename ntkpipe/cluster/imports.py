"""The import path of workers: the path of the driver without its working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from ray.job_config import JobConfig


class _Importable(list[str]):
    """The folders that Ray puts first on the path of workers, without the working directory of the driver.

    Otherwise a script `numpy.py` of the user in that directory would replace NumPy in every worker.
    """

    def extend(self, folders: Iterable[str], /) -> None:
        """Add those folders from which this process imports."""
        own = {os.path.abspath(folder or os.curdir) for folder in sys.path}
        super().extend(folder for folder in folders if folder in own)


def job_config() -> JobConfig:
    """The job configuration for `ray.init`."""
    made = JobConfig()
    made._py_driver_sys_path = _Importable()  # no public setting excludes the working directory
    return made
