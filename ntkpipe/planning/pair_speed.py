"""How fast a worker evaluates pairs of images on this machine: measured once, in a process like a worker's, and kept.

Networks that look at images differ by a factor of a million in the time of a pair, and so do machines: neither the edge of
a tile nor the time of a plan can be guessed from their arithmetic.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from ntkpipe import __version__
from ntkpipe.errors import ResourceError
from ntkpipe.tasks.environment import processor, worker_environment

_SECONDS = 300.0  # a process that takes longer is stuck: the largest networks compile in a minute


@dataclass(frozen=True)
class Tuning:
    """What was measured.

    Args:
        seconds_per_pair: of one worker, both kernels.
        pairs_per_step: columns of a tile that go through the layers together at that speed.
        process_bytes: resident memory of a process that has evaluated pairs, before any tile.
        tried: seconds per pair by pairs per step.
        device: that it was measured on.
    """

    seconds_per_pair: float
    pairs_per_step: int
    process_bytes: int
    tried: Mapping[str, float]
    device: str

    def to_json(self) -> bytes:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Tuning:
        """The inverse of `to_json`.

        Raises:
            ValueError: if it is none.
        """
        try:
            made = cls(**json.loads(data))
            if math.isfinite(made.seconds_per_pair) and made.seconds_per_pair > 0 and made.pairs_per_step >= 1:
                return made
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a tuning: {error}") from error
        raise ValueError("not a tuning: its numbers are out of range")


def circumstances(threads: int) -> dict[str, Any]:
    """Everything besides the network and its images that a measurement depends on."""
    return {
        "ntkpipe": __version__,
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "processor": processor(),
        "threads": threads,
        "platforms": os.environ.get("JAX_PLATFORMS", ""),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def measure(
    spec: Sequence[Mapping[str, Any]],
    image_shape: Sequence[int],
    dtype: str,
    *,
    threads: int,
    pairs_per_step: int | None = None,
    edge: int | None = None,
) -> Tuning:
    """Measure in a process of its own, which ends before this returns.

    Args:
        spec: layers of the architecture.
        image_shape: `(h, w, c)`.
        dtype: of the computation.
        threads: of a worker.
        pairs_per_step: the only one to try; None tries a few.
        edge: of a network that flattens its images: time whole tiles of so many rows, not numbers of pairs.

    Raises:
        ResourceError: if the process fails; the text holds what it said.
    """
    asked = {
        "spec": list(spec),
        "image_shape": list(image_shape),
        "dtype": dtype,
        "pairs_per_step": pairs_per_step,
        "edge": edge,
    }
    command = [sys.executable, "-P", "-m", "ntkpipe.gram.pair_probe"]  # -P: not from the working directory
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, this package
            command,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, **worker_environment(threads)},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"one pair of images takes longer than {_SECONDS:.0f} s to compile and evaluate: use a smaller network, "
            "data.downsample=2, or give grid.edge and grid.pairs_per_step, and nothing is measured"
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ResourceError(f"the kernel cannot be evaluated on this machine: {said[-1] if said else done.returncode}")
    return Tuning.from_json(done.stdout.strip().splitlines()[-1].encode())
