"""How many images are in a forward pass, and how many passes are side by side."""

from __future__ import annotations

import math

import torch

from skdiec import activations
from skdiec.backbones import Backbone
from skdiec.parallel import torch_threads

ROW_MULTIPLE = 32
"""Every forward pass has a multiple of this many rows. Matrix kernels treat the rows of a remainder
differently, in the last bits; full groups make a row's features independent of the batch it is in."""

BATCH_SIZE = 64
"""Images per forward pass on a CPU, whose caches larger batches only overflow."""

MAX_PASSES = 8
"""Forward passes side by side on a CPU at most: Python takes its part of each, and serves one at a time."""

PIXELS_AT_ONCE = 2**20
"""Pixels of all images in passes side by side: large images keep all threads busy in one pass, and need memory."""

LARGEST_BATCH = 1024
"""Images per forward pass of a GPU at most: more keep no GPU busier."""


def rounded_up(count: int) -> int:
    """Return a number of rows that is a multiple of `ROW_MULTIPLE`."""
    return ROW_MULTIPLE * math.ceil(count / ROW_MULTIPLE)


def n_passes(backbone: Backbone, size: int) -> int:
    """Return how many passes of so many images should run side by side, which small ones do best on a CPU."""
    if backbone.device.type != "cpu":
        return 1
    at_once = PIXELS_AT_ONCE // (size * math.prod(backbone.input_shape[1:]))
    return max(1, min(torch_threads(), MAX_PASSES, at_once))


def suited_batch_size(backbone: Backbone) -> int:
    """Return how many images a forward pass should take: on a GPU as many as half of its free memory suffices for.

    Parameters
    ----------
    backbone : Backbone
        On the device that computes. On a GPU, one pass measures what an image needs.

    Returns
    -------
    int
        64 on a CPU, 32 of large images; on a GPU a multiple of 32 from 32 to 1,024, or fewer than 32 where the memory
        does not suffice.
    """
    if backbone.device.type != "cuda":
        n_pixels = math.prod(backbone.input_shape[1:])
        return BATCH_SIZE if n_pixels <= PIXELS_AT_ONCE // BATCH_SIZE else ROW_MULTIPLE
    free, needed = _gpu_bytes(backbone)
    count = min(free // 2 // max(needed, 1), LARGEST_BATCH)
    return ROW_MULTIPLE * (count // ROW_MULTIPLE) if count >= ROW_MULTIPLE else 2 ** max(0, count.bit_length() - 1)


def _gpu_bytes(backbone: Backbone) -> tuple[int, int]:
    """Return the bytes that are free on the backbone's GPU, and those that a forward pass takes for each image."""
    device = backbone.device
    torch.cuda.empty_cache()  # what the allocator holds back is free too
    free, _ = torch.cuda.mem_get_info(device)
    for count in (ROW_MULTIPLE, 4, 1):
        try:
            return free, _bytes_of_pass(backbone, count) // count
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()
    raise AssertionError  # of the loop's last round


def _bytes_of_pass(backbone: Backbone, count: int) -> int:
    device = backbone.device
    images = torch.zeros((count, *backbone.input_shape), device=device)
    timesteps = torch.zeros(count, dtype=torch.long, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with activations.evaluating(backbone.network), torch.inference_mode():
        backbone.predict(images, timesteps)
    return torch.cuda.max_memory_allocated(device) - before
