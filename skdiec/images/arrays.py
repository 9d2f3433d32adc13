"""Images of arrays: which axis is which, and what their values mean."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdiec.images.containers import LazyArray, value_kind
from skdiec.images.source import BLOCK_BYTES, ImageFormat, ImageSource

CHANNEL_COUNTS = (1, 2, 3, 4)
"""How many channels an image may have."""

_RANGES = {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}
"""Black and white in images of types that tell."""

FAR = 1e4
"""How many times the range of a table its new rows may lie beyond it: further off, networks give no numbers."""


class ArrayImages(ImageSource):
    """Images of an array: in memory, in a memory map, or read when asked for; see `as_image_source`."""

    def __init__(self, array: NDArray | LazyArray, format: ImageFormat, *, channels_last: bool = False) -> None:
        super().__init__(format)
        self.array = array
        self._channels_last = channels_last

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Read and scale some images."""
        block = self._with_channels_first(np.asarray(self.array[rows]))
        channels, height, width = self.shape
        # There are few values of uint8, each of which is scaled once.
        scaled = self._scale(np.arange(256))[block] if block.dtype == np.uint8 else self._scale(block)
        if self.format.is_table:
            flat = np.full((len(block), channels * height * width), -1.0, dtype=np.float32)
            flat[:, : scaled.shape[1]] = scaled
            return flat.reshape(-1, channels, height, width)
        return np.ascontiguousarray(scaled.reshape(-1, channels, height, width))

    def in_memory(self, max_bytes: int = 2**30) -> ImageSource:
        """Read once what is read when asked for, where it takes at most `max_bytes`."""
        if not isinstance(self.array, LazyArray) or self.array.nbytes > max_bytes:
            return self
        return ArrayImages(self.array[:], self.format, channels_last=self._channels_last)

    def _with_channels_first(self, block: NDArray) -> NDArray:
        if not self._channels_last:
            return block
        channels, height, width = self.shape
        return np.moveaxis(block.reshape(len(block), height, width, channels), -1, 1)

    def _scale(self, values: NDArray) -> NDArray[np.float32]:
        low, high = self.format.value_range
        # In float64: float32 would lose the digits of a range that lies far from zero.
        return ((values.astype(np.float64) - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)

    def _hash_content(self, digest: Any) -> None:
        dtype = self.array.dtype.newbyteorder("=")  # numbers are the same in whatever order their bytes lie
        digest.update(f"{dtype.str}{len(self)}".encode())
        for block in _blocks(self.array):
            digest.update(np.ascontiguousarray(self._with_channels_first(block), dtype=dtype).data)


def as_array(X: Any) -> NDArray | LazyArray:
    """Return what holds numbers, once it is unpacked, as an array; raise ValueError for all else."""
    array = X if isinstance(X, LazyArray) else np.asarray(X)
    if array.dtype == object:
        try:
            array = np.asarray(array[:]).astype(np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"X must hold numbers or paths of image files: {error}") from None
    if array.dtype.kind not in "buif":
        raise ValueError(f"X must hold real numbers or be paths of image files; got dtype {array.dtype}")
    if math.prod(array.shape) == 0:
        raise ValueError(f"X must hold at least one image; got shape {array.shape}")
    return array


def refuse_one_image(X: Any, shape: tuple[int, int, int]) -> None:
    """Raise ValueError where X has the shape of one image, rather than of several."""
    channels, height, width = shape
    found = tuple(getattr(X, "shape", ()))
    is_batch = found[1:] in ((height, width), (math.prod(shape),)) and (channels == 1 or len(found) == 2)
    if not is_batch and found in (shape, (height, width, channels), (height, width) if channels == 1 else shape):
        raise ValueError(f"X has the shape of one image, {found}: pass X[None]")


def as_array_images(
    array: NDArray | LazyArray,
    shape: tuple[int, int, int] | None,
    shape_is_channels_last: bool,
    channel_axis: int | None,
    value_range: tuple[float, float] | None,
    like: ImageFormat | None,
) -> ArrayImages:
    """Make a source of an array; `as_image_source` explains what each argument means."""
    expected = shape if like is None or like.is_table else like.shape
    if expected is not None:
        refuse_one_image(array, expected)
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
    kind = None if is_table else value_kind(array.dtype)
    low, high = _bounds(array, kind, value_range)
    is_stated = value_range is not None
    value_range = value_range or _default_value_range(array.dtype, is_table, kind, like, low, high)
    if is_table and value_kind(array.dtype) in _RANGES:  # pixels, whose scale other numbers do not have
        kind = value_kind(array.dtype)
    found_format = ImageFormat(shape, value_range, is_table, kind)
    if like is not None:
        like.check_later(found_format, f"dtype {array.dtype}, values from {low:g} to {high:g}", is_stated=is_stated)
    # A table's new rows may lie beyond those it was fitted on; an image's pixels may not leave their range.
    tolerance = FAR if is_table else 1e-6
    black, width = value_range[0], value_range[1] - value_range[0]
    if (low - black) / width < -tolerance or (high - black) / width > 1 + tolerance:
        raise ValueError(
            f"value_range is {_pair(value_range)}, but X (dtype {array.dtype}) has values from {low:g} to {high:g}"
        )
    return ArrayImages(array, found_format, channels_last=channels_last)


def _pair(value_range: tuple[float, float]) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"


def _default_value_range(
    dtype: np.dtype, is_table: bool, kind: str | None, like: ImageFormat | None, low: float, high: float
) -> tuple[float, float]:
    if like is not None:
        return like.value_range
    if is_table:
        return _table_value_range(low, high)
    if kind in _RANGES:
        return _RANGES[kind]
    raise ValueError(
        f"value_range must be stated for images of dtype {dtype}, such as (0, 1) or (-1, 1): "
        f"X has values from {low:g} to {high:g}"
    )


def _table_value_range(low: float, high: float) -> tuple[float, float]:
    width = high - low
    if not math.isfinite(width):
        raise ValueError(
            f"value_range must be stated, or X scaled: from {low:g} to {high:g} is further than float64 can tell"
        )
    if width == 0 or not math.isfinite(2 / width):
        # All values are the same: a range of any width that is not lost beside them.
        width = max(1.0, abs(low) * 2.0**-40)
        low = min(low, sys.float_info.max - width)
    return low, low + width


def _array_shape(
    array: NDArray | LazyArray, shape: tuple[int, int, int] | None, channel_axis: int | None
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
        may_be_first, may_be_last = first[0] in CHANNEL_COUNTS, last[0] in CHANNEL_COUNTS
        if may_be_first == may_be_last:
            problem = "both axis 1 and axis -1" if may_be_first else "neither axis 1 nor axis -1"
            raise ValueError(
                f"X has shape {array.shape}: {problem} could be the channels (1 to 4). Set channel_axis to 1 or -1"
            )
        channel_axis = 1 if may_be_first else -1
    return (first, False) if channel_axis == 1 else (last, True)


def _blocks(array: NDArray | LazyArray) -> Iterator[NDArray]:
    """Yield runs of rows of a bounded size, so that a memory map is never read whole."""
    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _bounds(
    array: NDArray | LazyArray, kind: str | None, value_range: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the least and the greatest value, or bounds of the type where it is too long to look at all of them."""
    if isinstance(array, LazyArray) and kind in _RANGES:
        low, high = _RANGES[kind]
        if value_range is None or value_range[0] <= low < high <= value_range[1]:
            return low, high
    low, high = math.inf, -math.inf
    for block in _blocks(array):
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        if not (math.isfinite(low) and math.isfinite(high)) or np.isnan(block.min()):
            raise ValueError("X must not contain NaN or infinity")
    return low, high
