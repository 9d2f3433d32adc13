"""Images of files: which files, in which order, read by several threads."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec.images.arrays import ArrayImages
from skdiec.images.decoding import (
    ImageKind,
    check_cut_range,
    read_image,
    read_kind,
    readable_suffixes,
    told_of,
    value_extent,
)
from skdiec.images.source import ImageFormat, ImageSource

logger = logging.getLogger(__name__)

UNREAD_SUFFIXES = frozenset(
    {".ai", ".arw", ".avif", ".cr2", ".cr3", ".czi", ".dcm", ".dng", ".emf", ".eps", ".exr", ".heic", ".heif", ".hif"}
    | {".jp2", ".jxl", ".lif", ".nd2", ".nef", ".orf", ".pef", ".raf", ".rw2", ".svg", ".svgz", ".webp", ".wmf", ".xcf"}
)
"""Suffixes of images that are told of where Pillow, as it is installed, does not read them."""

QUIET_SECONDS = 2.0
PROGRESS_SECONDS = 5.0
"""After how long the progress of reading headers is logged, and how often then."""

_FILES_AT_ONCE = 256
_JUNK_FOLDERS = {"__MACOSX", "@eaDir"}  # previews and metadata that archives and network disks add


class FileImages(ImageSource):
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
        super().__init__(format)
        self.paths = list(paths)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Open, convert and scale some images."""
        # Scaled by the same code as `in_memory`, so that both give the same bits.
        return ArrayImages(self._read_pixels(rows), self.format).read(slice(None))

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Decode all files once, where the result takes at most `max_bytes`.

        Returns
        -------
        ImageSource
            Images in memory, of as many bits as the files have, or this source where they would take more.
        """
        if len(self) * math.prod(self.shape) * self.dtype.itemsize > max_bytes:
            return self
        return ArrayImages(self._read_pixels(slice(None)), self.format)

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
    image_shape : tuple of int or None
        ``(height, width)`` or ``(channels, height, width)``; else, and where it is None, as `as_image_source` explains.
    value_range, file_shape, like
        As in `as_image_source`.

    Returns
    -------
    FileImages
    """
    if like is not None:
        if like.is_table:
            raise ValueError("X names image files, but the estimator was fitted on a table")
        image_shape = like.shape
    elif image_shape is None and file_shape is not None:
        image_shape = file_shape()
    if image_shape is not None and len(image_shape) == 3 and image_shape[0] not in (1, 3):
        raise ValueError(f"image_shape: image files are read with 1 or 3 channels, but {image_shape[0]} are wanted")
    first_of_size: dict[tuple[int, int], Path] = {}
    first_of_type: dict[np.dtype, Path] = {}
    pages: dict[Path, int] = {}
    is_grey = True
    with closing(_kinds(paths)) as kinds:
        for path, kind in kinds:
            is_grey = is_grey and kind.channels == 1
            first_of_size.setdefault(kind.size, path)
            first_of_type.setdefault(kind.dtype, path)
            if kind.pages > 1:
                pages[path] = kind.pages
            if kind.is_cut and value_range is not None:
                with told_of(path):
                    check_cut_range(value_range)
            if image_shape is None and len(first_of_size) > 1:
                (one, first), (two, second) = first_of_size.items()
                raise ValueError(
                    "image_shape must be stated for files of several sizes (height, width): "
                    f"{first} has {one}, {second} has {two}"
                )
    if image_shape is None:
        (image_shape,) = first_of_size
    if len(image_shape) == 2:
        image_shape = (1 if is_grey else 3, *image_shape)
    value_range = _checked_range(value_range, first_of_type, like)
    if pages:
        path, count = next(iter(pages.items()))
        warnings.warn(
            f"X: only the first page or frame is read of {len(pages)} files with {sum(pages.values())} pages or frames "
            f"in all, such as {path} with {count}",
            stacklevel=2,
        )
    return FileImages(paths, ImageFormat(image_shape, value_range), np.result_type(*first_of_type))


