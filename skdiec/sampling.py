"""New images, from noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from skdiec.backbones import Backbone, make_sampler

_BATCH_SIZE = 64


def sample_images(
    backbone: Backbone,
    n_images: int,
    *,
    n_steps: int = 50,
    seed: int = 0,
    report: Callable[[int, int], object] | None = None,
) -> NDArray[np.float32]:
    """Draw new images by DDIM (https://arxiv.org/abs/2010.02502), without added noise.

    Parameters
    ----------
    backbone : Backbone
        Trained on all timesteps of the schedule of a DDPM.
    n_images : int
    n_steps : int, default=50
        Passes through the network for each image.
    seed : int, default=0
        Of the noise. Images do not depend on how many are drawn.
    report : callable, default=None
        Called as ``report(done, total)`` after each pass.

    Returns
    -------
    ndarray of shape (n_images, channels, height, width), float32
        Values in [-1, 1].

    Raises
    ------
    ValueError
        For a backbone that was not trained to sample.
    """
    if n_images < 1:
        raise ValueError(f"n_images must be an int of at least 1; got {n_images}")
    images = np.empty((n_images, *backbone.image_shape), dtype=np.float32)
    starts = range(0, n_images, _BATCH_SIZE)
    for batch, start in enumerate(starts):
        rows = range(start, min(start + _BATCH_SIZE, n_images))
        x = torch.stack([_noise(backbone, seed, row) for row in rows]).to(backbone.device)
        sampler = make_sampler(backbone, n_steps)
        for step, timestep in enumerate(sampler.timesteps):
            with torch.inference_mode():
                predicted = backbone.predict(x, timestep.expand(len(x)))
                x = sampler.step(predicted, timestep, x).prev_sample
            if report is not None:
                report(batch * n_steps + step + 1, len(starts) * n_steps)
        images[start : start + len(x)] = backbone.decode(x).clamp(-1, 1).float().cpu().numpy()
    return images


def _noise(backbone: Backbone, seed: int, row: int) -> torch.Tensor:
    noise = np.random.default_rng((seed, row)).standard_normal(backbone.input_shape, dtype=np.float32)
    return torch.from_numpy(noise)
