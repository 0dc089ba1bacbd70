"""Listeners that write into the run's folder: `progress.json` and the run log."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ntkpipe.events.event import PROGRESS, Emit, Event, Kind, Paced, to_all
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.watching import Watch
from ntkpipe.storage.clock import now


class ProgressFile:
    """Writes the current state to `progress.json` in the run's folder; wrap it in `Paced`.

    Args:
        run: folder of the run.
        traffic: returns the numbers of requests to the store, which are added to the facts.
    """

    def __init__(self, run: RunDir, traffic: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._run, self._traffic = run, traffic

    def __call__(self, event: Event) -> None:
        """Rewrite the file if the event is progress."""
        if event.kind not in PROGRESS:
            return
        self._run.write_json(
            "progress.json",
            {
                "stage": event.stage,
                "time": now(),
                "pid": os.getpid(),
                "elapsed": round(event.elapsed, 1),
                "line": event.text,
                "final": event.prompt,
                **event.facts,
                **self._traffic(),
            },
        )


_NAMES = {Kind.RUN_BEGUN: "run started", Kind.STAGE_DONE: "stage finished", Kind.RUN_DONE: "run finished"}


class RunLog:
    """Writes one line per event to `log.jsonl` in the run's folder, except progress and lines for the terminal only.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def __call__(self, event: Event) -> None:
        """Append the event to the log."""
        if event.kind in _NAMES:
            self._run.log(_NAMES[event.kind], **{k: v for k, v in event.facts.items() if k != "files"})
        elif event.kind in (Kind.WARNING, Kind.RETRY):
            self._run.log(str(event.kind), text=event.text, **event.facts)
        elif event.kind is Kind.STAGE_STOPPED and event.facts.get("error") == "ReportError":
            self._run.log(f"{event.stage} failed", text=event.text)


def recorded(run: RunDir, listener: Emit, watch: Watch | None = None) -> Emit:
    """Return a listener that records every event in the run's folder, and then passes it on.

    Args:
        run: folder of the run.
        listener: receives every event after it is recorded.
        watch: also receives progress, and counts the requests to the store.
    """
    if watch is None:
        return to_all(RunLog(run), Paced(ProgressFile(run)), listener)
    return to_all(RunLog(run), Paced(to_all(ProgressFile(run, watch.count_traffic), watch)), listener)
