"""Image input: whatever users bring becomes one lazy source of images in [-1, 1]."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

FILE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes (lower case) of the files that a folder of images is searched for."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})
_CHANNEL_COUNTS = (1, 2, 3, 4)
_BLOCK_BYTES = 64 * 2**20


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
    """

    shape: tuple[int, int, int]
    value_range: tuple[float, float]
    is_table: bool = False


class ImageSource:
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

    def __len__(self) -> int:
        raise TypeError("ImageSource is abstract: use as_image_source")

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
        raise TypeError("ImageSource is abstract: use as_image_source")

    def fingerprint(self) -> str:
        """Return a hash of the images and of their format, as a cache key."""
        digest = hashlib.sha256(repr(self.format).encode())
        self._hash_content(digest)
        return digest.hexdigest()

    def _hash_content(self, digest: Any) -> None:
        raise TypeError("ImageSource is abstract: use as_image_source")


class ArrayImages(ImageSource):
    """Images of an array in memory or in a memory map; see `as_image_source`."""

    def __init__(self, array: NDArray, format: ImageFormat, *, channels_last: bool = False) -> None:
        super().__init__(format)
        self.array = array
        self._channels_last = channels_last

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Read and scale some images."""
        block = np.asarray(self.array[rows])
        channels, height, width = self.shape
        if self._channels_last:
            block = np.moveaxis(block.reshape(len(block), height, width, channels), -1, 1)
        # There are few values of uint8, each of which is scaled once.
        scaled = self._scale(np.arange(256))[block] if block.dtype == np.uint8 else self._scale(block)
        if self.format.is_table:
            flat = np.full((len(block), channels * height * width), -1.0, dtype=np.float32)
            flat[:, : scaled.shape[1]] = scaled
            return flat.reshape(-1, channels, height, width)
        return np.ascontiguousarray(scaled.reshape(-1, channels, height, width))

    def _scale(self, values: NDArray) -> NDArray[np.float32]:
        low, high = self.format.value_range
        # In float64: float32 would lose the digits of a range that lies far from zero.
        return ((values.astype(np.float64) - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)

    def _hash_content(self, digest: Any) -> None:
        digest.update(f"{self.array.dtype.str}{self.array.shape}{self._channels_last}".encode())
        for block in _blocks(self.array):
            digest.update(np.ascontiguousarray(block).data)


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


def as_image_source(
    X: ArrayLike | str | os.PathLike | Sequence[str | os.PathLike],
    *,
    image_shape: Sequence[int] | None = None,
    channel_axis: int | None = None,
    value_range: Sequence[float] | None = None,
    file_shape: Callable[[], tuple[int, int, int]] | None = None,
    like: ImageFormat | None = None,
) -> ImageSource:
    """Make a source of images of whatever holds them.

    Parameters
    ----------
    X : array-like, path of a folder, or sequence of paths
        - ``(n, height, width)``, ``(n, channels, height, width)`` or ``(n, height, width, channels)``
          numpy array, memory map or torch tensor;
        - ``(n, features)`` rows, one flattened image each, or any table (see `image_shape`);
        - a folder (searched with its subfolders, in sorted order) or a sequence of image files. Files
          of any mode and size are scaled to cover the target size, then cropped at the centre.
    image_shape : sequence of int, default=None
        ``(height, width)``, or three numbers with the channels where `channel_axis` says. Needed for
        flat image rows; without it, a two-dimensional X is a table: each row is laid out on the
        smallest square that holds it, filled with the lowest value.
    channel_axis : {1, -1}, default=None
        Where four-dimensional input (and three numbers of `image_shape`, counted with the axis of the
        images) has its channels. None finds it where only one axis is 1 to 4 long.
    value_range : pair of float, default=None
        The values of black and white. None is 0 to 255 for uint8, 0 to 1 for bool, and for a table
        the range of its values; all else must be stated.
    file_shape : callable, default=None
        Called for the ``(channels, height, width)`` that files are read at when `image_shape` is None. None is
        the shape that all files share.
    like : ImageFormat, default=None
        The format of earlier input that this must agree with.

    Returns
    -------
    ImageSource
        Of at least one image.

    Raises
    ------
    ValueError
        Where X is empty, ambiguous, unreadable, not finite, outside of its value range, or holds no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> source = as_image_source(np.zeros((5, 8, 8), dtype=np.uint8))
    >>> len(source), source.shape, float(source.read(slice(0, 1)).max())
    (5, (1, 8, 8), -1.0)
    """
    if channel_axis not in (None, 1, -1):
        raise ValueError(f"channel_axis must be None, 1 or -1; got {channel_axis!r}")
    value_range = _checked_value_range(value_range)
    shape, shape_is_channels_last = _checked_image_shape(image_shape, channel_axis)
    paths = _as_paths(X)
    if paths is not None:
        if like is not None:
            shape = like.shape
        shape = shape or (file_shape() if file_shape is not None else _common_file_shape(paths))
        return FileImages(paths, shape)
    array = as_array(X)
    source = _as_array_images(array, shape, shape_is_channels_last, channel_axis, value_range, like)
    if like is not None and source.shape != like.shape:
        raise ValueError(
            f"X has images of shape {source.shape} (channels, height, width), "
            f"but the estimator was fitted on {like.shape}"
        )
    return source


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
    >>> source = as_image_source(np.array([[[0, 255], [255, 0]]], dtype=np.uint8))
    >>> thumbnails(source, max_side=1)
    array([[0.]], dtype=float32)
    """
    channels, height, width = source.shape
    sides = (min(height, max_side), min(width, max_side))
    result = np.empty((len(source), channels * sides[0] * sides[1]), dtype=np.float32)
    rows = max(1, _BLOCK_BYTES // (4 * channels * height * width))
    for start in range(0, len(source), rows):
        images = source.read(slice(start, start + rows))
        for axis, (side, length) in enumerate(zip(sides, (height, width), strict=True), start=2):
            bounds = np.arange(side) * length // side
            sizes = np.diff(np.append(bounds, length)).reshape((-1, 1) if axis == 2 else (-1,))
            images = np.add.reduceat(images, bounds, axis=axis) / sizes
        result[start : start + rows] = images.reshape(len(images), -1)
    return result


def _as_array_images(
    array: NDArray,
    shape: tuple[int, int, int] | None,
    shape_is_channels_last: bool,
    channel_axis: int | None,
    value_range: tuple[float, float] | None,
    like: ImageFormat | None,
) -> ArrayImages:
    is_table, channels_last = False, False
    if array.ndim == 2:
        if shape is None and like is not None and not like.is_table:
            # Fitted on images: their flat rows say nothing of their layout.
            raise ValueError("X has 2 dimensions, but the estimator was fitted on images: give X their shape")
        is_table = shape is None
        if shape is None:
            side = max(1, math.isqrt(array.shape[1] - 1) + 1)
            shape = (1, side, side)
        elif array.shape[1] != math.prod(shape):
            raise ValueError(
                f"image_shape {shape} (channels, height, width) needs {math.prod(shape)} features a row, "
                f"but X has {array.shape[1]} features"
            )
        channels_last = shape_is_channels_last
    else:
        found, channels_last = _array_shape(array, shape, channel_axis)
        if shape is not None and found != shape:
            raise ValueError(f"image_shape {shape} (channels, height, width) does not fit X with images of {found}")
        shape = found
    low, high = _min_max(array)
    if value_range is None:
        value_range = _default_value_range(array, is_table, like, low, high)
    # A table's new rows may lie beyond those it was fitted on; an image's pixels may not leave their range.
    tolerance = 1e-6 * (value_range[1] - value_range[0])
    if not is_table and (low < value_range[0] - tolerance or high > value_range[1] + tolerance):
        raise ValueError(
            f"value_range is {_pair(value_range)}, but X (dtype {array.dtype}) has values from {low:g} to {high:g}"
        )
    return ArrayImages(array, ImageFormat(shape, value_range, is_table), channels_last=channels_last)


def _pair(value_range: tuple[float, float]) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"


def _default_value_range(
    array: NDArray, is_table: bool, like: ImageFormat | None, low: float, high: float
) -> tuple[float, float]:
    if is_table:
        if like is not None:
            return like.value_range
        return (low, high) if high > low else (low, low + 1.0)
    if array.dtype == np.uint8:
        return (0.0, 255.0)
    if array.dtype == np.bool_:
        return (0.0, 1.0)
    if like is not None:
        return like.value_range
    raise ValueError(
        f"value_range must be stated for images of dtype {array.dtype}, such as (0, 1) or (-1, 1): "
        f"X has values from {low:g} to {high:g}"
    )


def _checked_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        raise ValueError(f"value_range must be a pair of numbers (low, high); got {value_range!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be two finite numbers, the lower one first; got {value_range!r}")
    return low, high


def _checked_image_shape(
    image_shape: Sequence[int] | None, channel_axis: int | None
) -> tuple[tuple[int, int, int] | None, bool]:
    """Return ``(channels, height, width)``, and whether `image_shape` has the channels last."""
    if image_shape is None:
        return None, False
    message = f"image_shape must be (height, width) or three numbers with the channels; got {image_shape!r}"
    try:
        shape = tuple(image_shape)
    except TypeError:
        raise ValueError(message) from None
    if len(shape) not in (2, 3) or not all(isinstance(side, (int, np.integer)) and side > 0 for side in shape):
        raise ValueError(message)
    if len(shape) == 2:
        return (1, int(shape[0]), int(shape[1])), False
    first, last = shape[0] in _CHANNEL_COUNTS, shape[2] in _CHANNEL_COUNTS
    if channel_axis is None:
        if first == last:
            raise ValueError(
                f"image_shape {shape} does not tell which number is the channels: set channel_axis to 1 or -1"
            )
        channel_axis = 1 if first else -1
    if channel_axis == -1:
        shape = (shape[2], shape[0], shape[1])
    return (int(shape[0]), int(shape[1]), int(shape[2])), channel_axis == -1


def _array_shape(
    array: NDArray, shape: tuple[int, int, int] | None, channel_axis: int | None
) -> tuple[tuple[int, int, int], bool]:
    """Return ``(channels, height, width)`` of an array's images, and whether the channels come last."""
    if array.ndim == 3:
        height, width = array.shape[1:]
        if shape is None and width in (3, 4) and height > 4:
            raise ValueError(
                f"X has shape {array.shape}: one color image, or {len(array)} images of {height} x {width} pixels? "
                "Pass X[None] for the one image, or state image_shape=(height, width)"
            )
        return (1, height, width), False
    if array.ndim != 4:
        raise ValueError(
            f"X must have 2, 3 or 4 dimensions, as (n, features), (n, height, width), (n, channels, height, width) "
            f"or (n, height, width, channels); got shape {array.shape}"
        )
    first = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    last = (int(array.shape[3]), int(array.shape[1]), int(array.shape[2]))
    if channel_axis is None and shape is not None and (first == shape) != (last == shape):
        channel_axis = 1 if first == shape else -1
    if channel_axis is None:
        may_be_first, may_be_last = first[0] in _CHANNEL_COUNTS, last[0] in _CHANNEL_COUNTS
        if may_be_first == may_be_last:
            problem = "both axis 1 and axis -1" if may_be_first else "neither axis 1 nor axis -1"
            raise ValueError(
                f"X has shape {array.shape}: {problem} could be the channels (1 to 4). Set channel_axis to 1 or -1"
            )
        channel_axis = 1 if may_be_first else -1
    return (first, False) if channel_axis == 1 else (last, True)


def as_array(X: Any) -> NDArray:
    """Return what holds numbers (lists, tensors of torch, data frames) as an array; raise ValueError for all else."""
    if hasattr(X, "detach") and hasattr(X, "cpu"):  # a torch tensor; bfloat16 has no numpy type
        X = X.detach().cpu()
        X = X.float().numpy() if "bfloat16" in str(X.dtype) else X.numpy()
    array = np.asarray(X)
    if array.dtype == object:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"X must hold numbers or paths of image files: {error}") from None
    if array.dtype.kind not in "buif":
        raise ValueError(f"X must hold real numbers or be paths of image files; got dtype {array.dtype}")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"X must hold at least one image; got shape {array.shape}")
    return array


def _blocks(array: NDArray) -> Iterator[NDArray]:
    """Yield runs of rows of a bounded size, so that a memory map is never read whole."""
    rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _min_max(array: NDArray) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for block in _blocks(array):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if not (math.isfinite(low) and math.isfinite(high)) or np.isnan(block.min()):
            raise ValueError("X must not contain NaN or infinity")
    return low, high


def is_paths(X: Any) -> bool:
    """Tell whether X is a folder or a sequence of paths, rather than numbers."""
    if isinstance(X, (str, os.PathLike)):
        return True
    if not isinstance(X, (list, tuple)):
        dtype = getattr(X, "dtype", None)
        if getattr(X, "ndim", 0) != 1 or not (getattr(dtype, "kind", "") in ("U", "O", "T") or "str" in str(dtype)):
            return False
    return len(X) > 0 and all(isinstance(item, (str, os.PathLike)) for item in X)


def _as_paths(X: Any) -> list[Path] | None:
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


def _common_file_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
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
