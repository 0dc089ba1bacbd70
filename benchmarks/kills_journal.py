"""A journal of tile evaluations that every process of a run writes; it explains evaluations beyond the first."""

from __future__ import annotations

import collections
import dataclasses
import math
from pathlib import Path

# Read by every Python process that finds this folder on its path, the workers of Ray included.
HOOK = """
import os, sys
path = os.environ.get("NTKPIPE_KILLS_JOURNAL")
if path:
    import importlib.abc, importlib.util, time
    def note(what, gram, label, i, j):
        job = "-"
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            job = sys.modules["ray"].get_runtime_context().get_job_id()
        line = f"{what} {gram.objects.url} {label} {i} {j} {time.time()!r} {os.getpid()} {job}\\n"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line.encode())
        os.close(fd)
    class Hook(importlib.abc.MetaPathFinder):
        def find_spec(self, name, where, target=None):
            if name != "ntkpipe.gram.task":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                lacking, write = module.GramJob.lacking, module.GramStore.write_tile
                def noted(job, label, i, j):
                    found = lacking(job, label, i, j)
                    if found and "diagonal" not in label:
                        note("begin", found[0].gram, label, i, j)
                    return found
                def written(gram, label, i, j, *rest, **named):
                    made = write(gram, label, i, j, *rest, **named)
                    note("end", gram, label, i, j)
                    return made
                module.GramJob.lacking, module.GramStore.write_tile = noted, written
            spec.loader.exec_module = exec_module
            return spec
    sys.meta_path.insert(0, Hook())
"""

Tile = tuple[str, int, int]


@dataclasses.dataclass
class Evaluation:
    """One evaluation of a tile; `end` is the time of its receipt, inf without one. Times are seconds since 1970."""

    tile: Tile
    begin: float
    pid: int
    job: str
    end: float = math.inf


@dataclasses.dataclass
class Lifetime:
    """The lifetime of one driver, and the number of the head whose cluster it joined."""

    begin: float
    head: int
    end: float = math.inf


@dataclasses.dataclass
class Kill:
    """One kill.

    Args:
        how: kind of the kill.
        stage: stage of the run at that time.
        begin: time before the first signal.
        end: time after the last process had ended.
        pids: ids of the killed processes; None if the driver was killed, which ends everything that ran for it.
        in_flight: tiles whose evaluation it stopped, set by `count_repeats`.
    """

    how: str
    stage: str
    begin: float
    end: float
    pids: list[int] | None
    in_flight: int = 0

    def hits(self, evaluation: Evaluation) -> bool:
        """Return whether a process that the kill concerned was computing the tile at that time."""
        # At the first signal, or begun before the last process was gone and not ended by then.
        since = self.begin if evaluation.begin <= self.begin else self.end
        alive = evaluation.begin <= self.end and evaluation.end >= since
        return alive and (self.pids is None or evaluation.pid in self.pids)


def read_journal(path: Path, store: Path) -> list[Evaluation]:
    """Return all evaluations of one store's tiles, in the order of their begin."""
    found: list[Evaluation] = []
    open_ones: dict[tuple[Tile, int], Evaluation] = {}
    for line in path.read_text().splitlines():
        what, url, label, i, j, when, pid, job = line.split(" ")
        if url != str(store):
            continue
        key = (label, int(i), int(j)), int(pid)
        if what == "begin":
            open_ones[key] = Evaluation(key[0], float(when), key[1], job)
            found.append(open_ones[key])
        elif key in open_ones:
            open_ones.pop(key).end = float(when)
    return found


def count_repeats(evaluations: list[Evaluation], kills: list[Kill], lives: list[Lifetime]) -> collections.Counter[str]:
    """Count the evaluations beyond the first of each tile by their explanations, and set `in_flight` of the kills.

    Returns:
        `again`: evaluations beyond one per tile. `in flight`: tiles that kills interrupted. `orphans`: evaluations that
        workers began after their driver had ended. `copies`: evaluations that began while another worker of the same
        driver computed the same tile. `unexplained`: evaluations in `again` that none of these explains, tile by tile.
    """
    counts: collections.Counter[str] = collections.Counter()
    allowed: collections.Counter[Tile] = collections.Counter()
    living = list(evaluations)
    for kill in kills:
        struck = [e for e in living if kill.hits(e)]
        hit = {e.tile for e in struck}
        living = [e for e in living if not (math.isinf(e.end) and e in struck)]  # one dies once
        kill.in_flight = len(hit)
        counts["in flight"] += len(hit)
        allowed.update(hit)
    drivers: dict[tuple[str, int], Lifetime] = {}
    of: dict[Tile, list[Evaluation]] = collections.defaultdict(list)
    for e in evaluations:
        # A job belongs to the driver that was the last to start when its first tile began.
        latest = max((life for life in lives if life.begin <= e.begin), key=lambda life: life.begin)
        mine = next((drivers[key] for key in drivers if key == (e.job, latest.head)), None)
        if mine is None:
            mine = drivers[e.job, latest.head] = latest
        if e.begin > mine.end:
            counts["orphans"] += 1
            allowed[e.tile] += 1
        elif any(other.job == e.job and other.end > e.begin and _lived(other, e.begin, kills) for other in of[e.tile]):
            counts["copies"] += 1
            allowed[e.tile] += 1
        of[e.tile].append(e)
    for tile, them in of.items():
        counts["again"] += len(them) - 1
        counts["unexplained"] += max(0, len(them) - 1 - allowed[tile])
    return counts


def _lived(evaluation: Evaluation, when: float, kills: list[Kill]) -> bool:
    """Return whether the process had not been killed by then."""
    return not any(kill.hits(evaluation) and kill.begin <= when for kill in kills)
