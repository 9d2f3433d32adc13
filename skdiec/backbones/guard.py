"""A guard against backbones that do not fit the images: how much of its task a network solves on them."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray

from skdiec.activations import evaluating
from skdiec.backbones.base import Backbone
from skdiec.backbones.levels import linear_ratio
from skdiec.images import ImageSource
from skdiec.messages import warn

logger = logging.getLogger(__name__)

_RATIOS = tuple(map(linear_ratio, (50, 150, 350)))
"""Noise to signal at which networks are looked at."""

_N_IMAGES = 256
_BATCH_SIZE = 32


def check_share_explained(
    backbone: Backbone, source: ImageSource, *, is_trained_on_it: bool = False, seed: int = 0
) -> dict[int, float]:
    """Measure the share explained (see `share_explained`), log it, and warn where it is negative.

    Parameters
    ----------
    backbone, source, seed
        As in `share_explained`.
    is_trained_on_it : bool, default=False
        The backbone was trained on these images, which leaves fewer reasons to warn of.

    Returns
    -------
    dict of int to float

    Warns
    -----
    UserWarning
        Where the share is negative at any timestep.
    """
    shares = share_explained(backbone, source, seed=seed)
    numbers = ", ".join(f"{share:.2f} at timestep {timestep}" for timestep, share in shares.items())
    logger.info("share explained of these images: %s", numbers)
    if any(share < 0 for share in shares.values()):
        reason = (
            f"it was trained too little{_steps_of(backbone)}, or there is nothing to learn in them"
            if is_trained_on_it
            else (
                "value_range is not what black and white are in X, or the backbone has the noise schedule or the "
                "prediction_type of another network, or it was trained on other images or images scaled otherwise, "
                "or too little"
            )
        )
        warn(
            f"the backbone denoises these images worse than a straight line does: share explained {numbers} (1 is "
            f"perfect). Either {reason}"
        )
    return shares


def _steps_of(backbone: Backbone) -> str:
    """Say how many steps a training took, of how many, where that is known."""
    recipe = backbone.recipe
    if not {"settings", "steps", "images"} <= recipe.keys():
        return ""
    settings = recipe["settings"]
    in_all = settings["epochs"] * math.ceil(recipe["images"] / settings["batch_size"])
    return f" ({recipe['steps']:,} of {in_all:,} steps)"


def share_explained(backbone: Backbone, source: ImageSource, *, seed: int = 0) -> dict[int, float]:
    """Measure how much better than a straight line a network denoises images.

    The share explained is ``1 - L / L_line``. L is the mean squared error of the network's prediction, L_line that of
    the best ``a * x_t + b``, with the same two numbers for all pixels. The share is 1 for a perfect network and 0 for
    one that knows no more of the images than brightness and contrast. It is negative for most networks that are used
    otherwise than they were trained.

    Parameters
    ----------
    backbone : Backbone
    source : ImageSource
        256 of its images are drawn, or all where there are fewer.
    seed : int, default=0
        Seeds images and noise.

    Returns
    -------
    dict of int to float
        The share at each timestep: those whose noise is nearest to that of timesteps 50, 150 and 350 of a DDPM's linear
        schedule, up to the highest timestep trained on. NaN where images have no contrast at all, minus infinity where
        predictions are not numbers.
    """
    chosen = np.random.default_rng(seed).choice(len(source), min(len(source), _N_IMAGES), replace=False)
    rows = np.sort(chosen)
    generator = torch.Generator().manual_seed(seed)
    sums = {timestep: np.zeros(7) for timestep in backbone.nearest_timesteps(_RATIOS)}
    with evaluating(backbone.network), torch.inference_mode():
        for start in range(0, len(rows), _BATCH_SIZE):
            images = torch.from_numpy(source.read(rows[start : start + _BATCH_SIZE])).to(backbone.device)
            x0 = backbone.encode(backbone.prepare(images))
            for timestep in sums:
                sums[timestep] += _sums(backbone, x0, timestep, generator)
    return {timestep: _share(*values) for timestep, values in sums.items()}


def _sums(backbone: Backbone, x0: torch.Tensor, timestep: int, generator: torch.Generator) -> NDArray[np.float64]:
    """Return the sums over pixels that the share follows from."""
    timesteps = torch.full((len(x0),), timestep, dtype=torch.long, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device="cpu").to(x0.device)
    x_t = backbone.add_noise(x0, noise, timesteps)
    target = backbone.target(x0, noise, timesteps)
    prediction = backbone.predict(x_t, timesteps)
    x, y, error = (tensor.flatten().cpu().double() for tensor in (x_t, target, prediction - target))
    return np.array([len(x), error @ error, x.sum(), y.sum(), x @ x, x @ y, y @ y], dtype=np.float64)


def _share(n: float, error: float, x: float, y: float, xx: float, xy: float, yy: float) -> float:
    """Return 1 minus the ratio of the network's squared error to that of the regression line of y on x."""
    variance, covariance, spread = xx - x * x / n, xy - x * y / n, yy - y * y / n
    residual = spread - covariance**2 / variance if variance > 0 else spread
    if residual <= 1e-6 * yy:
        return math.nan
    return -math.inf if math.isnan(error) else float(1 - error / residual)
