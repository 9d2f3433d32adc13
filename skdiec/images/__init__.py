"""Image input: whatever users bring becomes one lazy source of images in [-1, 1]."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from skdiec.images.arrays import CHANNEL_COUNTS, ArrayImages, as_array, as_array_images, refuse_one_image
from skdiec.images.containers import Pictures, is_paths, is_rows, unpack
from skdiec.images.files import FileImages, as_paths, file_images
from skdiec.images.pictures import picture_images
from skdiec.images.source import ImageFormat, ImageSource, distinct_rows, thumbnails
from skdiec.messages import shown

__all__ = [
    "ArrayImages",
    "FileImages",
    "ImageFormat",
    "ImageSource",
    "as_array",
    "as_image_source",
    "checked_image_shape",
    "distinct_rows",
    "is_paths",
    "is_rows",
    "refuse_one_image",
    "thumbnails",
    "unpack",
]


MAX_SIDE = 2**16
MAX_VALUES = 2**28
"""Bounds of `image_shape`: larger images, of a gigabyte as floats, are mistakes."""


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
        - a folder (searched with its subfolders) or a sequence of image files; see the notes;
        - a sequence of PIL images, which are read as files are, or of arrays or tensors of one shape;
        - other containers: generators, data sets of torch, Hugging Face or HDF5; see
          `skdiec.images.containers.unpack`. What they make when asked for is made for every reading, so it must be the
          same each time: random transforms do not belong there.
    image_shape : sequence of int, default=None
        ``(height, width)``, or three numbers with the channels where `channel_axis` says. Needed for
        flat image rows; without it, a two-dimensional X is a table: each row is laid out on the
        smallest square that holds it, filled with the lowest value. For files and arrays of four dimensions, two
        numbers are the size alone: the channels are theirs.
    channel_axis : {1, -1}, default=None
        Where four-dimensional input (and three numbers of `image_shape`, counted with the axis of the
        images) has its channels. None finds it where only one axis is 1 to 4 long.
    value_range : pair of float, default=None
        The values of black and white. None is 0 to 255 for uint8 and for files of 8 bits, 0 to 1 for bool, and
        for a table the range of its values; all else must be stated. Where it is stated, it holds for images of any
        type.
    file_shape : callable, default=None
        Called for the ``(channels, height, width)`` that files are read at when `image_shape` is None. None is
        the size that all files share.
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

    Notes
    -----
    Of a folder, files are read whose suffix is that of an image format of Pillow. Their order is that of
    ``sorted(glob(folder + "/**/*", recursive=True))``: by the path as a string. Hidden files and folders (a name that
    starts with a dot, ``__MACOSX``, ``@eaDir``) are left out. Links are followed, but each folder is read once, under
    its own name where it has one in `X`. A warning counts what is left out and why. A sequence of files keeps its order
    and is read whatever the names are.

    What a file holds is found by its content, among the common formats and that of its suffix. Nothing that would run
    another program (PostScript, PDF) is opened. Of several pages or frames the first is read, with a warning.

    - Orientation tags are applied. Transparent pixels are laid on white, the upper end of `value_range`.
    - Files have 1 channel where all are grey (palettes count as colour), else 3. Other colour spaces become RGB.
    - Files of another size are scaled to cover the target (bicubic), then cropped at the centre. A JPEG photo of four
      times the target's size or more is decoded at a half, a quarter or an eighth, still twice the target or more. The
      result differs by 0.3 of 256 levels on average, and by up to 7 at hard edges.
    - Grey files of 16 bits, int32 or float32 keep all of their values. They need a `value_range`, and must not be mixed
      with files of 8 bits. Of colour files with 16 bits a channel Pillow reads the upper 8, so their range can only be
      (0, 65535).

    Examples
    --------
    >>> import numpy as np
    >>> source = as_image_source(np.zeros((5, 8, 8), dtype=np.uint8))
    >>> len(source), source.shape, float(source.read(slice(0, 1)).max())
    (5, (1, 8, 8), -1.0)
    """
    is_int = isinstance(channel_axis, Integral) and not isinstance(channel_axis, bool)
    if channel_axis is not None and not (is_int and channel_axis in (1, -1)):
        raise ValueError(f"channel_axis must be None, 1 or -1; got {shown(channel_axis)}")
    value_range = _checked_value_range(value_range)
    shape, shape_is_channels_last = checked_image_shape(image_shape, channel_axis)
    X = unpack(X)
    # Two numbers are the size: the files tell their channels.
    sides: tuple[int, ...] | None = shape
    if shape is not None and image_shape is not None and len(image_shape) == 2:
        sides = shape[1:]
    if isinstance(X, Pictures):
        return picture_images(X, sides, value_range, file_shape, like)
    if is_paths(X):
        return file_images(as_paths(X), sides, value_range, file_shape, like)
    array = as_array(X)
    if shape is not None and sides is not None and len(sides) == 2 and array.ndim == 4:
        shape = _with_channels(array.shape, shape)
    return as_array_images(array, shape, shape_is_channels_last, channel_axis, value_range, like)


