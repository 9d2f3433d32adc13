"""Images of files: which files, in which order, read by several threads."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec.images.decoding import ImageKind, read_image, read_kind, readable_suffixes, told_of, value_extent
from skdiec.images.pictures import DecodedImages, common_format
from skdiec.images.source import ImageFormat
from skdiec.messages import shortened, warn

logger = logging.getLogger(__name__)

UNREAD_SUFFIXES = frozenset(
    {
        ".ai",
        ".arw",
        ".avif",
        ".cr2",
        ".cr3",
        ".czi",
        ".dcm",
        ".dng",
        ".emf",
        ".eps",
        ".exr",
        ".fit",
        ".fits",
        ".heic",
        ".heif",
        ".hif",
    }
    | {".jp2", ".jxl", ".lif", ".nd2", ".nef", ".orf", ".pef", ".raf", ".rw2", ".svg", ".svgz", ".webp", ".wmf", ".xcf"}
)
"""Suffixes of images that are told of where Pillow, as it is installed, does not read them."""

QUIET_SECONDS = 2.0
PROGRESS_SECONDS = 5.0
"""After how long the progress of reading headers is logged, and how often then."""

_FILES_AT_ONCE = 256
_SYSTEM_FOLDERS = ("/proc/", "/sys/", "/dev/")  # full of links to all else
_JUNK_FOLDERS = {"__MACOSX", "@eaDir"}  # previews and metadata that archives and network disks add


class FileImages(DecodedImages):
    """Image files, opened when read, by several threads; see `as_image_source`.

    Parameters
    ----------
    paths : sequence of Path
        In the order of the images.
    format : ImageFormat
        With 1 or 3 channels.
    dtype : dtype, default="uint8"
        That holds the values of all files.

    Attributes
    ----------
    paths : list of Path
    """

    def __init__(self, paths: Sequence[Path], format: ImageFormat, dtype: np.dtype | str = "uint8") -> None:
        super().__init__(format, dtype)
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def _read_pixels(self, rows: slice | NDArray[np.integer]) -> NDArray:
        paths = self.paths[rows] if isinstance(rows, slice) else [self.paths[row] for row in rows]
        images = np.empty((len(paths), *self.shape), dtype=self.dtype)

        def read(index: int) -> None:
            images[index] = read_image(paths[index], self.shape, self.format.value_range)

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(read, range(len(paths))):  # raises the error of the first file that has one
                pass
        return images

    def _hash_content(self, digest: Any) -> None:
        for path in self.paths:
            with told_of(path):
                status = path.stat()
            # Names may hold anything but the zero byte.
            digest.update(os.fsencode(os.path.realpath(path)))
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())


def file_images(
    paths: Sequence[Path],
    image_shape: tuple[int, ...] | None,
    value_range: tuple[float, float] | None,
    file_shape: Callable[[], tuple[int, int, int]] | None,
    like: ImageFormat | None,
) -> FileImages:
    """Make a source of files, from their headers.

    Parameters
    ----------
    paths : sequence of Path
    image_shape, value_range, file_shape, like
        As in `skdiec.images.pictures.common_format`.

    Returns
    -------
    FileImages
    """
    with closing(_kinds(paths)) as kinds:
        found = common_format(
            kinds,
            lambda row: str(paths[row]),
            lambda row: value_extent(paths[row]),
            image_shape,
            value_range,
            file_shape,
            like,
        )
    return FileImages(paths, *found)


def base_name(path: str | os.PathLike) -> str:
    r"""Return the name of a file without its folders, whichever system the path is of.

    Parameters
    ----------
    path : path

    Returns
    -------
    str

    Examples
    --------
    >>> base_name("photos/1.png"), base_name(r"C:\photos\1.png")
    ('1.png', '1.png')
    """
    return re.split(r"[/\\]", os.fspath(path))[-1]


def as_paths(X: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Return the image files of a folder, or those that a sequence names."""
    if isinstance(X, (str, os.PathLike)):
        if not str(X):
            raise ValueError("X must be a folder of images; got an empty name")
        folder, name = Path(X), shortened(str(X))
        if os.path.isfile(folder):
            raise ValueError(
                f"X must be a folder or a list of image files; {name} is one file: pass [path] if it is an image"
            )
        if not os.path.isdir(folder):
            raise ValueError(f"X must be a folder of images: there is no folder {name}")
        return _files_of(folder)
    paths = [Path(item) for item in X]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        name = shortened(str(missing))
        problem = f"{name} is no regular file" if os.path.exists(missing) else f"there is no file {name}"
        raise ValueError(f"X must name image files: {problem}")
    return paths


