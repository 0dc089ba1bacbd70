"""Converts predictions to tables with a row per kernel, time, ridge and test point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from ntkpipe.predictions.schema import Predictions

# 65,536 rows of 10 classes take 11 MB. This is large enough for Parquet to be efficient, and needs little memory.
ROWS_PER_GROUP = 2**16


def iterate_tables(predictions: Predictions, rows: int = ROWS_PER_GROUP) -> Iterator[pa.Table]:
    """Yield the rows of `export_predictions` as Arrow tables of at most `rows` rows, one (kernel, time, ridge) each."""
    for entry in predictions.entries():
        for start in range(0, len(predictions.test_index), rows):
            yield _table(predictions, entry, slice(start, start + rows))


def _table(predictions: Predictions, entry: tuple[int, int, int], rows: slice) -> pa.Table:
    import pyarrow as pa

    k, t, r = entry
    mean, bound = predictions.mean[entry][rows], predictions.error_bound[entry][rows]
    count, outputs = mean.shape
    columns: dict[str, Any] = {
        "kernel": pa.array([predictions.kernels[k]] * count, pa.string()),
        "time": np.full(count, predictions.times[t]),
        "ridge": np.full(count, predictions.ridges[r]),
        "test_index": predictions.test_index[rows],
    }
    if predictions.predicts_classes:
        names = np.array(predictions.class_names, dtype=object)
        predicted = mean.argmax(1)
        top = np.partition(mean, -2, axis=1)[:, -2:] if outputs > 1 else np.full((count, 2), np.nan)
        if predictions.label is not None:
            label = predictions.label[rows]
            columns |= {"label": label, "label_name": pa.array(names[label], pa.string())}
        columns |= {
            "predicted": predicted,
            "predicted_name": pa.array(names[predicted], pa.string()),
            "margin": top[:, 1] - top[:, 0],
        }
    elif predictions.has_targets:
        columns |= {f"target_{i}": predictions.target[rows, i] for i in range(outputs)}
    columns |= {f"mean_{i}": mean[:, i] for i in range(outputs)}
    columns |= {f"error_bound_{i}": bound[:, i] for i in range(outputs)}
    if predictions.error_estimate is not None:
        columns |= {f"error_estimate_{i}": predictions.error_estimate[entry][rows, i] for i in range(outputs)}
    columns["bound_kind"] = pa.array([str(predictions.bound_kind[entry])] * count, pa.string())
    for name, values in (("variance", predictions.variance), ("variance_bound", predictions.variance_bound)):
        if values is not None and values.ndim == 4:
            columns[name] = values[entry][rows]
        elif values is not None:
            columns |= {f"{name}_{i}": values[entry][rows, i] for i in range(outputs)}
    if predictions.noise is not None:
        columns |= {f"noise_{i}": np.full(count, predictions.noise[(*entry, i)]) for i in range(outputs)}
    return pa.table(columns)
