"""Labels that people have corrected, in a report or in a table, as the next fit takes them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skdiec.csv_files import read_csv
from skdiec.images import is_paths, unpack
from skdiec.images.files import as_paths
from skdiec.messages import shown, warn
from skdiec.report.paths import short_names

_KEYS = ("cluster", "label")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?|\d+\.", re.IGNORECASE)
_NONE = ("", "-1")


@dataclass(frozen=True)
class Labels:
    """Clusters that people have given images, as far as they have.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the images, from 0 without gaps; -1 where they are not known.
    names : tuple of str
        Of the clusters; empty where one has none.
    n_missing : int
        Images that the table does not name.
    others : tuple of str
        What the table names beside them.
    """

    labels: NDArray[np.int32]
    names: tuple[str, ...]
    n_missing: int
    others: tuple[str, ...]


def read_labels(
    path: str | os.PathLike, X: str | os.PathLike | Sequence[str | os.PathLike] | None = None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    r"""Read the labels that "Download labels" in a report has saved, for the parameter `init` of another fit.

    Parameters
    ----------
    path : path
        A CSV file with the columns ``path`` and ``cluster``, or ``path`` and ``label``, and perhaps ``name``; others
        are not looked at. Clusters are whole numbers from 0, or names. An empty cluster, or -1, is that of an image
        that was marked as wrong. What `skdiec cluster` writes will do.
    X : folder or sequence of paths, default=None
        The image files of the next fit, in whose order the labels come. A file is found by its path, or by the part of
        it within the folder. Files that the table does not name have no label. None keeps the order of the table, which
        is that of an array of images.

    Returns
    -------
    labels : ndarray of shape (n_samples,), int32
        From 0, without gaps, in the order of the numbers, or of the alphabet; -1 where there is none. ``n_clusters`` of
        the next fit is ``labels.max() + 1``.
    names : tuple of str
        The name of each cluster, as most of its rows have it; empty where it has none.

    Raises
    ------
    ValueError
        For a file that is no such table, in which no image of X is found, or which gives an image two clusters.

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
    if X is None:
        _, _, marks, given = _table(path)
        found = _numbered(path, marks, given)
        return found.labels, found.names
    X = unpack(X)
    if not is_paths(X):
        raise ValueError(f"X must be a folder or a sequence of paths, or None for images of an array; got {shown(X)}")
    found = labels_of_files(path, as_paths(X), X if isinstance(X, (str, os.PathLike)) else None)
    if found.others:
        warn(f"{len(found.others)} images of the table of labels are not in X, such as {shown(found.others[0])}")
    return found.labels, found.names


def labels_of_files(
    path: str | os.PathLike, files: Sequence[str | os.PathLike], folder: str | os.PathLike | None = None
) -> Labels:
    """Read the labels of image files.

    Parameters
    ----------
    path : path
        See `read_labels`.
    files : sequence of paths
    folder : path, default=None
        What the table may have their paths relative to.

    Returns
    -------
    Labels
    """
    places, paths, marks, given = _table(path)
    spellings = [map(str, files), short_names(files)]
    if folder is not None:
        spellings[1:1] = [short_names(files, folder), [os.path.relpath(file, folder) for file in files]]
    rows: list[int | None] = []
    for names in zip(*spellings, strict=True):
        rows.append(next((places[name] for name in map(os.path.normpath, names) if name in places), None))
    used = {row for row in rows if row is not None}
    if not used:
        raise ValueError(f"path must name images of X; none of the {len(files)} files is in {shown(str(path))}")
    others = tuple(paths[row] for row in places.values() if row not in used)
    kept = _numbered(path, ["" if row is None else marks[row] for row in rows], given)
    return Labels(kept.labels, kept.names, sum(row is None for row in rows), others)


