"""Thumbnails of the images, in grids on a few large pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from skdiec.images import FileImages, ImageFormat, ImageSource
from skdiec.images.decoding import read_kind
from skdiec.images.source import BLOCK_BYTES

MAX_SIDE = 128
"""Pixels of a thumbnail's side, if it is square; others have as many pixels."""

PIXELS = 56_000_000
"""Pixels of all thumbnails together, at most: those of 70,000 images of 28 x 28. This keeps files below some 25 MB."""

MIN_PIXELS = 16 * 16
"""Of a thumbnail: below, nothing can be recognised. Of more images than `PIXELS` suffices for, some have none."""

SKETCH_SIDE = 16
"""Pixels of a side of `sketches`."""

_SHEET_SIDE = 2048  # phones decode pictures of this size
_MOST_OF_SIDE = 1024
_PROBES = 64  # files whose size is looked at


@dataclass
class Sheets:
    """Thumbnails of one size, row by row in grids.

    Attributes
    ----------
    height, width : int
        Of a thumbnail.
    rows : ndarray of shape (m,) or None
        Which images, in the order of the thumbnails; None is all.
    pictures : list of bytes
        Encoded, each with `per_sheet` thumbnails, the last one with fewer.
    """

    height: int
    width: int
    rows: NDArray[np.integer] | None = None
    pictures: list[bytes] = field(default_factory=list)
    _waiting: list[Image.Image] = field(default_factory=list, repr=False)

    @property
    def columns(self) -> int:
        """Thumbnails side by side."""
        return max(1, _SHEET_SIDE // self.width)

    @property
    def per_sheet(self) -> int:
        """Thumbnails of a full sheet."""
        return self.columns * max(1, _SHEET_SIDE // self.height)

    def add(self, image: Image.Image) -> None:
        """Append the thumbnail of an image."""
        size = (self.width, self.height)
        self._waiting.append(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
        if len(self._waiting) == self.per_sheet:
            self.close()

    def close(self) -> None:
        """Encode what was added since the last full sheet."""
        if not self._waiting:
            return
        columns = min(self.columns, len(self._waiting))
        lines = math.ceil(len(self._waiting) / columns)
        sheet = Image.new("RGB", (columns * self.width, lines * self.height))
        for place, image in enumerate(self._waiting):
            line, column = divmod(place, columns)
            sheet.paste(image, (column * self.width, line * self.height))
        self._waiting.clear()
        buffer = io.BytesIO()
        # JPEG only where Pillow was built without WebP, which is a third smaller.
        settings = {"format": "webp", "method": 2} if features.check("webp") else {"format": "jpeg"}
        sheet.save(buffer, quality=75, **settings)
        self.pictures.append(buffer.getvalue())


def thumbnail_source(source: ImageSource, max_pixels: float) -> tuple[ImageSource, tuple[int, int]]:
    """Return where thumbnails are read from, and their height and width: those of the images, or less.

    Image files are read at the size of the thumbnails, which may be more than `fit` has seen.

    Parameters
    ----------
    source : ImageSource
    max_pixels : float
        Of a thumbnail.

    Returns
    -------
    source : ImageSource
    size : tuple of int
    """
    channels, height, width = source.shape
    largest = 1.0
    if isinstance(source, FileImages):
        probes = source.paths[:: math.ceil(len(source) / _PROBES)]
        largest = max(1.0, np.median([_enlargement(read_kind(path).size, (height, width)) for path in probes]))
    scale = min(largest, math.sqrt(max_pixels / (height * width)), _MOST_OF_SIDE / max(height, width))
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    if isinstance(source, FileImages):
        source = FileImages(
            source.paths,
            ImageFormat((channels, *size), source.format.value_range, kind=source.format.kind),
            source.dtype,
        )
    return source, size


def images_of(source: ImageSource, rows: NDArray[np.integer] | None = None) -> Iterator[Image.Image]:
    """Yield images as grey or RGB pictures.

    Parameters
    ----------
    source : ImageSource
    rows : ndarray of shape (m,), default=None
        Which of them, in this order; None is all.

    Returns
    -------
    iterator of Image
    """
    rows = np.arange(len(source)) if rows is None else rows
    step = max(1, BLOCK_BYTES // (4 * math.prod(source.shape)))
    for start in range(0, len(rows), step):
        block = source.read(rows[start : start + step])
        pixels = np.rint((block + 1) * 127.5).clip(0, 255).astype(np.uint8)
        if pixels.shape[1] >= 3:
            yield from map(Image.fromarray, np.ascontiguousarray(np.moveaxis(pixels[:, :3], 1, -1)))
        else:
            yield from map(Image.fromarray, pixels[:, 0])


def sketch(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as a vector of 256 grey values, to compare it by.

    Parameters
    ----------
    image : Image

    Returns
    -------
    ndarray of shape (256,), uint8
    """
    small = image.convert("L").resize((SKETCH_SIDE, SKETCH_SIDE), Image.Resampling.BOX)
    return np.asarray(small).ravel()


def _enlargement(size: Sequence[int], wanted: tuple[int, int]) -> float:
    """Return by how much an image can be larger than wanted without being enlarged, once it covers it."""
    return min(size[0] / wanted[0], size[1] / wanted[1])
