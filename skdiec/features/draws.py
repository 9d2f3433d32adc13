"""What each pass sees of the images: noise, and by how much they are moved."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from skdiec.backbones import Backbone

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))


class Draw(NamedTuple):
    """What one pass sees of the images.

    Attributes
    ----------
    noise : Tensor of shape input_shape
        Shared by all images.
    offset : tuple of int
        Pixels to the right and down by which they are moved.
    """

    noise: Tensor
    offset: tuple[int, int]


def draws_of(backbone: Backbone, n_draws: int, shift: int, seed: int) -> list[Draw]:
    """Return what each pass sees; see `FeatureExtractor`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_draws, *backbone.input_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(backbone.device)
    offsets = [(0, 0), *(itertools.islice(itertools.cycle(_DIRECTIONS), n_draws - 1))]
    return [Draw(tensor, (shift * x, shift * y)) for tensor, (x, y) in zip(noise, offsets, strict=True)]


def moved(images: Tensor, right: int, down: int) -> Tensor:
    """Move images by some pixels, repeating those of the border."""
    if right == down == 0:
        return images
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - right).clamp(0, width - 1)
    return images[:, :, rows[:, None], columns]
