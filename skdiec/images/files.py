"""Images of files: which files, in which order, and how each is decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skdiec.images.arrays import ArrayImages
from skdiec.images.source import ImageFormat, ImageSource

FILE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes (lower case) of the files that a folder of images is searched for."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})


class FileImages(ImageSource):
    """Image files, opened when read; see `as_image_source`."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]) -> None:
        super().__init__(ImageFormat(shape, (0.0, 255.0)))
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Open, convert and scale some images."""
        # Scaled by the same code as `in_memory`, so that both give the same bits.
        return ArrayImages(self._read_bytes(rows), self.format).read(slice(None))

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Decode all files once, where the result takes at most `max_bytes`.

        Returns
        -------
        ImageSource
            uint8 images in memory, or this source where they would take more.
        """
        if len(self) * math.prod(self.shape) > max_bytes:
            return self
        return ArrayImages(self._read_bytes(slice(None)), self.format)

    def _read_bytes(self, rows: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        paths = self.paths[rows] if isinstance(rows, slice) else [self.paths[row] for row in rows]
        images = np.empty((len(paths), *self.shape), dtype=np.uint8)
        for image, path in zip(images, paths, strict=True):
            image[...] = _read_file(path, self.shape)
        return images

    def _hash_content(self, digest: Any) -> None:
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n".encode())


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
        if folder.is_file():
            raise ValueError(f"X must be a folder or a list of image files; {folder} is one file: pass [path]")
        if not folder.is_dir():
            raise ValueError(f"X must be a folder of images: there is no folder {folder}")
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FILE_SUFFIXES and path.is_file())
        if not paths:
            raise ValueError(
                f"X must be a folder with images, but {folder} has no {', '.join(sorted(FILE_SUFFIXES))} file"
            )
        return paths
    paths = [Path(item) for item in X]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise ValueError(f"X must name image files: there is no file {missing}")
    return paths


def common_file_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """Return the shape all files share, from their headers."""
    sizes: dict[tuple[int, int], Path] = {}
    grey = True
    for path in paths:
        with _opened(path) as image:
            # An orientation tag may swap the sides; 5 to 8 are the turned ones.
            width, height = image.size[::-1] if image.getexif().get(0x0112) in (5, 6, 7, 8) else image.size
            sizes.setdefault((height, width), path)
            grey = grey and image.mode in _GREY_MODES
        if len(sizes) > 1:
            (one, first), (two, second) = sizes.items()
            raise ValueError(
                "image_shape must be stated for files of several sizes (height, width): "
                f"{first} has {one}, {second} has {two}"
            )
    ((height, width),) = sizes
    return (1 if grey else 3, height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file. What fails inside names the file: on damaged files, Pillow raises errors of many types."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:
        raise ValueError(f"cannot read the image file {path}: {error}") from error


def _read_file(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return one file as uint8 ``(channels, height, width)``."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"image files are read with 1 or 3 channels, but {channels} are wanted")
    with _opened(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range")
        if image.mode.startswith("I"):
            # 16-bit grey: Pillow's own conversion to 8 bits would clip, not scale.
            grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
            image = Image.fromarray((grey // 257).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB, Pillow warns of what it drops
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
