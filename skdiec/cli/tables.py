"""Tables of images and their clusters: what is written, and what comes back from people's hands."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skdiec.cli.console import shown_path
from skdiec.csv_files import read_csv
from skdiec.messages import shown

if TYPE_CHECKING:
    import pyarrow

    from skdiec._estimator import DiffusionEmbeddedClustering
    from skdiec.cli.reading import Files, Images
    from skdiec.report.labels import Labels

COLUMNS = ("path", "cluster", "name", "probability", "distance", "uncertainty", "problem")

_MAX_DIGITS = 9  # of a cluster's number

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
    with _told_of(path, "names"):
        columns, rows = read_csv(path, ("cluster", "name"))
    if not {"cluster", "name"} <= set(columns):
        raise ValueError(
            f"--names must be a CSV file with the columns cluster and name; got {shown_path(path)} with "
            f"{shown(list(columns))}"
        )
    for line, row in rows:
        # pandas writes whole numbers beside empty ones as 3.0
        text, name = re.sub(r"^0+(?=\d)|\.0*$", "", row["cluster"].strip()), row["name"].strip()
        if not text.isdecimal() or len(text) > _MAX_DIGITS:
            raise ValueError(f"{shown_path(path)}, row {line}: cluster must be a number; got {shown(text)}")
        if name and names.setdefault(int(text), name) != name:
            raise ValueError(
                f"{shown_path(path)}, row {line}: cluster {text} has two names, {shown(names[int(text)])} and "
                f"{shown(name)}"
            )
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


def read_labels(path: Path, files: Files) -> Labels:
    """Read the clusters of images from a file that people have edited.

    Parameters
    ----------
    path : Path
        See `skdiec.report.read_labels`.
    files : Files

    Returns
    -------
    Labels
        Of all files.

    Raises
    ------
    ValueError
        For another file, and one that gives none of the images a cluster.
    """
    from skdiec.report.labels import labels_of_files

    with _told_of(path, "labels"):
        return labels_of_files(path, files.paths, files.root)


@contextmanager
def _told_of(path: Path, option: str) -> Iterator[None]:
    """Say in errors which option they are about."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--{option}: {shown_path(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(re.sub(r"^path must", f"--{option} must", str(error))) from error


def _as_utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _schema() -> pyarrow.Schema:
    import pyarrow

    kinds = {"cluster": pyarrow.int32(), **dict.fromkeys(("probability", "distance", "uncertainty"), pyarrow.float64())}
    return pyarrow.schema([(column, kinds.get(column, pyarrow.string())) for column in COLUMNS])