def _files_of(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted as strings; warn of what is left out."""
    found: list[str] = []
    left_out: Counter[str] = Counter()
    read: set[str] = set()
    # With the real path of each. Links come last: a folder that has a name of its own is read under that.
    root = os.path.realpath(folder)
    pending = [(str(folder), root)]
    links: list[str] = []
    while pending or links:
        if pending:
            path, real = pending.pop()
        else:
            links.sort(reverse=True)
            path = links.pop()
            real = os.path.realpath(path)
        if real in read:
            left_out["linked subfolders that are read already"] += 1
            continue
        if root.startswith(os.path.join(real, "")) or real.startswith(_SYSTEM_FOLDERS):
            left_out["linked folders that hold this one, or are the system's"] += 1
            continue
        read.add(real)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    role = _role(entry)
                    if role == "image":
                        found.append(entry.path)
                    elif role == "folder":
                        pending.append((entry.path, os.path.join(real, entry.name)))
                    elif role == "linked folder":
                        links.append(entry.path)
                    elif role == "hidden folder":
                        left_out["hidden images"] += _count_images(entry.path)
                    elif role:
                        left_out[role] += 1
        except OSError as error:
            if path == str(folder):
                raise ValueError(f"X must be a folder of images, but {folder} cannot be read: {error}") from error
            left_out["subfolders that cannot be read"] += 1
    told = "; ".join(f"{what}: {count}" for what, count in sorted(left_out.items()) if count)
    if not found:
        raise ValueError(
            f"X must be a folder with images, but {folder} has no file with a suffix such as .jpg, .png or .tif"
            + (f" (left out: {told})" if told else "")
        )
    if told:
        warn(f"X: of the folder {folder}, {len(found)} images are read. Left out: {told}")
    return [Path(path) for path in sorted(found)]


def _role(entry: os.DirEntry) -> str:
    """Return what a folder's entry is to us: "image", a folder, a reason to leave out what may be images, or ""."""
    is_image = _suffix(entry.name) in readable_suffixes()
    is_hidden = entry.name.startswith(".") or entry.name in _JUNK_FOLDERS
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_hidden:
        return "hidden folder" if is_folder else "hidden images" if is_image and is_file else ""
    if is_folder:
        return "linked folder" if entry.is_symlink() else "folder"
    if is_file:
        is_unread = _suffix(entry.name) in UNREAD_SUFFIXES
        return "image" if is_image else f"{_suffix(entry.name)} files, which are not read" if is_unread else ""
    if entry.is_symlink():
        return "broken links"
    return "images that are no regular files" if is_image else ""


def _count_images(folder: str) -> int:
    """Return how many names directly in a folder are those of images."""
    try:
        return sum(_suffix(name) in readable_suffixes() for name in os.listdir(folder))
    except OSError:
        return 0


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kinds(paths: Sequence[Path]) -> Generator[ImageKind]:
    """Yield what the header of each file says, and log the progress where it takes long."""
    readable_suffixes()  # Pillow's formats are to be known before threads ask for them
    told = time.monotonic() + QUIET_SECONDS - PROGRESS_SECONDS
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            block = paths[start : start + _FILES_AT_ONCE]
            yield from pool.map(read_kind, block)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                logger.info("read the headers of %s of %s files", f"{start + len(block):,}", f"{len(paths):,}")