def is_paths(X: Any) -> bool:
    """Tell whether X is a folder or a sequence of paths, rather than numbers."""
    if isinstance(X, (str, os.PathLike)):
        return True
    if not isinstance(X, (list, tuple)):
        dtype = getattr(X, "dtype", None)
        if getattr(X, "ndim", 0) != 1 or not (getattr(dtype, "kind", "") in ("U", "O", "T") or "str" in str(dtype)):
            return False
    return len(X) > 0 and all(isinstance(item, (str, os.PathLike)) for item in X)


def as_paths(X: Any) -> list[Path] | None:
    """Return the image files that X names, or None where X is not paths."""
    if not is_paths(X):
        return None
    if isinstance(X, (str, os.PathLike)):
        folder = Path(X)
        if os.path.isfile(folder):
            raise ValueError(f"X must be a folder or a list of image files; {folder} is one file: pass [path]")
        if not os.path.isdir(folder):
            raise ValueError(f"X must be a folder of images: there is no folder {folder}")
        return _files_of(folder)
    paths = [Path(item) for item in X]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        problem = f"{missing} is no regular file" if os.path.exists(missing) else f"there is no file {missing}"
        raise ValueError(f"X must name image files: {problem}")
    return paths


def _files_of(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, sorted as strings; warn of what is left out."""
    found: list[str] = []
    left_out: Counter[str] = Counter()
    read: set[str] = set()
    # With the real path of each. Links come last: a folder that has a name of its own is read under that.
    pending, links = [(str(folder), os.path.realpath(folder))], []
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
        warnings.warn(f"X: of the folder {folder}, {len(found)} images are read. Left out: {told}", stacklevel=2)
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


def _kinds(paths: Sequence[Path]) -> Iterator[tuple[Path, ImageKind]]:
    """Yield what the header of each file says, and log the progress where it takes long."""
    readable_suffixes()  # Pillow's formats are to be known before threads ask for them
    told = time.monotonic() + QUIET_SECONDS - PROGRESS_SECONDS
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            block = paths[start : start + _FILES_AT_ONCE]
            yield from zip(block, pool.map(read_kind, block), strict=True)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                logger.info("read the headers of %s of %s files", f"{start + len(block):,}", f"{len(paths):,}")


def _checked_range(
    value_range: tuple[float, float] | None, first_of_type: dict[np.dtype, Path], like: ImageFormat | None
) -> tuple[float, float]:
    """Return the values of black and white, or raise ValueError where they are not known."""
    deep = next(((dtype, path) for dtype, path in first_of_type.items() if dtype != np.uint8), None)
    if deep is None:
        known = value_range or (0.0, 255.0)
        if known[1] > 256:
            path = first_of_type[np.dtype(np.uint8)]
            raise ValueError(
                f"value_range is ({known[0]:g}, {known[1]:g}), but image files such as {path} have 8 bits: 0 to 255"
            )
        if value_range is None and like is not None and like.value_range != known:
            raise ValueError(
                "value_range must be stated: X names image files of 8 bits (0 to 255), but the estimator was fitted "
                f"on values from {like.value_range[0]:g} to {like.value_range[1]:g}"
            )
        return known
    dtype, path = deep
    if np.dtype(np.uint8) in first_of_type:
        raise ValueError(
            f"X must not mix image files of 8 bits, such as {first_of_type[np.dtype(np.uint8)]}, and deeper ones, such "
            f"as {path} ({dtype}): nothing tells how their values compare. Convert one kind to the other"
        )
    if value_range is None:
        low, high = value_extent(path)
        raise ValueError(
            "value_range must be stated for image files of more than 8 bits, such as (0, 4095) for 12 bits or "
            f"(0, 65535) for 16: {path} ({dtype}) has values from {low:g} to {high:g}"
        )
    return value_range
