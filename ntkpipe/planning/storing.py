"""Are tiles better stored, or computed whenever they are read? Both ways in seconds, for the plan and for `auto`.

With K kernels to solve for, P passes over the train-train tiles of each, of which a share h stays in memory, W workers:

- stored: one evaluation gives every tile of both kernels (E seconds, or as long as writing them takes); each kernel is read
  once, and the share 1 - h of it on each of the other passes, while the tiles before are multiplied (m seconds a pass):
  `max(E, bytes / write) + K (b / read + (P - 1) max(m, (1 - h) b / read) + m)`;
- recomputed: each kernel is evaluated by itself, and the same share again on every other pass, by the cores that multiply:
  `K (e + (P - 1) (1 - h) e + P m)`, and once more for its test-train tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from ntkpipe.config import RunConfig
from ntkpipe.gram.plan import GramPlan, human_bytes, human_seconds
from ntkpipe.planning.disk import DiskSpeed, disk_speed
from ntkpipe.planning.memory import evaluation_bytes, tile_memory
from ntkpipe.storage.store import ObjectStore

PASSES = 150
"""Real image kernels took 78 (n = 10,000) to 147 (n = 50,000) passes to a bound of 1e-4 at t = inf without ridge for the NTK,
half as many again and more for the NNGP."""

PRODUCT_RATE = {"float32": 4.5e10, "float64": 2.8e10}
"""Skinny products of one worker with one thread, flops per second (docs/performance.md): 45 and 28 GF/s were measured."""

# Stored tiles serve other runs too: `auto` recomputes only where that is faster by so much.
_WORTH = 0.8
# Where tiles outgrow memory or this, reading them takes long enough to measure the disk first.
_WORTH_MEASURING = 2 << 30


@dataclass(frozen=True)
class Storing:
    """Both ways, and the one that is chosen.

    Args:
        stored: whether tiles are stored.
        why: the reason, for people.
        stored_seconds: of Gram, solver and predictions together, if tiles are stored.
        recomputed_seconds: likewise if they are computed whenever they are read.
        nbytes: that stored tiles take.
        held: share of a kernel's tiles that stays in memory between passes.
        passes: that are expected over the tiles of a kernel.
        disk: that would be read and written.
    """

    stored: bool
    why: str
    stored_seconds: float
    recomputed_seconds: float
    nbytes: int
    held: float
    passes: int
    disk: DiskSpeed

    def describe(self) -> str:
        """Lines like those of `GramPlan.describe`."""
        stored, recomputed = human_seconds(self.stored_seconds), human_seconds(self.recomputed_seconds)
        ratio = self.recomputed_seconds / max(self.stored_seconds, 1e-9)
        compared = f"{ratio:.2g} times longer" if ratio >= 1 else f"{1 / ratio:.2g} times faster"
        return (
            f"tiles       {'stored' if self.stored else 'recomputed'} ({self.why})\n"
            f"            stored: {stored} and {human_bytes(self.nbytes)}; recomputed: {recomputed} ({compared}) and none; "
            f"for {self.passes} pass{'es' if self.passes != 1 else ''}, {self.held:.0%} held in memory, disk "
            f"{human_bytes(self.disk.read)}/s read, {human_bytes(self.disk.write)}/s written ({self.disk.source})"
        )


def compare(
    config: RunConfig,
    plan: GramPlan,
    outputs: int,
    budget: int,
    store: ObjectStore,
    *,
    free_bytes: int | None,
    stored_bytes: int = 0,
    chosen: bool | None = None,
    may_measure: bool = True,
) -> Storing:
    """Both ways, and which one is taken.

    Args:
        config: of the run; `store.gram` decides, unless it is `auto`.
        plan: as if tiles were stored.
        outputs: of the network.
        budget: memory in bytes, all processes together.
        store: that tiles would be stored in.
        free_bytes: of its disk, None if unknown.
        stored_bytes: that are there already.
        chosen: what an earlier start of this run has chosen: `auto` stays with it.
        may_measure: the disk, if nothing was measured and it matters.
    """
    n, item = plan.blocks[0].used.rows, {"float32": 4, "float64": 8}[plan.store_dtype]
    kernels = len({"ntk" if name == "ntkgp" else name for name in config.predict.kernels})
    train = n * (n + plan.edge) // 2 * item
    test = sum(block.used.rows * block.used.cols for block in plan.blocks[1:]) * item
    share = plan.blocks[0].pairs / plan.pairs
    evaluation = plan.seconds * share, plan.seconds * (1 - share)
    room = tile_memory(config, n, outputs, budget, plan.workers)
    recomputing = tile_memory(config, n, outputs, budget - plan.workers * evaluation_bytes(plan), plan.workers)
    kept = 4 / item if config.solver.products == "float32" else 1.0
    held, held_then = min(1.0, room / (train * kept)), min(1.0, recomputing / (train * kept))
    passes = _passes(config)
    measures = may_measure and (held < 1 or plan.disk_bytes > _WORTH_MEASURING or config.store.gram == "auto")
    disk = disk_speed(store, may_measure=measures)
    product = 2 * n * n * outputs / (PRODUCT_RATE[config.solver.products] * plan.workers)
    left = max(0.0, 1 - stored_bytes / max(1, plan.disk_bytes))
    stored_seconds = left * max(plan.seconds, plan.disk_bytes / disk.write) + kernels * (
        (train + test) / disk.read + (passes - 1) * max(product, (1 - held) * train / disk.read) + product
    )
    recomputed_seconds = kernels * (
        evaluation[0] * (1 + (passes - 1) * (1 - held_then)) + evaluation[1] + passes * product
    )
    lacks = free_bytes is not None and plan.disk_bytes - stored_bytes > free_bytes
    stored, why = config.store.gram == "stored", f"store.gram={config.store.gram}"
    if config.store.gram == "auto" and chosen is not None:
        stored, why = chosen, "store.gram=auto, as this run has begun"
    elif config.store.gram == "auto" and lacks:
        stored, why = False, f"store.gram=auto: the disk has {human_bytes(free_bytes or 0)} free"
    elif config.store.gram == "auto":
        stored = recomputed_seconds >= _WORTH * stored_seconds
        why = "recomputing is not clearly faster, and stored tiles serve other runs" if stored else "clearly faster"
        why = f"store.gram=auto: {why}"
    used = held if stored else held_then
    return Storing(stored, why, stored_seconds, recomputed_seconds, plan.disk_bytes, used, passes, disk)


def _passes(config: RunConfig) -> int:
    """Over the train-train tiles of a kernel; direct solvers read them once, or once for each ridge."""
    if config.solver.kind in ("krylov", "cg"):
        return min(PASSES, config.solver.max_steps)
    return 1 if config.solver.kind == "eigh" else len(config.predict.ridges)
