"""CSV files that people have edited."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from skdiec.messages import shown

Row = tuple[int, dict[str, str]]
"""The line that a row ends on, and its values."""


def read_csv(path: str | os.PathLike, wanted: Sequence[str] = ()) -> tuple[tuple[str, ...], list[Row]]:
    r"""Read a CSV file as text, whatever spreadsheet has written it.

    Parameters
    ----------
    path : path
        In UTF-8, with a byte order mark or without; bytes that are no UTF-8 become surrogate escapes, as in names of
        files. Commas, semicolons or tabs are between the values. The first row has the names of the columns.
    wanted : sequence of str, default=()
        Columns that may be there once at most.

    Returns
    -------
    columns : tuple of str
        In lower case, without spaces around.
    rows : list of (int, dict of str to str)
        The line in the file, and the value of each column; empty where the row is too short.

    Raises
    ------
    OSError
        Where the file cannot be read.
    ValueError
        Where it is no such file, has a wanted column twice, or a row with more values than columns.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "names.csv"
    ...     _ = table.write_text("Cluster;Name\n0;cats\n")
    ...     read_csv(table)
    (('cluster', 'name'), [(2, {'cluster': '0', 'name': 'cats'})])
    """
    text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    try:
        if "\0" in text:
            raise csv.Error("it has bytes that are no text")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # those of some languages write others
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        columns = tuple(name.strip().lower() for name in next(reader, ()))
        if twice := [name for name in wanted if columns.count(name) > 1]:
            raise csv.Error(f"it has two columns {shown(twice[0])}")
        rows = []
        for values in reader:
            if values:  # not an empty line
                values += [""] * (len(columns) - len(values))
                if any(value.strip() for value in values[len(columns) :]):
                    raise csv.Error(
                        f"line {reader.line_num} has more values than there are columns; quote those with a "
                        f"{shown(delimiter)} in them"
                    )
                rows.append((reader.line_num, dict(zip(columns, values, strict=False))))
    except csv.Error as error:
        raise ValueError(f"path must be a CSV file; {shown(str(path))} is none: {error}") from error
    return columns, rows
