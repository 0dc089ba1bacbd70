"""The status of a run: finished stages, remaining stages and remaining time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ntkpipe.errors import StoreError
from ntkpipe.predictions.read import verify_predictions
from ntkpipe.run.networks import stored_weights
from ntkpipe.run.prepare import has_data, reopen
from ntkpipe.run.run_dir import RunDir
from ntkpipe.run.watching import describe_traffic
from ntkpipe.storage.store import local_folder, open_store
from ntkpipe.units import human_bytes, human_seconds


def status(run: RunDir) -> tuple[list[str], bool]:
    """Return the finished and remaining stages of a run, with the rate and the remaining time.

    Returns:
        Lines of text, and whether the run is finished.
    """
    # Each receipt is read once, because an active run may write the next one and all lines must describe the same
    # moment.
    receipts = {stage: run.receipt(stage) for stage in run.stages}
    finished = all(receipts.values())
    lines = [f"{run.path}: {_state(run, receipts)}"]
    for stage, receipt in receipts.items():
        if receipt is not None:
            took = human_seconds(receipt["seconds"])
            lines.append(f"  {stage:<8} done {receipt['finished']}, {took}{_detail(stage, receipt)}")
    progress = run.read_json("progress.json") or {}
    for stage, receipt in receipts.items():
        if receipt is None:
            known = progress.get("stage") == stage
            now = f"{progress.get('line')} ({progress.get('time')})" if known else "to do"
            lines.append(f"  {stage:<8} {now}")
    if told := describe_traffic(progress):
        lines.append(f"  store    {', '.join(told)} since the last start")
    try:
        if local_folder(run.config.store.url) is not None:  # no request to a bucket for a finished run
            run.require_store()
            lines += _weights(run, receipts["gram"])
        if receipts["gram"] is None and receipts["data"] is not None:
            lines += [f"  {text}" for text in reopen(run).opened.describe_progress()]
    except StoreError as error:
        lines.append(f"  store    {error}")
    return lines, finished


def _weights(run: RunDir, receipt: dict[str, Any] | None) -> list[str]:
    """Return lines about a finite network's weights."""
    if run.config.kernel.kind != "empirical" or receipt is None:
        return []
    name = str(receipt["store"]).rstrip("/").rpartition("/")[2]
    found = [one for one in stored_weights(open_store(run.config.store.url)) if name in one.users]
    if found:
        return [f"  network  {one.key} in the store, {human_bytes(one.nbytes)}" for one in found]
    return ["  network  its weights are missing from the store: repeat the run's command to write them again"]


def _state(run: RunDir, receipts: Mapping[str, dict[str, Any] | None]) -> str:
    if all(receipts.values()):
        return "finished"  # its process may still hold the run for a moment
    if (who := run.holder()) is not None:
        return f"running ({who})"
    return "finished" if receipts[run.stages[-1]] else "not running: repeat the same command to continue"


def _detail(stage: str, receipt: dict[str, Any]) -> str:
    if stage == "gram" and receipt.get("given"):
        return f", given: {receipt['store']}"
    if stage == "gram" and not receipt["tiles"]:
        return ", only diagonals: tiles are recomputed on every read"
    if stage == "gram":
        return f", {receipt['tiles']:,} tiles ({receipt['computed']:,} computed, {receipt['reused']:,} reused)"
    if stage == "solve":
        parts = [
            f"{k}: {f['steps']} step{'' if f['steps'] == 1 else 's'}, residual {f['true_residual']:.1e}"
            for k, f in receipt["kernels"].items()
        ]
        return ", " + "; ".join(parts)
    if stage == "predict":
        if (estimate := receipt.get("max_error_estimate")) is not None:
            return f", largest error estimate {estimate:.1e}, bound {receipt['max_error_bound']:.1e}"
        return f", largest error bound {receipt['max_error_bound']:.1e}"
    return f", {receipt['page']}" if stage == "report" else f", {receipt['n_train']:,} + {receipt['n_test']:,} points"


def is_finished(run: RunDir) -> bool:
    """Return whether every stage has a receipt and undamaged output that belongs to the current data."""
    receipts = {stage: run.receipt(stage) for stage in run.stages}
    if None in receipts.values() or any(run.damaged_files(stage) for stage in run.stages):
        return False
    same = has_data(run.config, receipts["data"] or {})
    return same and not verify_predictions(run.path / "predictions.zarr")
