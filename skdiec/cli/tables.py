"""Tables of images and their clusters: what is written, and what comes back from people's hands."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skdiec.cli.console import shown_path
from skdiec.messages import shown

if TYPE_CHECKING:
    import pyarrow

    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Images

COLUMNS = ("path", "cluster", "name", "probability", "distance", "uncertainty", "problem")

Table = dict[str, list[Any]]
"""Values of each column, None where there are none."""

_BLOCK_ROWS = 4096


def label_table(
    images: Images, model: DiffusionEmbeddedClustering, embedding: NDArray, names: Mapping[int, str]
) -> Table:
    """Return a row for each file, in their order.

    Parameters
    ----------
    images : Images
    model : DiffusionEmbeddedClustering
        Fitted.
    embedding : ndarray of shape (n, n_components_)
        Of the images.
    names : mapping of int to str
        Of clusters.

    Returns
    -------
    dict of str to list
        With the keys `COLUMNS`.
    """
    size = len(images.files.paths)
    table: Table = {column: [None] * size for column in COLUMNS}
    table["path"] = images.files.names
    for row, problem in images.files.problems.items():
        table["problem"][row] = problem
    values = assignments(model, embedding)
    for place, row in enumerate(images.rows.tolist()):
        cluster = int(values["cluster"][place])
        table["cluster"][row], table["name"][row] = cluster, names.get(cluster)
        for column in ("probability", "distance", "uncertainty"):
            table[column][row] = float(values[column][place])
    return table


def assignments(model: DiffusionEmbeddedClustering, embedding: NDArray) -> dict[str, NDArray]:
    """Return which cluster images are in, and how surely.

    Parameters
    ----------
    model : DiffusionEmbeddedClustering
    embedding : ndarray of shape (n, n_components_)

    Returns
    -------
    dict of str to ndarray of shape (n,)
        ``"cluster"``; ``"probability"``, the soft assignment to it; ``"distance"`` to its centre; and
        ``"uncertainty"``, the probability of the next likely cluster over that of this one.
    """
    found: dict[str, list[NDArray]] = {name: [] for name in ("cluster", "probability", "distance", "uncertainty")}
    for start in range(0, len(embedding), _BLOCK_ROWS):
        block = np.asarray(embedding[start : start + _BLOCK_ROWS], dtype=np.float64)
        soft = model._model.assign(block)
        cluster = soft.argmax(axis=1)
        highest = soft.max(axis=1)
        soft[np.arange(len(soft)), cluster] = 0
        found["cluster"].append(cluster)
        found["probability"].append(highest)
        found["distance"].append(np.linalg.norm(block - model.cluster_centers_[cluster], axis=1))
        found["uncertainty"].append(soft.max(axis=1) / highest)
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def csv_of(table: Table) -> bytes:
    """Return a table as CSV.

    Parameters
    ----------
    table : dict of str to list

    Returns
    -------
    bytes
        In UTF-8; names of files that are not are given as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return text.getvalue().encode("utf-8", "surrogateescape")


def parquet_of(table: Table) -> bytes:
    r"""Return a table as Parquet.

    Parameters
    ----------
    table : dict of str to list
        With the keys `COLUMNS`.

    Returns
    -------
    bytes
        Names of files that are not in UTF-8 have escapes such as ``\xe9``, since Parquet has no other texts.
    """
    import pyarrow
    from pyarrow import parquet

    columns = {**table, "path": [_as_utf8(path) for path in table["path"]]}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=_schema()), file)
    return file.getvalue()


def rows_of(table: Table) -> list[dict[str, Any]]:
    """Return a table as a list of its rows.

    Parameters
    ----------
    table : dict of str to list

    Returns
    -------
    list of dict
    """
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def read_names(path: Path) -> dict[int, str]:
    """Read the names of clusters.

    Parameters
    ----------
    path : Path
        A CSV file with the columns cluster and name.

    Returns
    -------
    dict of int to str

    Raises
    ------
    ValueError
        For another file.
    """
    names: dict[int, str] = {}
    for line, row in enumerate(_read_csv(path, ["cluster", "name"]), start=2):
        text, name = _mark(row["cluster"]), row["name"].strip()
        if not text.isdecimal():
            raise ValueError(f"{shown_path(path)}, row {line}: cluster must be a number; got {shown(text)}")
        if name:
            names[int(text)] = name
    return names


