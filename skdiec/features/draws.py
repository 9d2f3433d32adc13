"""What each pass sees of the images: noise, and by how much they are moved."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from skdiec.backbones import Backbone

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))
_DIAGONALS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_DEGREES = (8.0, -8.0, 16.0, -16.0)

_SHARE_OF_SIDE = 16
"""Images that are compared as they are moved are moved by one in so many of their pixels."""


class Motion(NamedTuple):
    """How an image is moved before it is seen.

    Attributes
    ----------
    right, down : int
        Pixels.
    degrees : float
        Counterclockwise, around the middle.
    """

    right: int = 0
    down: int = 0
    degrees: float = 0.0


class Draw(NamedTuple):
    """What one pass sees of the images.

    Attributes
    ----------
    noise : Tensor of shape input_shape
        Shared by all images.
    motion : Motion
    """

    noise: Tensor
    motion: Motion


def draws_of(backbone: Backbone, n_draws: int, shift: int, seed: int) -> list[Draw]:
    """Return what each pass sees; see `FeatureExtractor`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_draws, *backbone.input_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(backbone.device)
    offsets = [(0, 0), *(itertools.islice(itertools.cycle(_DIRECTIONS), n_draws - 1))]
    return [Draw(tensor, Motion(shift * x, shift * y)) for tensor, (x, y) in zip(noise, offsets, strict=True)]


def small_motions(height: int, width: int) -> list[Motion]:
    """Return motions that leave what an image shows: none, then moves in eight directions, then turns.

    Parameters
    ----------
    height, width : int
        Of the images, in pixels. They are moved by a sixteenth of the shorter side, and turned by 8 and 16 degrees.

    Returns
    -------
    list of Motion

    Examples
    --------
    >>> [tuple(motion) for motion in small_motions(32, 32)][:3]
    [(0, 0, 0.0), (2, 0, 0.0), (-2, 0, 0.0)]
    """
    step = max(1, round(min(height, width) / _SHARE_OF_SIDE))
    moves = [Motion(step * x, step * y) for x, y in (*_DIRECTIONS, *_DIAGONALS)]
    return [Motion(), *moves, *(Motion(degrees=degrees) for degrees in _DEGREES)]


def moved(images: Tensor, motion: Motion) -> Tensor:
    """Move images by some pixels and turn them, repeating pixels of the border.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
    motion : Motion

    Returns
    -------
    Tensor of the same shape
        Turned ones are interpolated between pixels.
    """
    if motion == Motion():
        return images
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - motion.down
    columns = torch.arange(width, device=images.device) - motion.right
    if not motion.degrees:
        return images[:, :, rows.clamp(0, height - 1)[:, None], columns.clamp(0, width - 1)]
    turn = math.radians(motion.degrees)
    down, right = rows[:, None] - (height - 1) / 2, columns[None, :] - (width - 1) / 2
    # Where each pixel comes from, in units of half a side from the middle.
    x = (math.cos(turn) * right - math.sin(turn) * down) * 2 / width
    y = (math.sin(turn) * right + math.cos(turn) * down) * 2 / height
    grid = torch.stack([x, y], dim=-1).to(images.dtype).expand(len(images), -1, -1, -1)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