def _table(path: str | os.PathLike) -> tuple[dict[str, int], list[str], list[str], dict[str, str]]:
    """Return the first row of each path, the path and the cluster of each row, as texts, and the names of clusters."""
    if not isinstance(path, (str, os.PathLike)) or os.path.isdir(path):
        raise ValueError(f"path must be a CSV file; got {shown(path)}")
    columns, rows = read_csv(path, (*_KEYS, "path", "name"))
    key = next((key for key in _KEYS if key in columns), None)
    if key is None or "path" not in columns:
        raise ValueError(
            f"path must be a CSV file with the columns path and cluster, or path and label; got {shown(str(path))} "
            f"with {shown(list(columns))}"
        )
    paths: list[str] = []
    marks: list[str] = []
    called_so: dict[str, Counter[str]] = defaultdict(Counter)
    for line, row in rows:
        # pandas writes whole numbers beside empty ones as 3.0
        mark = re.sub(r"^\+?0*(\d+)(\.0*)?$", r"\1", row[key].strip())
        mark = "-1" if re.fullmatch(r"-1\.0*", mark) else mark
        is_other_number = key == "cluster" and not mark.isdecimal() and _NUMBER.fullmatch(mark)
        if mark not in _NONE and is_other_number:
            raise _no_cluster(path, line, mark)
        paths.append(row["path"])
        marks.append(mark)
        if mark not in _NONE and row.get("name", "").strip():
            called_so[row["name"].strip()][mark] += 1
    names = _names(marks, called_so)
    called = set(marks) - set(_NONE)
    if key == "cluster" and any(map(str.isdecimal, called)):  # so all should be
        for (line, _), mark in zip(rows, marks, strict=True):
            if mark not in _NONE and not mark.isdecimal():
                raise _no_cluster(path, line, mark)
    if not all(map(str.isdecimal, called)):
        names = {mark: names.get(mark, mark) for mark in called}
    return _places(path, paths, marks), paths, marks, names


def _names(marks: Sequence[str], called_so: Mapping[str, Counter[str]]) -> dict[str, str]:
    """Return the name of each cluster: the one that most of its rows have.

    An image that was moved by its number alone still has the name of the cluster that it was in. So a few rows with the
    name of another cluster count for nothing.
    """
    size = Counter(marks)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, rows in called_so.items():
        home = rows.most_common(1)[0][0]
        for mark, count in rows.items():
            if mark == home or 2 * count > size[mark]:
                found[mark][name] = count
    return {mark: names.most_common(1)[0][0] for mark, names in found.items()}


def _places(path: str | os.PathLike, paths: Sequence[str], marks: Sequence[str]) -> dict[str, int]:
    """Return the first row of each image, which the others must agree with."""
    places: dict[str, int] = {}
    for row, name in enumerate(map(os.path.normpath, paths)):
        first = places.setdefault(name, row)
        if marks[first] != marks[row]:
            raise ValueError(
                f"path must give each image one cluster; {shown(str(path))} has {shown(paths[row])} in "
                f"{shown(marks[first])} and in {shown(marks[row])}"
            )
    return places


def _no_cluster(path: str | os.PathLike, line: int, mark: str) -> ValueError:
    return ValueError(
        f"path must have whole numbers from 0 as clusters, or nothing, or names alone; line {line} of "
        f"{shown(str(path))} has {shown(mark)}"
    )


def _numbered(path: str | os.PathLike, marks: Sequence[str], names: dict[str, str]) -> Labels:
    """Return labels from 0 for the clusters of some rows."""
    called = set(marks) - set(_NONE)
    if not called:
        raise ValueError(f"path must be a table with a cluster for some image; {shown(str(path))} has none")
    # Numbers in their order, of any length: zeros before them are gone.
    order = sorted(called, key=lambda mark: (len(mark), mark)) if all(map(str.isdecimal, called)) else sorted(called)
    number = {mark: cluster for cluster, mark in enumerate(order)}
    labels = np.array([number.get(mark, -1) for mark in marks], dtype=np.int32)
    return Labels(labels, tuple(names.get(mark, "") for mark in order), 0, ())
