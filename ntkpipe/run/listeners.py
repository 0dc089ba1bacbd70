"""Who listens to a run from its own folder: `progress.json` and the run log."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ntkpipe.events.event import PROGRESS, Event, Kind
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.clock import now


class ProgressFile:
    """`progress.json` in the run's folder: what goes on now. Put it behind `Paced`.

    Args:
        run: whose.
        traffic: what the store was asked for, added to the facts.
    """

    def __init__(self, run: RunDir, traffic: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._run, self._traffic = run, traffic

    def __call__(self, event: Event) -> None:
        """Write it anew, if the event is progress."""
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
    """`log.jsonl` in the run's folder: a line for each event but progress and lines that are for people alone.

    Args:
        run: whose.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def __call__(self, event: Event) -> None:
        """Append the event."""
        if event.kind in _NAMES:
            self._run.log(_NAMES[event.kind], **{k: v for k, v in event.facts.items() if k != "files"})
        elif event.kind in (Kind.WARNING, Kind.RETRY):
            self._run.log(str(event.kind), text=event.text, **event.facts)
        elif event.kind is Kind.STAGE_STOPPED and event.facts.get("error") == "ReportError":
            self._run.log(f"{event.stage} failed", text=event.text)
