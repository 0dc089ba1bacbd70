"""Are tiles better stored, or computed whenever they are read? Both ways are projected with the same model, for the plan and for `auto`.

Stored, one evaluation gives every tile of both kernels; what memory does not hold of them is read on every pass. Recomputed, each kernel
is evaluated by itself, and what memory does not hold again on every pass, by the cores that multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ntkpipe.config import RunConfig
from ntkpipe.errors import ResourceError
from ntkpipe.planning.model import Work
from ntkpipe.planning.solving import predict, solve
from ntkpipe.units import human_bytes

# Stored tiles serve other runs too: `auto` recomputes only where that is faster by so much.
_WORTH = 0.8


@dataclass(frozen=True)
class Storing:
    """Both ways, and the one that is chosen.

    Args:
        stored: whether tiles are stored.
        why: the reason, for people.
        stored_seconds: of Gram, solver and predictions together, if tiles are stored.
        recomputed_seconds: likewise if they are computed whenever they are read.
        nbytes: that stored tiles take.
        held: share of a kernel's tiles that stays in memory between passes, in the way that is chosen.
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
    """Both ways, and which one is taken.

    Args:
        config: of the run; `store.gram` decides, unless it is `auto`.
        stored: the run if tiles are stored; an error if it does not fit.
        recomputed: the run if they are not.
        free_disk: bytes of the store's disk, None if unknown.
        stored_bytes: that are there already.
        begun: what an earlier start of this run has chosen: `auto` stays with it.
    """
    ways = {True: stored, False: recomputed}
    seconds = {key: math.inf if isinstance(way, ResourceError) else _seconds(way) for key, way in ways.items()}
    nbytes = stored.plan.disk_bytes if isinstance(stored, Work) else 0
    chosen, why = config.store.gram == "stored", f"store.gram={config.store.gram}"
    if config.store.gram == "auto" and begun is not None:
        chosen, why = begun, "store.gram=auto, as this run has begun"
    elif config.store.gram == "auto" and free_disk is not None and nbytes - stored_bytes > free_disk:
        chosen, why = False, f"store.gram=auto: the disk has {human_bytes(free_disk)} free"
    elif config.store.gram == "auto":
        chosen = seconds[False] >= _WORTH * seconds[True]
        why = "recomputing is not clearly faster, and stored tiles serve other runs" if chosen else "clearly faster"
        why = f"store.gram=auto: {why}"
    way = ways[chosen]
    if not isinstance(way, Work):
        return Storing(chosen, why, seconds[True], seconds[False], nbytes, 0.0)
    return Storing(chosen, why, seconds[True], seconds[False], nbytes, way.held)


def _seconds(way: Work) -> float:
    return sum(stage.seconds for stage in (way.gram(), solve(way), predict(way)))
