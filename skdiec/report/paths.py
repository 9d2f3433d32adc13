"""Names of images: short ones to show and to save, by which files are found again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath


def short_names(files: Sequence[str | os.PathLike], folder: str | os.PathLike | None = None) -> list[str]:
    """Return the names of files as seen from a folder, with slashes: nothing tells where that folder lies.

    Parameters
    ----------
    files : sequence of paths
    folder : path, default=None
        None is the deepest folder that holds all of them.

    Returns
    -------
    list of str
        Files outside of the folder keep their whole path.

    Examples
    --------
    >>> short_names(["photos/cats/1.png", "photos/dogs/1.png"])
    ['cats/1.png', 'dogs/1.png']
    >>> short_names(["photos/cats/1.png"], "photos")
    ['cats/1.png']
    """
    paths = [PurePath(file) for file in files]
    if folder is None:
        try:
            folder = os.path.commonpath([path.parent for path in paths])
        except ValueError:  # absolute and relative ones, or several drives
            folder = ""
    start = Path(folder)
    return [(path.relative_to(start) if path.is_relative_to(start) else path).as_posix() for path in paths]
