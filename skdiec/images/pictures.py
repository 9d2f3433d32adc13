"""Images that Pillow decodes: what files and PIL images in memory have in common, and the latter."""

from __future__ import annotations

import abc
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skdiec.images.arrays import ArrayImages
from skdiec.images.containers import Pictures, value_kind
from skdiec.images.decoding import ImageKind, check_cut_range, decode_image, image_kind, pixel_extent
from skdiec.images.source import ImageFormat, ImageSource
from skdiec.messages import warn


class DecodedImages(ImageSource):
    """Images that are decoded when read.

    Parameters
    ----------
    format : ImageFormat
        With 1 or 3 channels.
    dtype : dtype, default="uint8"
        That holds the values of all images.
    """

    def __init__(self, format: ImageFormat, dtype: np.dtype | str = "uint8") -> None:
        super().__init__(format)
        self.dtype = np.dtype(dtype)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Decode and scale some images."""
        # Scaled by the same code as `in_memory`, so that both give the same bits.
        return ArrayImages(self._read_pixels(rows), self.format).read(slice(None))

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Decode all images once, where the result takes at most `max_bytes`.

        Returns
        -------
        ImageSource
            Images in memory, of as many bits as they had, or this source where they would take more.
        """
        if len(self) * math.prod(self.shape) * self.dtype.itemsize > max_bytes:
            return self
        return ArrayImages(self._read_pixels(slice(None)), self.format)

    @abc.abstractmethod
    def _read_pixels(self, rows: slice | NDArray[np.integer]) -> NDArray:
        """Return the images of some rows, of shape (m, channels, height, width) and of this type."""


class PictureImages(DecodedImages):
    """PIL images, decoded when read; see `as_image_source`.

    Parameters
    ----------
    pictures : Pictures
    format : ImageFormat
        With 1 or 3 channels.
    dtype : dtype, default="uint8"
        That holds the values of all images.
    """

    def __init__(self, pictures: Pictures, format: ImageFormat, dtype: np.dtype | str = "uint8") -> None:
        super().__init__(format, dtype)
        self.pictures = pictures
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_one_at_a_time": None}  # locks stay in their process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_one_at_a_time": threading.Lock()}

    def _read_pixels(self, rows: slice | NDArray[np.integer]) -> NDArray:
        wanted = np.arange(len(self))[rows].tolist()
        images = np.empty((len(wanted), *self.shape), dtype=self.dtype)
        # An image may still have to be loaded from its file, which two threads must not do at a time.
        with self._one_at_a_time:
            for image, row in zip(images, wanted, strict=True):
                picture = self.pictures[row]
                with _told_of(row):
                    image[...] = decode_image(picture, self.shape, self.format.value_range)
        return images

    def _hash_content(self, digest: Any) -> None:
        # That of the same images in memory.
        digest.update(f"{self.dtype.str}{len(self)}".encode())
        for row in range(len(self)):
            digest.update(self._read_pixels(slice(row, row + 1)).data)


def picture_images(
    pictures: Pictures,
    image_shape: tuple[int, ...] | None,
    value_range: tuple[float, float] | None,
    file_shape: Callable[[], tuple[int, int, int]] | None,
    like: ImageFormat | None,
) -> PictureImages:
    """Make a source of PIL images, each of which is looked at once.

    Parameters
    ----------
    pictures : Pictures
    image_shape, value_range, file_shape, like
        As in `common_format`.

    Returns
    -------
    PictureImages
    """

    def kinds() -> Iterator[ImageKind]:
        for row in range(len(pictures)):
            picture = pictures[row]
            with _told_of(row):
                kind = image_kind(picture)
            yield kind

    found = common_format(
        kinds(),
        lambda row: f"item {row} of X",
        lambda row: pixel_extent(pictures[row]),
        image_shape,
        value_range,
        file_shape,
        like,
    )
    return PictureImages(pictures, *found)


