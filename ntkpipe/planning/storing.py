"""Choose between storing tiles and recomputing them. Both ways are projected with the same model.

If tiles are stored, one evaluation gives every tile of both kernels, and tiles that memory does not hold are read on
every pass. If they are recomputed, each kernel is evaluated separately, and tiles that memory does not hold are
recomputed on every pass by the cores that multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.config import RunConfig
from ntkpipe.errors import ResourceError
from ntkpipe.planning.model import Work
from ntkpipe.planning.solving import predict, solve
from ntkpipe.units import human_bytes

# Other runs can use stored tiles, so `auto` recomputes only if that is faster by this factor.
_WORTH = 0.8


@dataclass(frozen=True)
class Storing:
    """Costs of both ways, and the choice.

    Args:
        stored: whether tiles are stored.
        why: the reason for the choice.
        stored_seconds: of kernel, solve and predictions together, if tiles are stored.
        recomputed_seconds: the same if tiles are recomputed on every read.
        nbytes: bytes of the stored tiles.
        held: share of a kernel's tiles that stays in memory between passes with the chosen way.
    """

    stored: bool
    why: str
    stored_seconds: float
    recomputed_seconds: float
    nbytes: int
    held: float


def choose_storing(
    config: RunConfig,
    stored: Work | ResourceError,
    recomputed: Work | ResourceError,
    free_disk: int | None = None,
    stored_bytes: int = 0,
    *,
    begun: bool | None = None,
) -> Storing:
    """Compare both ways and choose one.

    Args:
        config: of the run; `store.gram` decides, unless it is `auto`.
        stored: the run with stored tiles; an error if it does not fit.
        recomputed: the run with recomputed tiles.
        free_disk: free bytes of the store's disk; None if unknown.
        stored_bytes: bytes that are already stored.
        begun: the choice of an earlier start of this run, which `auto` keeps.
    """
    ways = {True: stored, False: recomputed}
    seconds = {key: math.inf if isinstance(way, ResourceError) else _seconds(way) for key, way in ways.items()}
    nbytes = stored.plan.disk_bytes if isinstance(stored, Work) else 0
    chosen, why = config.store.gram == "stored", f"store.gram={config.store.gram}"
    if config.store.gram == "auto" and begun is not None:
        chosen, why = begun, "store.gram=auto, as chosen at this run's first start"
    elif config.store.gram == "auto" and free_disk is not None and nbytes - stored_bytes > free_disk:
        chosen, why = False, f"store.gram=auto: the disk has {human_bytes(free_disk)} free"
    elif config.store.gram == "auto":
        chosen = seconds[False] >= _WORTH * seconds[True]
        why = (
            "recomputing is not much faster, and other runs can use stored tiles"
            if chosen
            else ("recomputing is much faster")
        )
        why = f"store.gram=auto: {why}"
    way = ways[chosen]
    if not isinstance(way, Work):
        return Storing(chosen, why, seconds[True], seconds[False], nbytes, 0.0)
    return Storing(chosen, why, seconds[True], seconds[False], nbytes, way.held)


def _seconds(way: Work) -> float:
    return sum(stage.seconds for stage in (way.gram(), solve(way), predict(way)))
