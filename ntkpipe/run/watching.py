"""Remote views of a run: an object in the store, experiment trackers, and the executor's metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ntkpipe.config import to_dict
from ntkpipe.events.event import PROGRESS, Event, Kind
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.trackers.protocol import Reporters, open_reporters
from ntkpipe.storage.board import Board, is_running, read_boards
from ntkpipe.storage.statistics import PROCESS
from ntkpipe.storage.store import ObjectStore, open_store
from ntkpipe.units import human_bytes, human_seconds

# Numbers of a repeated status line that show whether a run progresses.
_TOLD = ("retries", "speculative", "failed")


class Watch:
    """Publishes a run's progress. It never makes a run fail, and never waits for a store or a server.

    Args:
        run: folder of the run.
        board: rewrites the run's object in the store.
        reporters: experiment trackers.
        publish: publishes numbers through the executor, once there is one; see `Executor.publish`.
    """

    def __init__(
        self,
        run: RunDir,
        board: Board,
        reporters: Reporters,
        publish: Callable[[str, Mapping[str, float]], None] | None,
    ) -> None:
        self._run = run
        self._board, self._reporters, self._publish = board, reporters, publish

    def __call__(self, event: Event) -> None:
        """Publish an event; wrap the watch in `Paced` for progress."""
        if event.kind in PROGRESS:
            self._progress(event.stage, event.text, event.elapsed, {**event.facts, **self.count_traffic()})
        elif event.kind is Kind.STAGE_DONE:
            receipt = event.facts
            line = f"{event.stage} finished"
            self._board.tell(stage=event.stage, line=line, elapsed=receipt["seconds"], **self.count_traffic())
            self._reporters.finished(event.stage, receipt)
        elif event.kind is Kind.STAGE_STOPPED and event.facts.get("error") == "ReportError":
            self._metrics()  # the metrics exist, although the report could not be drawn
        elif event.kind is Kind.RUN_DONE:
            self._board.tell(stage="report", line="finished", final=True, **self.count_traffic())
            self._metrics()
            page = self._run.path / "report"
            for path in [*sorted(page.rglob("*.png")), page / "report.html"]:
                if path.exists():
                    self._reporters.file(path)

    def _progress(self, stage: str, line: str, elapsed: float, told: Mapping[str, Any]) -> None:
        facts = {name: value for name, value in told.items() if name != "stage"}
        self._board.tell(stage=stage, line=line, elapsed=round(elapsed, 1), **facts)
        self._reporters.progress(stage, {"elapsed": elapsed, **facts})
        if self._publish is not None:
            numbers = {
                name: float(value)
                for name, value in facts.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            }
            self._publish(stage, numbers)

    def _metrics(self) -> None:
        self._reporters.metrics(self._run.read_json("metrics.json") or {"entries": []})

    def count_traffic(self) -> dict[str, int]:
        """Return the requests of this process and its workers to the store, JSON-ready, for `describe_traffic`.

        The result is empty for a store on disk.
        """
        asked = self._board.store.statistics() + PROCESS.heard()
        if not asked.requests:
            return {}
        return {"store_retries": asked.retries, "store_read": asked.bytes_read, "store_written": asked.bytes_written}


@contextlib.contextmanager
def watching(run: RunDir, publish: Callable[[str, Mapping[str, float]], None] | None = None) -> Iterator[Watch]:
    """Context manager that publishes a run's progress.

    Args:
        run: folder of the run, which also receives the files of trackers.
        publish: see `Watch`.

    Raises:
        ConfigError: if a tracker is not installed.
    """
    config = run.config
    reporters = open_reporters(config.watch.reporters, run.path.name, run.path, to_dict(config))
    ok = False
    try:
        with Board(open_store(config.store.url), run.path, every=config.watch.every) as board:
            try:
                yield Watch(run, board, reporters, publish)
                ok = True
            except BaseException as error:
                if run.begun:  # a refused run leaves nothing in the store
                    board.tell(line=f"stopped: {type(error).__name__}: {error}"[:500], final=True)
                raise
    finally:
        reporters.close(ok=ok)


def watched_runs(url: str, name: str | None = None) -> list[str]:
    """Return lines about every run that writes to a store, or about the run of that name.

    The function needs one GET per run and no connection to a cluster.
    """
    store = open_store(url)
    lines = []
    for key, news in read_boards(store):
        if name is None or name in (key, news.get("run_dir"), key.removeprefix("runs/").removesuffix(".json")):
            lines += _lines(store, key, news)
    return lines


def describe_traffic(news: Mapping[str, Any]) -> list[str]:
    """Return texts about the traffic that `Watch.count_traffic` recorded; none for a store on disk."""
    told = []
    if news.get("store_retries"):
        told.append(f"{news['store_retries']:,} repeated requests to the store")
    if news.get("store_written"):
        told.append(f"{human_bytes(news['store_read'])} read and {human_bytes(news['store_written'])} written")
    return told


def _lines(store: ObjectStore, key: str, news: Mapping[str, Any]) -> Iterator[str]:
    state = "running" if is_running(store, key) else "finished" if news.get("line") == "finished" else "not running"
    yield f"{key.removeprefix('runs/').removesuffix('.json')}: {state}, {news.get('host')}:{news.get('run_dir')}"
    line = f"  {news.get('stage', ''):<8} {news.get('line', '')} ({news.get('time')})"
    counted = [f"{news[name]} {name}" for name in _TOLD if news.get(name)]
    counted += describe_traffic(news)
    if isinstance(news.get("elapsed"), (int, float)):
        counted.append(f"{human_seconds(float(news['elapsed']))} in this stage")
    yield line + (f"; {', '.join(counted)}" if counted else "")