def common_format(
    kinds: Iterable[ImageKind],
    name_of: Callable[[int], str],
    extent_of: Callable[[int], tuple[float, float]],
    image_shape: tuple[int, ...] | None,
    value_range: tuple[float, float] | None,
    file_shape: Callable[[], tuple[int, int, int]] | None,
    like: ImageFormat | None,
) -> tuple[ImageFormat, np.dtype]:
    """Return what images that Pillow decodes are read as.

    Parameters
    ----------
    kinds : iterable of ImageKind
        That of each image.
    name_of, extent_of : callable
        Return the name, for messages, and the lowest and highest value of an image by its number.
    image_shape : tuple of int or None
        ``(height, width)`` or ``(channels, height, width)``; else, and where it is None, as `as_image_source` explains.
    value_range, file_shape, like
        As in `as_image_source`.

    Returns
    -------
    format : ImageFormat
    dtype : dtype
        That holds the values of all.
    """
    if like is not None:
        like.check_table(False, "image files or PIL images")
        image_shape = like.shape
    elif image_shape is None and file_shape is not None:
        image_shape = file_shape()
    if image_shape is not None and len(image_shape) == 3 and image_shape[0] not in (1, 3):
        raise ValueError(
            "image_shape must be (height, width), or (channels, height, width) with 1 or 3 channels, for image files; "
            f"got {image_shape[0]} channels"
        )
    first_of_size: dict[tuple[int, int], int] = {}
    first_of_type: dict[np.dtype, int] = {}
    pages: dict[int, int] = {}
    is_grey = True
    for row, kind in enumerate(kinds):
        is_grey = is_grey and kind.channels == 1
        first_of_size.setdefault(kind.size, row)
        first_of_type.setdefault(kind.dtype, row)
        if kind.pages > 1:
            pages[row] = kind.pages
        if kind.is_cut and value_range is not None:
            try:
                check_cut_range(value_range)
            except ValueError as error:
                raise ValueError(f"cannot read {name_of(row)}: {error}") from None
        if image_shape is None and len(first_of_size) > 1:
            (one, first), (two, second) = first_of_size.items()
            raise ValueError(
                "image_shape must be stated for images of several sizes (height, width): "
                f"{name_of(first)} has {one}, {name_of(second)} has {two}"
            )
    if image_shape is None:
        (image_shape,) = first_of_size
    *stated, height, width = image_shape
    (channels,) = stated or [1 if is_grey else 3]
    dtype = np.result_type(*first_of_type)
    black_and_white = _checked_range(value_range, first_of_type, name_of, extent_of, like)
    found = ImageFormat((channels, height, width), black_and_white, kind=value_kind(dtype))
    if like is not None:
        like.check_later(found, f"images of dtype {dtype}", is_stated=value_range is not None)
    if pages:
        row, count = next(iter(pages.items()))
        warn(
            f"X: only the first page or frame is read of {len(pages)} files with {sum(pages.values())} pages or frames "
            f"in all, such as {name_of(row)} with {count}"
        )
    return found, dtype


def _checked_range(
    value_range: tuple[float, float] | None,
    first_of_type: dict[np.dtype, int],
    name_of: Callable[[int], str],
    extent_of: Callable[[int], tuple[float, float]],
    like: ImageFormat | None,
) -> tuple[float, float]:
    """Return the values of black and white, or raise ValueError where they are not known."""
    flat = first_of_type.get(np.dtype(np.uint8))
    deep = next(((dtype, row) for dtype, row in first_of_type.items() if dtype != np.uint8), None)
    if deep is None:
        if value_range is None:
            return like.value_range if like is not None and like.kind == "uint8" else (0.0, 255.0)
        if value_range[1] > 256:
            raise ValueError(
                f"value_range is ({value_range[0]:g}, {value_range[1]:g}), but images such as "
                f"{name_of(first_of_type[np.dtype(np.uint8)])} have 8 bits: 0 to 255"
            )
        return value_range
    dtype, row = deep
    if flat is not None:
        raise ValueError(
            f"X must not mix images of 8 bits, such as {name_of(flat)}, and deeper ones, such as {name_of(row)} "
            f"({dtype}): nothing tells how their values compare. Convert one kind to the other"
        )
    if value_range is None:
        low, high = extent_of(row)
        raise ValueError(
            "value_range must be stated for images of more than 8 bits, such as (0, 4095) for 12 bits or "
            f"(0, 65535) for 16: {name_of(row)} ({dtype}) has values from {low:g} to {high:g}"
        )
    return value_range


@contextmanager
def _told_of(row: int) -> Iterator[None]:
    """Name the image where it cannot be read: Pillow raises errors of many types."""
    try:
        yield
    except Image.DecompressionBombWarning:
        raise
    except Exception as error:
        raise ValueError(f"cannot read item {row} of X: {error}") from error
