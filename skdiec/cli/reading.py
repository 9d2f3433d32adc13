"""The images of a folder, of which some may be broken, read once into memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skdiec.cli.console import Console, shown_path
from skdiec.images import checked_image_shape
from skdiec.images.decoding import ImageKind, value_extent
from skdiec.images.files import as_paths
from skdiec.images.headers import decode_files, of_other_depth, read_headers, suggested_size
from skdiec.images.pictures import common_format
from skdiec.images.source import ImageFormat
from skdiec.messages import shown

MAX_BYTES = 2**30
"""Images that take more are in a file that is mapped into memory."""

_TRIED = 8
"""Files that are decoded first, to see whether their values fit at all."""


@dataclass(frozen=True)
class Files:
    """Image files, of which only the headers have been read.

    Attributes
    ----------
    root : Path
        The folder that their names are relative to.
    paths : sequence of Path
        All of them, in order.
    kinds : dict of int to ImageKind
        Those that can be read, by their place in `paths`.
    problems : dict of int to str
        Why the others cannot be.
    """

    root: Path
    paths: Sequence[Path]
    kinds: dict[int, ImageKind]
    problems: dict[int, str]

    @property
    def are_deep(self) -> bool:
        """Whether most have more than 8 bits, which are those that are read."""
        others = of_other_depth(self.kinds)
        return any(kind.dtype != np.uint8 for row, kind in self.kinds.items() if row not in others)

    @functools.cached_property
    def names(self) -> list[str]:
        """Paths relative to the root."""
        return [os.path.relpath(path, self.root) for path in self.paths]


@dataclass(frozen=True)
class Images:
    """Images that have been read.

    Attributes
    ----------
    files : Files
        All of them; `problems` has what went wrong with the pixels too.
    rows : ndarray of shape (n,)
        Places in ``files.paths`` of those that were read.
    pixels : ndarray of shape (n, height, width) or (n, channels, height, width)
        In files' own values.
    """

    files: Files
    rows: NDArray[np.integer]
    pixels: NDArray

    @property
    def paths(self) -> list[Path]:
        """The files of `pixels`."""
        return [self.files.paths[row] for row in self.rows]


def find_files(folder: Path, console: Console, *, leave_out: Path | None = None) -> Files:
    """List the image files of a folder, or those in a list, and read their headers.

    Parameters
    ----------
    folder : Path
        Or a text file with a path in each line, relative to its own folder.
    console : Console
    leave_out : Path, default=None
        Folder whose files are not looked at: that of the results, where it is inside of `folder`.

    Returns
    -------
    Files

    Raises
    ------
    ValueError
        Where there is nothing to read.
    """
    console.say(f"looking for images in {shown_path(folder)}")
    if os.path.isfile(folder):
        root, paths = folder.parent, _listed(folder)
    elif os.path.isdir(folder):
        try:
            root, paths = folder, as_paths(folder)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("X must be a folder with images, but ")) from None
    else:
        raise ValueError(f"there is no folder {shown_path(folder)}")
    if leave_out is not None:
        results = os.path.realpath(leave_out)
        inside = functools.cache(lambda parent: f"{os.path.realpath(parent)}/".startswith(f"{results}/"))
        paths, found = [path for path in paths if not inside(path.parent)], len(paths)
        if found and not paths:
            raise ValueError(f"--out must be another folder than that of the images; got {shown_path(leave_out)}")
    with console.bar("reading headers") as report:
        kinds, problems = read_headers(paths, report)
    if not kinds and os.path.isfile(folder) and not any(map(os.path.exists, paths)):
        raise ValueError(
            f"{shown_path(folder)} is neither a folder nor a text file of paths: no line of it is the path of a file, "
            f"such as {shown(shown_path(paths[0]))}"
        )
    if not kinds:
        reason = f"; {shown_path(paths[0])}: {problems[0]}" if paths else ""
        raise ValueError(f"{shown_path(folder)} has no image that can be read{reason}")
    return Files(root, paths, kinds, problems)


def read_images(
    files: Files,
    console: Console,
    *,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    map_file: Path | None = None,
    scaled: bool = True,
    check: Callable[[tuple[int, int, int]], object] = lambda shape: None,
) -> Images:
    """Decode image files, and put those that cannot be read on a list.

    Parameters
    ----------
    files : Files
    console : Console
    image_shape : sequence of int, default=None
        ``(height, width)`` or ``(channels, height, width)``; None is a size that suits the files, or their own.
    value_range : tuple of float, default=None
        See `DiffusionEmbeddedClustering`.
    map_file : Path, default=None
        Where images go that take more than a gigabyte. They are held in memory if it is None.
    scaled : bool, default=True
        Whether files that have no size stated may be scaled. If not, all must have one size.
    check : callable
        Called with the shape of the images before they are decoded, to raise an error where it does not do.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        Where files of over 8 bits come without a `value_range`, where values lie outside of it, and where none is left.
    """
    if image_shape is None and scaled:
        image_shape = suggested_size(files.kinds.values())
        console.say(f"images are read at {image_shape[0]} x {image_shape[1]} pixels; --image-shape changes that")
    if image_shape is not None:
        checked_image_shape(image_shape, None if len(image_shape) == 2 else 1)
    problems = files.problems | of_other_depth(files.kinds)
    kinds = {row: kind for row, kind in files.kinds.items() if row not in problems}
    rows = list(kinds)
    paths = [files.paths[row] for row in rows]
    try:
        as_read, dtype = common_format(
            kinds.values(),
            lambda row: shown_path(paths[row]),
            lambda row: value_extent(paths[row]),
            None if image_shape is None else tuple(image_shape),
            value_range,
            None,
            None,
        )
    except ValueError as error:
        told = str(error).replace("value_range must be stated", "value_range must be given")
        raise ValueError(told.replace("value_range", "--value-range", 1)) from error
    if value_range is not None:
        _try_some(paths, as_read, dtype)
    check(as_read.shape)
    pixels = _room((len(rows), *as_read.shape), dtype, map_file)
    with console.bar("reading images") as report:
        broken = decode_files(paths, as_read, pixels, report)
    problems |= {rows[place]: problem for place, problem in broken.items()}
    kept = [place for place in range(len(rows)) if place not in broken]
    for new, place in enumerate(kept):
        if new != place:
            pixels[new] = pixels[place]
    pixels = pixels[: len(kept)]
    _tell_of(files, problems, console)
    if not kept:
        row = min(problems)
        raise ValueError(
            f"{shown_path(files.root)} has no image that can be read; {shown_path(files.paths[row])}: {problems[row]}"
        )
    found = Files(files.root, files.paths, files.kinds, problems)
    return Images(found, np.array([rows[place] for place in kept]), pixels[:, 0] if as_read.shape[0] == 1 else pixels)


def _listed(path: Path) -> list[Path]:
    """Return the paths in a text file."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ValueError(f"{shown_path(path)} cannot be read: {error.strerror}") from error
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if "\0" in text or not lines:
        raise ValueError(f"{shown_path(path)} is neither a folder nor a text file of paths")
    return [path.parent / line for line in lines]


