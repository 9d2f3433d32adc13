"""What an image source is: images in [-1, 1] that are read when asked for."""

from __future__ import annotations

import abc
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 64 * 2**20
"""Bytes that are held at a time where all images are gone through."""


@dataclass(frozen=True)
class ImageFormat:
    """What a row of input means; fixed by ``fit`` and applied to all later input.

    Attributes
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of every image.
    value_range : tuple of float
        Input values that map to -1 and 1.
    is_table : bool
        True when two-dimensional input came without an ``image_shape``. Its value range is then
        that of the training rows, and new rows may lie outside it.
    kind : str or None
        What numbers the images hold: ``"uint8"`` (image files of 8 bits too), ``"bool"``, ``"integer"`` or ``"float"``.
        A table's numbers are only told apart where they are uint8 or bool, as pixels are; else it is None.
    """

    shape: tuple[int, int, int]
    value_range: tuple[float, float]
    is_table: bool = False
    kind: str | None = "uint8"

    def check_table(self, is_table: bool, name: str) -> None:
        """Raise ValueError where this is the format of a table and later input is images, or the reverse."""
        if self.is_table != is_table:
            one, other = ("a table", "images") if self.is_table else ("images", "a table")
            raise ValueError(f"X must be {one}, as what the estimator was fitted on; got {other} ({name})")

    def check_later(self, later: ImageFormat, name: str, *, is_stated: bool) -> None:
        """Raise ValueError where later input cannot be read as what this is the format of.

        Parameters
        ----------
        later : ImageFormat
            The format that the input would be read with on its own.
        name : str
            What the input is, for the message.
        is_stated : bool
            Its range is one that the user stated, whatever its kind.
        """
        self.check_table(later.is_table, name)
        if later.shape != self.shape:
            raise ValueError(
                f"X has images of shape {later.shape} (channels, height, width), "
                f"but the estimator was fitted on {self.shape}"
            )
        if later.kind != self.kind and not is_stated:
            low, high = self.value_range
            raise ValueError(
                f"value_range must be stated for this X ({name}): the estimator was fitted on images of another type "
                f"({self.kind or 'other numbers'}), with black at {low:g} and white at {high:g}. "
                "Convert X to that type, or set value_range to what black and white are in X"
            )


class ImageSource(abc.ABC):
    """Images that are read when asked for.

    Parameters
    ----------
    format : ImageFormat
        Shape and value range of the images.
    """

    def __init__(self, format: ImageFormat) -> None:
        self.format = format

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of every image."""
        return self.format.shape

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abc.abstractmethod
    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Read some images.

        Parameters
        ----------
        rows : slice or integer array of shape (m,)
            Which images.

        Returns
        -------
        ndarray of shape (m, channels, height, width), float32
            Values in [-1, 1] (a table's new rows may lie outside).
        """

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Read or decode all images once, where the result takes at most `max_bytes`.

        Returns
        -------
        ImageSource
            Images in memory, or this source where they would take more or are there already.
        """
        return self

    def fingerprint(self) -> str:
        """Return a hash of the images and of their format, as a cache key.

        It is that of the values, wherever they lie; all are read for it. Of image files it is that of name, size and
        time.
        """
        digest = hashlib.sha256(repr(self.format).encode())
        self._hash_content(digest)
        return digest.hexdigest()

    @abc.abstractmethod
    def _hash_content(self, digest: Any) -> None:
        """Add all that tells these images from others of the same format."""


def thumbnails(source: ImageSource, max_side: int = 16) -> NDArray[np.float32]:
    """Reduce images to vectors of a bounded length: pixels, averaged over areas where a side is longer.

    Parameters
    ----------
    source : ImageSource
    max_side : int, default=16
        Pixels of a side at most.

    Returns
    -------
    ndarray of shape (n, channels * height * width), float32
        With height and width of at most `max_side`.

    Examples
    --------
    >>> from skdiec.images import as_image_source
    >>> source = as_image_source(np.array([[[0, 255], [255, 0]]], dtype=np.uint8))
    >>> thumbnails(source, max_side=1)
    array([[0.]], dtype=float32)
    """
    channels, height, width = source.shape
    sides = (min(height, max_side), min(width, max_side))
    result = np.empty((len(source), channels * sides[0] * sides[1]), dtype=np.float32)
    rows = max(1, BLOCK_BYTES // (4 * channels * height * width))
    for start in range(0, len(source), rows):
        images: NDArray[np.floating] = source.read(slice(start, start + rows))
        for axis, (side, length) in enumerate(zip(sides, (height, width), strict=True), start=2):
            bounds = np.arange(side) * length // side
            sizes = np.diff(np.append(bounds, length)).reshape((-1, 1) if axis == 2 else (-1,))
            images = np.add.reduceat(images, bounds, axis=axis) / sizes
        result[start : start + rows] = images.reshape(len(images), -1)
    return result


def distinct_rows(source: ImageSource, rows: NDArray[np.integer]) -> NDArray[np.integer]:
    """Leave out images that are equal to an earlier one of them.

    Parameters
    ----------
    source : ImageSource
    rows : ndarray of shape (n,)
        Indices of images.

    Returns
    -------
    ndarray of shape (n_distinct,)
        Those that are left, in ascending order.
    """
    rows = np.sort(rows)
    flat = np.ascontiguousarray(source.read(rows)).reshape(len(rows), -1)
    first: dict[bytes, int] = {}
    for row, image in zip(rows, flat, strict=True):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), row)
    return np.array(list(first.values()), dtype=rows.dtype)