def check_names(names: Mapping[int, str], n_clusters: int, path: Path | None) -> None:
    """Raise ValueError for names of clusters that there are not.

    Parameters
    ----------
    names : mapping of int to str
    n_clusters : int
    path : Path or None
        Whence they are; None where there are none.
    """
    unknown = sorted(cluster for cluster in names if cluster >= n_clusters)
    if unknown:
        raise ValueError(
            f"{shown_path(str(path))} names cluster {unknown[0]}; there are {n_clusters}, from 0 to {n_clusters - 1}"
        )


@dataclass(frozen=True)
class StartingLabels:
    """Clusters that people have given images, as far as they have.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the images, numbered from 0 in the order of what the file calls the clusters; -1 where they are not known.
    n_clusters : int
    names : dict of int to str
        Of clusters, where the file has names.
    n_missing : int
        Images that the file does not name.
    n_others : int
        Images that only the file names.
    """

    labels: NDArray[np.int32]
    n_clusters: int
    names: dict[int, str]
    n_missing: int
    n_others: int


def read_labels(path: Path, names: Sequence[str]) -> StartingLabels:
    """Read the clusters of images from a file that people have edited.

    Parameters
    ----------
    path : Path
        A CSV file with the columns path and cluster, or path and label. An empty cluster, or -1, is one that is not
        known. The column name, where there is one, names clusters.
    names : sequence of str
        Paths of the images, as the file has them.

    Returns
    -------
    StartingLabels

    Raises
    ------
    ValueError
        For another file, and one that gives none of the images a cluster.
    """
    rows = _read_csv(path, ["path"])
    key = next((key for key in ("cluster", "label") if rows and key in rows[0]), None)
    if key is None:
        raise ValueError(f"{shown_path(path)} must have a column cluster or label, and rows")
    given = {os.path.normpath(row["path"]): row for row in rows}
    wanted = [os.path.normpath(name) for name in names]
    marks = {name: _mark(given[name][key]) for name in wanted if name in given}
    called = {mark for mark in marks.values() if mark not in ("", "-1")}
    if not called:
        raise ValueError(f"{shown_path(path)} gives none of the images a cluster")
    are_numbers = all(mark.isdecimal() for mark in called)
    order = sorted(called, key=int) if are_numbers else sorted(called)
    number = {mark: cluster for cluster, mark in enumerate(order)}
    found = {} if are_numbers else dict(enumerate(order))
    for name, mark in marks.items():
        if mark in number and given[name].get("name", "").strip():
            found[number[mark]] = given[name]["name"].strip()
    labels = np.array([number.get(marks.get(name, ""), -1) for name in wanted], dtype=np.int32)
    return StartingLabels(labels, len(order), found, len(set(wanted) - set(given)), len(set(given) - set(wanted)))


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV file that has some columns."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ValueError(f"{shown_path(path)} cannot be read: {error.strerror}") from error
    try:
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of some languages write others
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True, delimiter=delimiter)
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{shown_path(path)} is no CSV file: {error}") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{shown_path(path)} must have a column {' and a column '.join(missing)}")
    return rows


def _mark(text: str) -> str:
    """Return what a cluster is called; pandas writes whole numbers beside empty fields as 3.0."""
    return re.sub(r"^\s*(-?\d+)\.0*\s*$", r"\1", text).strip()


def _as_utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _schema() -> pyarrow.Schema:
    import pyarrow

    kinds = {"cluster": pyarrow.int32(), **dict.fromkeys(("probability", "distance", "uncertainty"), pyarrow.float64())}
    return pyarrow.schema([(column, kinds.get(column, pyarrow.string())) for column in COLUMNS])