def _with_channels(array_shape: tuple[int, ...], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return a shape, of which two numbers were stated, with the channels of the array that has these sides."""
    for channels, *found in (array_shape[1:], (array_shape[3], *array_shape[1:3])):
        if tuple(found) == shape[1:] and channels in CHANNEL_COUNTS:
            return (channels, *shape[1:])
    return shape


def _checked_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    try:
        if isinstance(value_range, (Set, Mapping)):
            raise TypeError("it has no order")
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"value_range must be a pair of numbers (low, high); got {shown(value_range)}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be two finite numbers, the lower one first; got {shown(value_range)}")
    width = high - low
    # As many steps as 8 bits have, at least, and a width that can be divided by.
    if not math.isfinite(width) or not math.isfinite(2 / width) or width < 255 * np.spacing(max(-low, high)):
        raise ValueError(f"value_range must be neither wider nor finer than float64 can tell; got {shown(value_range)}")
    return low, high


def checked_image_shape(
    image_shape: Sequence[int] | None, channel_axis: int | None
) -> tuple[tuple[int, int, int] | None, bool]:
    """Return ``(channels, height, width)``, and whether `image_shape` has the channels last.

    Parameters
    ----------
    image_shape, channel_axis
        As in `as_image_source`.

    Returns
    -------
    shape : tuple of int or None
    is_channels_last : bool

    Raises
    ------
    ValueError
        For what is no shape, or too large.
    """
    if image_shape is None:
        return None, False
    message = f"image_shape must be (height, width) or three numbers with the channels; got {shown(image_shape)}"
    try:
        shape = tuple(image_shape)
    except TypeError:
        raise ValueError(message) from None
    if len(shape) not in (2, 3) or not all(isinstance(side, (int, np.integer)) and side > 0 for side in shape):
        raise ValueError(message)
    if max(shape) > MAX_SIDE or math.prod(int(side) for side in shape) > MAX_VALUES:
        raise ValueError(
            f"image_shape must have sides of at most {MAX_SIDE:,} and at most {MAX_VALUES:,} values; got {shown(shape)}"
        )
    if len(shape) == 2:
        return (1, int(shape[0]), int(shape[1])), False
    first, last = shape[0] in CHANNEL_COUNTS, shape[2] in CHANNEL_COUNTS
    if channel_axis is None:
        if first == last:
            raise ValueError(
                f"image_shape {shown(shape)} does not tell which number is the channels: set channel_axis to 1 or -1"
            )
        channel_axis = 1 if first else -1
    if channel_axis == -1:
        shape = (shape[2], shape[0], shape[1])
    return (int(shape[0]), int(shape[1]), int(shape[2])), channel_axis == -1
