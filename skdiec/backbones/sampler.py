"""The sampler of a backbone: the noise schedule, run backwards by DDIM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skdiec.backbones.base import Backbone
from skdiec.backbones.importing import ONE_AT_A_TIME

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


def check_can_sample(backbone: Backbone) -> None:
    """Raise ValueError for a backbone of other noise, and one that was not trained on what sampling begins with.

    Parameters
    ----------
    backbone : Backbone
    """
    kind = type(backbone.scheduler).__name__
    if kind != "DDPMScheduler":
        raise ValueError(f"new images can be made by models with the noise of a DDPM; the backbone's is a {kind}'s")
    last = backbone.num_train_timesteps - 1
    if backbone.max_timestep < last:
        raise ValueError(
            f"the backbone was trained up to timestep {backbone.max_timestep} of {last}, which is enough to cluster, "
            f"but new images begin at {last}: train one that can make them with max_timestep={last} "
            f"(skdiec pretrain IMAGES FOLDER --max-timestep {last})"
        )


def make_sampler(backbone: Backbone, n_steps: int) -> DDIMScheduler:
    """Return diffusers' sampler for a backbone.

    Parameters
    ----------
    backbone : Backbone
    n_steps : int
        Passes through the network, up to as many as the schedule has timesteps.

    Returns
    -------
    diffusers.DDIMScheduler
        Its ``timesteps`` begin at the schedule's last one.

    Raises
    ------
    ValueError
        As `check_can_sample`, and for another number of steps.
    """
    check_can_sample(backbone)
    if not 1 <= n_steps <= backbone.num_train_timesteps:
        raise ValueError(f"n_steps must be an int from 1 to {backbone.num_train_timesteps}; got {n_steps}")
    with ONE_AT_A_TIME:
        from diffusers import DDIMScheduler

    config = {**backbone.scheduler.config, "timestep_spacing": "trailing", "steps_offset": 0}
    if backbone.encodes:  # latents have no range
        config["clip_sample"] = False
    sampler = DDIMScheduler.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    sampler.set_timesteps(n_steps, device=backbone.device)
    return sampler
