"""Submits a job file to the dashboard of a Ray cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ray import exceptions as rx

from ntkpipe.errors import ResourceError
from ntkpipe.extras import install

# Seconds to wait for the agent of a new cluster, whose dashboard answers earlier.
_PATIENCE, _PAUSE = 60.0, 1.0
_NO_AGENT = "No available agent"


def submit_job(path: Path, address: str) -> str:
    """Submit a job.

    Args:
        path: path of a YAML file with the arguments of `JobSubmissionClient.submit_job`.
        address: address of the dashboard. Ray finds a token in its usual places, such as RAY_AUTH_TOKEN_PATH.

    Returns:
        The id of the submission.

    Raises:
        ResourceError: if Ray's job client is not installed, or the dashboard refuses the job.
    """
    arguments: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        from ray.job_submission import JobSubmissionClient

        return _submitted(JobSubmissionClient(address), arguments)
    except (ImportError, ModuleNotFoundError) as error:
        raise ResourceError(f"this Ray has no job client ({error}): {install('cluster')}") from error
    except (rx.RayError, RuntimeError, ConnectionError, OSError, ValueError) as error:
        raise ResourceError(
            f"the Ray dashboard at {address} did not accept the job: {error}{_remedy(error)}"
        ) from error


def _remedy(error: Exception) -> str:
    if _NO_AGENT not in str(error):
        return ""
    # `ray start` gives the agent a fixed port. If another program uses it, the agent runs without its server and reports
    # nothing.
    return (
        f" The agent of the head node has not answered for {_PATIENCE:.0f} s. Another program may hold its port (52365): "
        "start the head with `ray start --head --dashboard-agent-listen-port=0`"
    )


def _submitted(client: Any, arguments: dict[str, Any]) -> str:
    """Submit the job as soon as an agent is available."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return client.submit_job(**arguments)
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > until:
                raise
        time.sleep(_PAUSE)