def _try_some(paths: Sequence[Path], as_read: ImageFormat, dtype: np.dtype) -> None:
    """Raise ValueError where none of some files can be read, since values are outside of the range."""
    some = paths[:: max(1, len(paths) // _TRIED)]
    problems = decode_files(some, as_read, np.empty((len(some), *as_read.shape), dtype))
    outside = [row for row, problem in problems.items() if problem.startswith("value_range is ")]
    if outside and len(problems) == len(some):
        row = outside[0]
        told = problems[row].replace("but it has", f"but {shown_path(some[row])} has")
        raise ValueError(f"--{told.replace('_', '-', 1)}")


def _room(shape: tuple[int, ...], dtype: np.dtype, map_file: Path | None) -> NDArray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if map_file is None or size <= MAX_BYTES:
        return np.empty(shape, dtype)
    map_file.parent.mkdir(parents=True, exist_ok=True)
    room = np.lib.format.open_memmap(map_file, mode="w+", dtype=dtype, shape=shape)
    with suppress(OSError):  # Windows removes no file that is in use
        map_file.unlink()  # it goes when this process ends, however that is
    return room


def _tell_of(files: Files, problems: dict[int, str], console: Console) -> None:
    if not problems:
        return
    row = min(problems)
    count = "1 file cannot be read" if len(problems) == 1 else f"{len(problems):,} files cannot be read"
    console.warn(f"{count} and left out, such as {shown_path(files.paths[row])}: {problems[row]}")
