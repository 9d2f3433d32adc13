"""Labels that were corrected in a report, as the next fit takes them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skdiec.images import is_paths, unpack
from skdiec.images.files import as_paths
from skdiec.messages import shown, warn
from skdiec.report.paths import short_names

_COLUMNS = ("path", "cluster")


def read_labels(
    path: str | os.PathLike, X: str | os.PathLike | Sequence[str | os.PathLike] | None = None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    r"""Read the labels that "Download labels" in a report has saved, for the parameter `init` of another fit.

    Parameters
    ----------
    path : path
        A CSV file with the columns ``path`` and ``cluster``, and perhaps ``name``; others are not looked at. An empty
        cluster, or -1, is that of an image that was marked as wrong.
    X : folder or sequence of paths, default=None
        The image files of the next fit, in whose order the labels come. A file is found by its path, or by the part of
        it within the folder. Files that the table does not name have no label. None keeps the order of the table, which
        is that of an array of images.

    Returns
    -------
    labels : ndarray of shape (n_samples,), int32
        From 0, without gaps; -1 where there is none. ``n_clusters`` of the next fit is ``labels.max() + 1``.
    names : tuple of str
        The name of each cluster; empty where it has none.

    Raises
    ------
    ValueError
        For a file that is no such table, or in which no image of X is found.

    Warns
    -----
    UserWarning
        Where the table names images that X has not.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "labels.csv"
    ...     _ = table.write_text("path,cluster,name\na.png,0,cats\nb.png,,\nc.png,1,dogs\n")
    ...     read_labels(table)
    (array([ 0, -1,  1], dtype=int32), ('cats', 'dogs'))
    """
    names_of_rows, clusters, cluster_names = _table(path)
    if X is not None:
        clusters = _in_order(path, names_of_rows, clusters, X)
    found, codes = np.unique(clusters[clusters >= 0], return_inverse=True)
    if not len(found):
        raise ValueError(f"path must be a table with a cluster for some image; {shown(str(path))} has none")
    labels = np.full(len(clusters), -1, dtype=np.int32)
    labels[clusters >= 0] = codes
    return labels, tuple(cluster_names.get(int(cluster), "") for cluster in found)


def _table(path: str | os.PathLike) -> tuple[list[str], NDArray[np.int64], dict[int, str]]:
    """Return the name and the cluster of each row, and the names of clusters."""
    rows: list[str] = []
    clusters: list[int] = []
    names: dict[int, str] = {}
    # With a byte order mark, as spreadsheets write it, or without.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        delimiter = max(",;\t", key=file.readline().count)  # those of some languages write others
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        if not set(_COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(
                f"path must be a CSV file with the columns path and cluster; got {shown(str(path))} with "
                f"{shown(reader.fieldnames)}"
            )
        for row in reader:
            text = (row["cluster"] or "").strip()
            match = re.fullmatch(r"(\d+|-1)(\.0*)?|", text)  # pandas writes whole numbers beside empty ones as 3.0
            if match is None:
                raise ValueError(
                    f"path must have whole numbers from 0 as clusters, or nothing; line {reader.line_num} of "
                    f"{shown(str(path))} has {shown(text)}"
                )
            rows.append(row["path"] or "")
            cluster = int(match[1] or -1)
            clusters.append(cluster)
            if cluster >= 0 and row.get("name"):
                names.setdefault(cluster, row["name"])
    return rows, np.array(clusters, dtype=np.int64), names


def _in_order(
    path: str | os.PathLike,
    rows: Sequence[str],
    clusters: NDArray[np.int64],
    X: str | os.PathLike | Sequence[str | os.PathLike],
) -> NDArray[np.int64]:
    """Return the clusters of the files of X, -1 for those that no row names."""
    X = unpack(X)
    if not is_paths(X):
        raise ValueError(f"X must be a folder or a sequence of paths, or None for images of an array; got {shown(X)}")
    files = as_paths(X)
    folder = X if isinstance(X, (str, os.PathLike)) else None
    places = dict(zip(rows, clusters.tolist(), strict=True))
    found = np.full(len(files), -1, dtype=np.int64)
    used = set()
    spellings = [map(str, files), short_names(files), *([] if folder is None else [short_names(files, folder)])]
    for row, names in enumerate(zip(*spellings, strict=True)):
        name = next((name for name in names if name in places), None)
        if name is not None:
            found[row] = places[name]
            used.add(name)
    if not used:
        raise ValueError(f"path must name images of X; none of the {len(files)} files is in {shown(str(path))}")
    if len(used) < len(places):
        missing = next(name for name in places if name not in used)
        warn(f"{len(places) - len(used)} images of the table of labels are not in X, such as {shown(missing)}")
    return found
