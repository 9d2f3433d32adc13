"""Image input: whatever users bring becomes one lazy source of images in [-1, 1]."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from skdiec.images.arrays import CHANNEL_COUNTS, ArrayImages, as_array, as_array_images, refuse_one_image
from skdiec.images.containers import Pictures, is_paths, is_rows, unpack
from skdiec.images.files import FILE_SUFFIXES, FileImages, as_paths, common_file_shape
from skdiec.images.pictures import PictureImages, common_shape
from skdiec.images.source import ImageFormat, ImageSource, thumbnails

__all__ = [
    "FILE_SUFFIXES",
    "ArrayImages",
    "FileImages",
    "ImageFormat",
    "ImageSource",
    "as_array",
    "as_image_source",
    "is_paths",
    "is_rows",
    "refuse_one_image",
    "thumbnails",
    "unpack",
]


def as_image_source(
    X: ArrayLike | str | os.PathLike | Iterable,
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
    X : array-like, path of a folder, sequence or iterable of images or of paths
        - ``(n, height, width)``, ``(n, channels, height, width)`` or ``(n, height, width, channels)``
          numpy array, memory map or torch tensor;
        - ``(n, features)`` rows, one flattened image each, or any table (see `image_shape`);
        - a folder (searched with its subfolders, in sorted order) or a sequence of image files. Files
          of any mode and size are scaled to cover the target size, then cropped at the centre;
        - a sequence of PIL images, which are read as files are, or of arrays or tensors of one shape;
        - other containers: generators, data sets of torch, Hugging Face or HDF5; see
          `skdiec.images.containers.unpack`. What they make when asked for (`ImageSource.in_memory`) is made for
          every reading, so it must be the same each time: random transforms do not belong there.
    image_shape : sequence of int, default=None
        ``(height, width)``, or three numbers with the channels where `channel_axis` says. Needed for
        flat image rows; without it, a two-dimensional X is a table: each row is laid out on the
        smallest square that holds it, filled with the lowest value.
    channel_axis : {1, -1}, default=None
        Where four-dimensional input (and three numbers of `image_shape`, counted with the axis of the
        images) has its channels. None finds it where only one axis is 1 to 4 long.
    value_range : pair of float, default=None
        The values of black and white. None is 0 to 255 for uint8, 0 to 1 for bool, and for a table
        the range of its values; all else must be stated. Where it is stated, it holds for images of any type.
    file_shape : callable, default=None
        Called for the ``(channels, height, width)`` that files are read at when `image_shape` is None. None is
        the shape that all files share.
    like : ImageFormat, default=None
        The format of earlier input that this must agree with: in shape and, where no `value_range` is stated, in the
        kind of its numbers (`ImageFormat.kind`). So images of 0 to 1 are never read as images of 0 to 255.

    Returns
    -------
    ImageSource
        Of at least one image.

    Raises
    ------
    TypeError
        Where X is sparse.
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
        raise ValueError(f"channel_axis must be None, 1 or -1; got {reprlib.repr(channel_axis)}")
    value_range = _checked_value_range(value_range)
    shape, shape_is_channels_last = _checked_image_shape(image_shape, channel_axis)
    X = unpack(X)
    if not is_paths(X) and not isinstance(X, Pictures):
        return as_array_images(as_array(X), shape, shape_is_channels_last, channel_axis, value_range, like)
    if like is not None:
        shape = like.shape
    elif shape is None and file_shape is not None:
        shape = file_shape()
    if isinstance(X, Pictures):
        source: ImageSource = PictureImages(X, shape or common_shape(X))
    else:
        paths = as_paths(X)
        source = FileImages(paths, shape or common_file_shape(paths))
    if like is not None:
        like.check_later(source.format, "image files or PIL images", is_stated=value_range is not None)
    return source


def _checked_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    shown = reprlib.repr(value_range)
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"value_range must be a pair of numbers (low, high); got {shown}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be two finite numbers, the lower one first; got {shown}")
    width = high - low
    # As many steps as 8 bits have, at least, and a width that can be divided by.
    if not math.isfinite(width) or not math.isfinite(2 / width) or width < 255 * np.spacing(max(-low, high)):
        raise ValueError(f"value_range must be neither wider nor finer than float64 can tell; got {shown}")
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
    first, last = shape[0] in CHANNEL_COUNTS, shape[2] in CHANNEL_COUNTS
    if channel_axis is None:
        if first == last:
            raise ValueError(
                f"image_shape {shape} does not tell which number is the channels: set channel_axis to 1 or -1"
            )
        channel_axis = 1 if first else -1
    if channel_axis == -1:
        shape = (shape[2], shape[0], shape[1])
    return (int(shape[0]), int(shape[1]), int(shape[2])), channel_axis == -1
