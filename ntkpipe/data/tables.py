"""Makes pyarrow tables from files and from frames of pandas and polars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkpipe.errors import ConfigError, DataError
from ntkpipe.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

# Texts that mean a missing entry: pyarrow's list and the question mark, which older collections use.
_NOTHING = ("", "#N/A", "#NA", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "-nan", "-NaN", "None", "?")
_DELIMITERS = (",", ";", "\t", "|")


def read_table(path: str, setting: str) -> pa.Table:
    """Read a `.csv`, `.tsv` or `.parquet` file.

    The first line of a text file names the columns and shows the delimiter.

    Args:
        path: path of the file.
        setting: the setting that names the path, for messages.

    Raises:
        DataError: if the file is absent or not a table, if it has no rows, or if two columns have the same name.
        MissingExtraError: if pyarrow is not installed.
    """
    require("pyarrow", f"{setting}={path}, a table,")
    import pyarrow as pa
    import pyarrow.parquet as arrow_parquet

    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{setting}={path} is not a file: give a table, .csv or .parquet")
    try:
        is_parquet = file.suffix.lower() in (".parquet", ".pq")
        found = arrow_parquet.ParquetFile(file).read() if is_parquet else _read_text(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{setting}={path} cannot be read as a table ({error}): give .csv with a header, or .parquet"
        ) from error
    return _checked(found, f"{setting}={path}")


def _read_text(file: Path) -> pa.Table:
    import pyarrow.csv as arrow_csv

    with file.open(encoding="utf-8-sig") as lines:
        header = lines.readline()
    delimiter = max(_DELIMITERS, key=header.count)
    return arrow_csv.read_csv(
        file,
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=arrow_csv.ConvertOptions(null_values=list(_NOTHING), strings_can_be_null=True),
    )


def as_table(frame: Any, name: str) -> pa.Table:
    """Convert a frame of pandas, polars or pyarrow to a table, without its index.

    Raises:
        ConfigError: if the value is not a frame.
        DataError: if a column mixes kinds of values, two columns have the same name, or there are no rows.
        MissingExtraError: if pyarrow is not installed.
    """
    require("pyarrow", f"{name}, a frame,", "Arrays of numbers need nothing more")
    import pyarrow as pa

    try:
        if isinstance(frame, pa.Table):
            found = frame
        elif hasattr(frame, "to_arrow"):  # polars
            found = frame.to_arrow()
        elif is_frame(frame):
            renamed = frame.rename(columns=str) if hasattr(frame, "rename") else frame
            found = pa.Table.from_pandas(renamed, preserve_index=False)
        else:
            raise ConfigError(f"{name} is {type(frame).__name__}, no frame")
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{name} cannot be read as a table ({error}): give each column values of one kind") from error
    return _checked(found, name)


def is_frame(value: Any) -> bool:
    """Return whether a value is a table with named columns, rather than an array."""
    return hasattr(value, "columns") and hasattr(value, "shape") and len(value.shape) == 2


def _checked(table: pa.Table, what: str) -> pa.Table:
    names = [name.strip() for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{what} has several columns named {', '.join(map(repr, twice))}: rename them")
    if not table.num_rows:
        raise DataError(f"{what} has no rows")
    return table.rename_columns(names).combine_chunks()
