"""Levels of noise: one table for every family whose noise is Gaussian, whatever its network estimates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def linear_ratio(timestep: int) -> float:
    """Return the noise to signal of a DDPM's linear schedule of 1,000 timesteps, which others are compared to.

    Parameters
    ----------
    timestep : int
        From 0 to 999.

    Returns
    -------
    float

    Examples
    --------
    >>> round(linear_ratio(50), 3)
    0.176
    """
    abar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[timestep]
    return float(np.sqrt((1 - abar) / abar))


class Level(NamedTuple):
    """One level of noise for each image.

    A noisy image is ``x_t = signal * x0 + noise * e``, with e standard normal. The network is given ``scale * x_t`` and
    `time`, and estimates ``to_x0 * x0 + to_noise * e``.

    Attributes
    ----------
    signal, noise, scale, to_x0, to_noise : Tensor of shape (n, 1, 1, 1), float32
    time : Tensor of shape (n,), float32 or int64
    weight : Tensor of shape (n, 1, 1, 1), float32
        What errors are multiplied by in the denoising loss, before they are squared.
    """

    signal: Tensor
    noise: Tensor
    time: Tensor
    scale: Tensor
    to_x0: Tensor
    to_noise: Tensor
    weight: Tensor

    def noised(self, x0: Tensor, e: Tensor) -> Tensor:
        """Return the noisy images x_t, of the shape and type of `x0`."""
        signal, noise = self.signal.to(x0.dtype), self.noise.to(x0.dtype)
        return signal * x0 + noise * e

    def target(self, x0: Tensor, e: Tensor) -> Tensor:
        """Return what the network is to say, of the shape and type of `x0`."""
        return self.to_x0.to(x0.dtype) * x0 + self.to_noise.to(x0.dtype) * e

    def estimates(self, x_t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and the noise that an output stands for, both of the shape of `x_t`."""
        divisor = self.to_noise * self.signal - self.noise * self.to_x0
        x0 = (self.to_noise * x_t - self.noise * output) / divisor
        e = (self.signal * output - self.to_x0 * x_t) / divisor
        return x0, e


@dataclass(frozen=True)
class NoiseLevels:
    """The levels of noise of all timesteps, from the least to the most noise.

    Attributes
    ----------
    signal, noise, time, scale, to_x0, to_noise, weight : Tensor of shape (n_timesteps,)
        As in `Level`.
    """

    signal: Tensor
    noise: Tensor
    time: Tensor
    scale: Tensor
    to_x0: Tensor
    to_noise: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.signal)

    def at(self, timesteps: Tensor) -> Level:
        """Return the levels of some timesteps.

        Parameters
        ----------
        timesteps : Tensor of shape (n,), integer
            On the table's device.

        Returns
        -------
        Level
        """
        columns = {column.name: getattr(self, column.name)[timesteps] for column in fields(self)}
        return Level(**{name: x if name == "time" else x[..., None, None, None] for name, x in columns.items()})

    def to(self, device: torch.device) -> NoiseLevels:
        """Return the table on a device."""
        if self.signal.device == device:
            return self
        return NoiseLevels(*(getattr(self, column.name).to(device) for column in fields(self)))

    def nearest(self, ratios: Iterable[float], last: int, *, contrast: float = 1.0) -> tuple[int, ...]:
        """Return the timesteps whose noise to signal is nearest to some, each once, in ascending order.

        Parameters
        ----------
        ratios : iterable of float
            Noise to signal, for images in [-1, 1].
        last : int
            The highest timestep to take.
        contrast : float, default=1.0
            White minus black in x0, over that of images in [-1, 1].

        Returns
        -------
        tuple of int
        """
        signal, noise = (x[: last + 1].double().cpu() for x in (self.signal, self.noise))
        found = (noise / (contrast * signal)).log()
        # A level without noise, or without signal, is infinitely far from any.
        found[~found.isfinite()] = math.inf
        return tuple(sorted({int((found - math.log(ratio)).abs().argmin()) for ratio in ratios}))


