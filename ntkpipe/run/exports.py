"""Records of exported files, which also let `ntkpipe verify` check files outside the run's folder."""

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
    """Call `export_predictions`, record the file in the run's folder if that is writable, and return its path."""
    made = export_predictions(predictions, path, format, overwrite=overwrite)
    entry = {"format": format, "crc32c": None if made.is_dir() else crc32c(made.read_bytes())}
    try:
        run.write_json(_RECORD, {**(run.read_json(_RECORD) or {}), os.path.relpath(made, run.path): entry})
    except OSError as error:
        _log.info("cannot write to %s (%s): ntkpipe verify will not check %s", run.path, error.strerror, made)
    return made


def damaged_exports(run: RunDir) -> list[str]:
    """Return a line for every exported file whose content has changed.

    A missing file is not reported, because the user may have moved it.
    """
    found = []
    if (run.path / _RECORD).exists() and run.read_json(_RECORD) is None:
        found.append(f"{run.path / _RECORD} is damaged, so exported files cannot be checked: export them again")
    for name, entry in (run.read_json(_RECORD) or {}).items():
        path = os.path.normpath(run.path / name)  # the file and the run may have moved together
        form, expected, file = entry["format"], entry["crc32c"], Path(path)
        if not (file.is_dir() if expected is None else file.is_file()):
            continue
        wrong = verify_predictions(file) if expected is None else crc32c(file.read_bytes()) != expected
        if wrong:
            # The user may have edited the file, so it is not overwritten without consent.
            found.append(
                f"{path} differs from the exported file: to replace it, run ntkpipe export run_dir={run.path} "
                f"format={form} path={path} overwrite=true"
            )
    return found


def forget_damaged_record(run: RunDir) -> None:
    """Remove the record of exports if it cannot be read."""
    if run.read_json(_RECORD) is None:
        (run.path / _RECORD).unlink(missing_ok=True)
