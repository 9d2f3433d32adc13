"""PIL images in memory, or made when asked for: read as image files are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skdiec.images.arrays import ArrayImages
from skdiec.images.containers import Pictures
from skdiec.images.files import _GREY_MODES
from skdiec.images.source import ImageFormat, ImageSource


class PictureImages(ImageSource):
    """PIL images, decoded when read; see `as_image_source`."""

    def __init__(self, pictures: Pictures, shape: tuple[int, int, int]) -> None:
        super().__init__(ImageFormat(shape, (0.0, 255.0)))
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Convert and scale some images."""
        return ArrayImages(self._read_bytes(rows), self.format).read(slice(None))

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Decode all images once, where the result takes at most `max_bytes`."""
        if len(self) * math.prod(self.shape) > max_bytes:
            return self
        return ArrayImages(self._read_bytes(slice(None)), self.format)

    def _read_bytes(self, rows: slice | NDArray[np.integer]) -> NDArray[np.uint8]:
        wanted = np.arange(len(self))[rows].tolist()
        images = np.empty((len(wanted), *self.shape), dtype=np.uint8)
        for image, row in zip(images, wanted, strict=True):
            with _named(row):
                image[...] = _decoded(self.pictures[row], self.shape)
        return images

    def _hash_content(self, digest: Any) -> None:
        # That of the same images in memory.
        digest.update(f"{np.dtype(np.uint8).str}{len(self)}".encode())
        for row in range(len(self)):
            digest.update(self._read_bytes(slice(row, row + 1)).data)


def common_shape(pictures: Pictures) -> tuple[int, int, int]:
    """Return the shape that all PIL images share."""
    sizes: dict[tuple[int, int], int] = {}
    grey = True
    for row in range(len(pictures)):
        with _named(row):
            image = pictures[row]
            size = image.size[::-1] if image.getexif().get(0x0112) in (5, 6, 7, 8) else image.size
            sizes.setdefault((size[1], size[0]), row)
            grey = grey and image.mode in _GREY_MODES
        if len(sizes) > 1:
            (one, first), (two, second) = sizes.items()
            raise ValueError(
                "image_shape must be stated for images of several sizes (height, width): "
                f"item {first} of X has {one}, item {second} has {two}"
            )
    ((height, width),) = sizes
    return (1 if grey else 3, height, width)


@contextmanager
def _named(row: int) -> Iterator[None]:
    """Name the image where it cannot be read: Pillow raises errors of many types."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"item {row} of X cannot be read as an image: {error}") from error


def _decoded(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return one PIL image as uint8 ``(channels, height, width)``."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"image files are read with 1 or 3 channels, but {channels} are wanted")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