def noise_levels(scheduler: Any) -> NoiseLevels:
    """Return the levels of noise of a scheduler that `skdiec.backbones.schedules` has made.

    Parameters
    ----------
    scheduler : diffusers.SchedulerMixin

    Returns
    -------
    NoiseLevels
    """
    return _TABLES[type(scheduler).__name__](scheduler)


def flow_levels(n_timesteps: int, *, time_scale: float = 1.0, is_reversed: bool = False) -> NoiseLevels:
    """Return the levels of flow matching, where x_t goes straight from an image to noise.

    Parameters
    ----------
    n_timesteps : int
    time_scale : float, default=1.0
        What the timestep is multiplied by to give the network's time.
    is_reversed : bool, default=False
        Whether the network is told how much signal there is, and estimates x0 - e, as in Lumina-Next.

    Returns
    -------
    NoiseLevels
        Noise ``t / n_timesteps``; the network estimates e - x0.
    """
    steps = torch.arange(n_timesteps, dtype=torch.float32)
    sigma = steps / n_timesteps
    one = torch.ones_like(sigma)
    if is_reversed:
        return NoiseLevels(1 - sigma, sigma, 1 - sigma, one, one, -one, one)
    return NoiseLevels(1 - sigma, sigma, time_scale * steps, one, -one, one, one)


def _variance_preserving(scheduler: Any) -> NoiseLevels:
    abar = scheduler.alphas_cumprod.float().cpu()
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    one, zero = torch.ones_like(abar), torch.zeros_like(abar)
    targets = {"epsilon": (zero, one), "sample": (one, zero), "v_prediction": (-noise, signal)}
    to_x0, to_noise = targets[scheduler.config.prediction_type]
    return NoiseLevels(signal, noise, torch.arange(len(abar)), one, to_x0, to_noise, one)


def _variance_exploding(scheduler: Any) -> NoiseLevels:
    """Return those of ScoreSdeVe, whose networks estimate the score, -e / sigma."""
    config = scheduler.config
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    sigma = torch.linspace(low, high, config.num_train_timesteps, dtype=torch.float64).exp().float()
    one = torch.ones_like(sigma)
    return NoiseLevels(one, sigma, sigma, one, torch.zeros_like(sigma), -1 / sigma, sigma)


def _edm(scheduler: Any) -> NoiseLevels:
    # The last of its levels is appended for samplers.
    sigma = scheduler.sigmas[:-1].flip(0).double()
    skip = scheduler.config.sigma_data**2 / (sigma**2 + scheduler.config.sigma_data**2)
    sign = 1 if scheduler.config.prediction_type == "epsilon" else -1
    out = sign * sigma * skip**0.5
    return _preconditioned(sigma, 0.25 * sigma.log(), scheduler.config.sigma_data, skip, out)


def _consistency(scheduler: Any) -> NoiseLevels:
    # At the lowest level the network is not asked: it is what all others are mapped to.
    sigma = scheduler.sigmas.double().sort().values[1:]
    data, above = scheduler.config.sigma_data, sigma - scheduler.config.sigma_min
    skip, out = data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5
    return _preconditioned(sigma, 250 * (sigma + 1e-44).log(), data, skip, out)


def _preconditioned(sigma: Tensor, time: Tensor, data: float, skip: Tensor, out: Tensor) -> NoiseLevels:
    """Return the levels of networks F with x0 = skip * x_t + out * F(scale * x_t, time)."""
    one, scale = torch.ones_like(sigma), 1 / (sigma**2 + data**2) ** 0.5
    columns = (one, sigma, time, scale, (1 - skip) / out, -skip * sigma / out, one)
    return NoiseLevels(*(column.float() for column in columns))


_TABLES = {
    "DDPMScheduler": _variance_preserving,
    "ScoreSdeVeScheduler": _variance_exploding,
    "EDMEulerScheduler": _edm,
    "CMStochasticIterativeScheduler": _consistency,
    "FlowMatchEulerDiscreteScheduler": lambda scheduler: flow_levels(int(scheduler.config.num_train_timesteps)),
}
