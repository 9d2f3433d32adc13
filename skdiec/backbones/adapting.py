"""Images of any size and channels, adapted to those that a network was trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNEL_CHANGES = frozenset({(1, 3), (3, 1), (4, 3), (4, 1)})
"""Numbers of channels that images can have, and be given."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

_CONTRAST = 0.4  # standard deviation of a standardized image: 2.5 of them reach black or white
_LEAST_CONTRAST = 1 / 16  # is added to that of an image, so that an empty one does not become all noise


def adapt_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat channels (1 to 3), weight them (3 to 1, ITU-R BT.601) or drop the fourth.

    Parameters
    ----------
    images : Tensor of shape (n, found, height, width)
    channels : int

    Returns
    -------
    Tensor of shape (n, channels, height, width)

    Raises
    ------
    ValueError
        For a number of channels that cannot be changed to this one.
    """
    found = images.shape[1]
    if found == channels:
        return images
    if (found, channels) not in CHANNEL_CHANGES:
        raise ValueError(f"images of {found} channels cannot be adapted to {channels}")
    images = images[:, :3]  # without alpha
    if channels == 3:
        return images.expand(-1, 3, -1, -1) if found == 1 else images
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def cover(images: Tensor, height: int, width: int) -> Tensor:
    """Scale images until they cover a size, and crop them at the centre.

    Parameters
    ----------
    images : Tensor of shape (n, channels, rows, columns)
        In [-1, 1].
    height, width : int

    Returns
    -------
    Tensor of shape (n, channels, height, width)
    """
    if images.shape[2:] == (height, width):
        return images
    scale = max(height / images.shape[2], width / images.shape[3])
    size = max(height, math.ceil(images.shape[2] * scale - 1e-6)), max(width, math.ceil(images.shape[3] * scale - 1e-6))
    images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def standardized(images: Tensor) -> Tensor:
    r"""Give each image the same brightness and contrast.

    .. math:: 0.4 (x - \mu) / (\sigma + 1/16)

    with mean and standard deviation of all pixels and channels of an image, so that hues stay apart. What is below
    -1 or above 1 then is cut off.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
        In [-1, 1].

    Returns
    -------
    Tensor of the same shape
        In [-1, 1].

    Examples
    --------
    >>> import torch
    >>> dark_and_bright = torch.tensor([-1.0, -0.9, 0.5, 0.7]).reshape(2, 1, 1, 2)
    >>> standardized(dark_and_bright).flatten(1)
    tensor([[-0.1778,  0.1778],
            [-0.2462,  0.2462]])
    """
    spread, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
    return (_CONTRAST * (images - mean) / (spread + _LEAST_CONTRAST)).clamp(-1, 1)


def fold(images: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Fill images to a size by repeating their border, then fold squares of pixels into channels.

    Parameters
    ----------
    images : Tensor of shape (n, channels, rows, columns)
    height, width : int
        Of what is returned.
    patch_size : int
        Side of the squares.

    Returns
    -------
    Tensor of shape (n, channels * patch_size**2, height, width)
    """
    extra_height, extra_width = height * patch_size - images.shape[2], width * patch_size - images.shape[3]
    if extra_height or extra_width:
        top, left = extra_height // 2, extra_width // 2
        images = F.pad(images, (left, extra_width - left, top, extra_height - top), mode="replicate")
    return F.pixel_unshuffle(images, patch_size) if patch_size > 1 else images


def unfold(folded: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Undo `fold`: return the images without what they were filled with.

    Parameters
    ----------
    folded : Tensor of shape (n, channels * patch_size**2, rows, columns)
    height, width : int
        Of the images.
    patch_size : int

    Returns
    -------
    Tensor of shape (n, channels, height, width)
    """
    images = F.pixel_shuffle(folded, patch_size) if patch_size > 1 else folded
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def as_range(images: Tensor, low: float, high: float) -> Tensor:
    """Map images in [-1, 1] to another range.

    Parameters
    ----------
    images : Tensor
    low, high : float

    Returns
    -------
    Tensor of the same shape
    """
    return images if (low, high) == (-1, 1) else low + (high - low) / 2 * (images + 1)
