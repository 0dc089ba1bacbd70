"""Ray Jobs: a filled-in job file handed to a cluster's dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray import exceptions as rx

from ntkpipe.errors import ResourceError


def submit_job(path: Path, address: str) -> str:
    """Submit a job.

    Args:
        path: of the YAML file, with the arguments of `JobSubmissionClient.submit_job`.
        address: of the dashboard. A token is taken from where Ray looks for it, RAY_AUTH_TOKEN_PATH say.

    Returns:
        The submission's id.

    Raises:
        ResourceError: if this Ray has no job client, or the dashboard refuses the job.
    """
    arguments: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address).submit_job(**arguments)
    except (ImportError, ModuleNotFoundError) as error:
        raise ResourceError(f"this Ray has no job client ({error}): pip install 'ntkpipe[cluster]'") from error
    except (rx.RayError, RuntimeError, ConnectionError, OSError, ValueError) as error:
        raise ResourceError(f"the Ray dashboard at {address} did not take the job: {error}") from error
