"""What was exported where: files outside of a run's folder too, which `ntkpipe verify` compares with what was written."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ntkpipe.predictions.export import export_predictions
from ntkpipe.predictions.read import verify_predictions
from ntkpipe.predictions.schema import Predictions
from ntkpipe.run.run_dir import RunDir
from ntkpipe.storage.checksum import crc32c

_log = logging.getLogger(__name__)

_RECORD = "exports.json"


def export(run: RunDir, predictions: Predictions, path: str, format: str, *, overwrite: bool) -> Path:
    """`export_predictions`, and a note of it in the run's folder, if that may be written to."""
    made = export_predictions(predictions, path, format, overwrite=overwrite)
    entry = {"format": format, "crc32c": None if made.is_dir() else crc32c(made.read_bytes())}
    try:
        run.write_json(_RECORD, {**(run.read_json(_RECORD) or {}), os.path.relpath(made, run.path): entry})
    except OSError as error:
        _log.info("%s cannot be written to (%s): ntkpipe verify will not look at %s", run.path, error.strerror, made)
    return made


def damaged_exports(run: RunDir) -> list[str]:
    """A line for every exported file that is there and is not what was written; one that is gone was moved, perhaps."""
    found = []
    if (run.path / _RECORD).exists() and run.read_json(_RECORD) is None:
        found.append(
            f"{run.path / _RECORD} is damaged: whether exported files are whole is not known, export them again"
        )
    for name, entry in (run.read_json(_RECORD) or {}).items():
        path = os.path.normpath(run.path / name)  # both may have moved together
        form, expected, file = entry["format"], entry["crc32c"], Path(path)
        if not (file.is_dir() if expected is None else file.is_file()):
            continue
        wrong = verify_predictions(file) if expected is None else crc32c(file.read_bytes()) != expected
        if wrong:
            # Whose it is now is not known: nothing is overwritten unasked.
            found.append(
                f"{path} is not what was exported: ntkpipe export run_dir={run.path} format={form} path={path} overwrite=true"
            )
    return found


def forget_damaged_record(run: RunDir) -> None:
    """Remove a record of exports that cannot be read."""
    if run.read_json(_RECORD) is None:
        (run.path / _RECORD).unlink(missing_ok=True)
