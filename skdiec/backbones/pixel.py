"""Pixel-space backbones: a diffusers ``UNet2DModel`` with its noise schedule."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from skdiec.backbones.config_files import Fields
from skdiec.backbones.folders import as_folder, replacing
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.networks import MAX_SIDE, check_network_config, new_network, sides
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

INDEX_FILE = "model_index.json"
"""File that makes a folder a pipeline of diffusers, and is written last."""

RECIPE_FILE = "skdiec.json"
"""File beside a pretrained pipeline that says how images enter it and how it was trained."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class PixelBackbone:
    """A denoising U-Net over pixels, with its forward process.

    Parameters
    ----------
    network : diffusers.UNet2DModel
        The denoiser. It is used as it is; `load_backbone` copies what callers own.
    scheduler : diffusers.DDPMScheduler
        The noise schedule, the forward process and the prediction type.
    image_shape : tuple of int, default=None
        ``(channels, height, width)`` of the images that the model was trained on. None takes the network's
        own input channels and sample size.
    patch_size : int, default=1
        Side of the squares of pixels that are folded into channels before the network
        (space-to-depth), which makes larger images affordable.
    recipe : dict, default=None
        How the network was trained, as `pretrain` records it.

    Attributes
    ----------
    input_shape : tuple of int
        ``(channels, height, width)`` that the network sees: sides are rounded up to what its levels can halve.

    Raises
    ------
    ValueError
        For a network that can't be used (see `load_backbone`), and where its configuration, `image_shape`, `patch_size`
        and `recipe` contradict each other.
    """

    def __init__(
        self,
        network: UNet2DModel,
        scheduler: DDPMScheduler,
        *,
        image_shape: tuple[int, int, int] | None = None,
        patch_size: int = 1,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        where = "the backbone's configuration"
        config = check_network_config(network.config, where)
        size = sides(config, where)
        self.network = network
        self.scheduler = scheduler
        self.recipe = dict(recipe or {})
        channels = int(config["in_channels"])
        where = "the backbone's recipe"
        fields = Fields({**self.recipe, "patch_size": patch_size, "image_shape": image_shape}, where)
        self.patch_size = patch_size = fields.integer("patch_size", 1, math.isqrt(channels))
        if image_shape is not None:
            image_shape = fields.integers("image_shape", 1, MAX_SIDE * patch_size, range(3, 4))
        if size is None and image_shape is None:
            raise ValueError("the backbone's configuration has no sample_size, so image_shape must be stated")
        height, width = size or (math.ceil(side / patch_size) for side in image_shape[1:])
        self.image_shape = image_shape or (channels // patch_size**2, height * patch_size, width * patch_size)
        # What the network halves as often as it has levels must be even that often.
        divisor = 2 ** (len(config["block_out_channels"]) - 1)
        height, width = (divisor * math.ceil(side / divisor) for side in (height, width))
        self.input_shape = (channels, height, width)
        if self.image_shape[0] * patch_size**2 != channels:
            raise ValueError(
                f"{where}: image_shape {self.image_shape} and patch_size {patch_size} make "
                f"{self.image_shape[0] * patch_size**2} channels, in_channels of the network is {channels}"
            )
        if self.image_shape[1] > height * patch_size or self.image_shape[2] > width * patch_size:
            raise ValueError(
                f"{where}: image_shape {self.image_shape} is larger than what the network sees, "
                f"{(height * patch_size, width * patch_size)}"
            )
        last = self.num_train_timesteps - 1
        if "settings" in self.recipe:
            settings = {"max_timestep": last, **fields.mapping("settings")}
            last = Fields(settings, where).integer("max_timestep", 0, last)
        if config["time_embedding_type"] == "learned" and last >= config["num_train_timesteps"]:
            raise ValueError(
                f"the backbone's configuration: num_train_timesteps must be above the last timestep, {last}; got "
                f"{config['num_train_timesteps']}"
            )

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps of the noise schedule; timesteps count from 0."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def max_timestep(self) -> int:
        """The highest timestep trained on: the schedule's last, unless `pretrain` stopped below."""
        return int(self.recipe.get("settings", {}).get("max_timestep", self.num_train_timesteps - 1))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def prepare(self, images: Tensor) -> Tensor:
        """Adapt images to the network's input.

        Channels are repeated (1 to 3), weighted (3 to 1, ITU-R BT.601) or dropped (the fourth). Another
        size is scaled to cover the target, then cropped at the centre. What space-to-depth and the network's
        downsampling cannot divide is filled by repeating the border.

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            Floating point, nominally in [-1, 1].

        Returns
        -------
        Tensor of shape (n, *input_shape)
            On the same device, of the same dtype.
        """
        channels, height, width = self.image_shape
        images = _adapt_channels(images, channels)
        if images.shape[2:] != (height, width):
            images = _cover(images, height, width)
        full_height, full_width = self.input_shape[1] * self.patch_size, self.input_shape[2] * self.patch_size
        extra_height, extra_width = full_height - height, full_width - width
        if extra_height or extra_width:
            top, left = extra_height // 2, extra_width // 2
            images = F.pad(images, (left, extra_width - left, top, extra_height - top), mode="replicate")
        return F.pixel_unshuffle(images, self.patch_size) if self.patch_size > 1 else images

    def restore(self, x0: Tensor) -> Tensor:
        """Undo `prepare`, for images of the backbone's own shape.

        Parameters
        ----------
        x0 : Tensor of shape (n, *input_shape)

        Returns
        -------
        Tensor of shape (n, *image_shape)
        """
        images = F.pixel_shuffle(x0, self.patch_size)
        _, height, width = self.image_shape
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw x_t of the forward process, x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise.

        Parameters
        ----------
        x0, noise : Tensor of shape (n, *input_shape)
            Prepared images and standard normal noise.
        timesteps : Tensor of shape (n,), integer
            From 0 to ``num_train_timesteps - 1``.

        Returns
        -------
        Tensor of shape (n, *input_shape)
        """
        return self.scheduler.add_noise(x0, noise, timesteps)

    def predict(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Run the network: its output for each noisy image, in the scheduler's prediction type."""
        return self.network(x_t, timesteps, return_dict=False)[0]

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network was trained to predict, by the scheduler's prediction type.

        Parameters
        ----------
        x0, noise, timesteps
            As in `add_noise`.

        Returns
        -------
        Tensor of shape (n, *input_shape)
        """
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(x0, noise, timesteps)
        return noise if kind == "epsilon" else x0

    def denoising_loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of the network's prediction: the loss the model was pretrained with.

        Parameters
        ----------
        x0, noise, timesteps
            As in `add_noise`.

        Returns
        -------
        Tensor of shape (), float32
        """
        prediction = self.predict(self.add_noise(x0, noise, timesteps), timesteps)
        target = self.target(x0, noise, timesteps)
        # A network with learned variances has twice the channels; the mean comes first.
        return F.mse_loss(prediction[:, : target.shape[1]].float(), target.float())

    def check_timestep(self, timestep: int, name: str = "timestep") -> None:
        """Raise ValueError for a timestep that the network was not trained on."""
        if not 0 <= timestep <= self.max_timestep:
            raise ValueError(
                f"{name} must be from 0 to {self.max_timestep}, the last that the backbone was trained on; "
                f"got {shown(timestep)}"
            )

    def check_channels(self, channels: int) -> None:
        """Raise ValueError for images whose channels cannot be made those of the backbone."""
        if channels != self.image_shape[0] and (channels, self.image_shape[0]) not in _CHANNEL_CHANGES:
            raise ValueError(
                f"X has images of {channels} channels, which cannot be adapted "
                f"to the {self.image_shape[0]} of the backbone; channel_axis says where X has its channels"
            )

    def to(self, device: torch.device | str) -> PixelBackbone:
        """Move the network in place and return this backbone."""
        self.network.to(device)
        return self

    def copy(self) -> PixelBackbone:
        """Return a backbone with weights of its own."""
        return copy.deepcopy(self)

    def fingerprint(self) -> str:
        """Return a hash of weights, architecture, schedule and image shape, as a cache key."""
        digest = hashlib.sha256()
        for config in (self.network.config, self.scheduler.config):
            # Without what diffusers notes of itself, such as the folder that weights came from.
            public = {key: value for key, value in config.items() if not key.startswith("_")}
            digest.update(json.dumps(public, sort_keys=True, default=str).encode())
        digest.update(f"{self.image_shape}{self.patch_size}".encode())
        tensors = {**self.network.state_dict(), "alphas_cumprod": self.scheduler.alphas_cumprod}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Save as a diffusers ``DDPMPipeline`` folder with safetensors weights.

        ``DDPMPipeline.from_pretrained(folder)`` and ``load_backbone(folder)`` both read it. Where `patch_size`
        is above 1, what diffusers samples are images folded by `torch.nn.functional.pixel_unshuffle`.

        Parameters
        ----------
        folder : path
            Made where it does not exist. A backbone in it is replaced once the new one is complete on the disk, and
            files of other names stay.
        dtype : {"float32", "bfloat16"}, default="float32"
            Type of the weights in the file.

        Raises
        ------
        ValueError
            For a folder that is a file, or no path, or another `dtype`.
        OSError
            Where the folder cannot be written to, for instance for want of space.
        """
        with ONE_AT_A_TIME:
            from diffusers import DDPMPipeline

        folder = as_folder(folder)
        if not isinstance(dtype, str) or dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16'; got {shown(dtype)}")
        network = self.network
        if dtype != "float32":
            network = copy.deepcopy(network)
            for parameter in network.parameters():
                parameter.data = parameter.data.to(getattr(torch, dtype))
        record = {**self.recipe, "image_shape": list(self.image_shape), "patch_size": self.patch_size}
        # The index last: without it, nobody takes half of a pipeline, or one without its record, for a whole one.
        with replacing(folder, last=INDEX_FILE) as partial:
            DDPMPipeline(network, self.scheduler).save_pretrained(partial, safe_serialization=True)
            (partial / RECIPE_FILE).write_text(json.dumps(record, indent=2) + "\n")

    def __getstate__(self) -> dict[str, Any]:
        # By configuration and CPU weights: a pickle then loads without the device it was made on.
        return {
            "network_config": dict(self.network.config),
            "weights": {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()},
            "scheduler_config": dict(self.scheduler.config),
            "image_shape": self.image_shape,
            "patch_size": self.patch_size,
            "recipe": self.recipe,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        with ONE_AT_A_TIME:
            from diffusers import DDPMScheduler

        self.__init__(  # type: ignore[misc]
            new_network(state["network_config"], state["weights"], "of the pickle"),
            DDPMScheduler.from_config(state["scheduler_config"]),
            image_shape=state["image_shape"],
            patch_size=state["patch_size"],
            recipe=state["recipe"],
        )


_CHANNEL_CHANGES = frozenset({(1, 3), (3, 1), (4, 3), (4, 1)})


def _adapt_channels(images: Tensor, channels: int) -> Tensor:
    found = images.shape[1]
    if found == channels:
        return images
    if (found, channels) not in _CHANNEL_CHANGES:
        raise ValueError(f"images of {found} channels cannot be adapted to {channels}")
    images = images[:, :3]  # without alpha
    if channels == 3:
        return images.expand(-1, 3, -1, -1) if found == 1 else images
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _cover(images: Tensor, height: int, width: int) -> Tensor:
    scale = max(height / images.shape[2], width / images.shape[3])
    cover = (
        max(height, math.ceil(images.shape[2] * scale - 1e-6)),
        max(width, math.ceil(images.shape[3] * scale - 1e-6)),
    )
    images = F.interpolate(images, size=cover, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (cover[0] - height) // 2, (cover[1] - width) // 2
    return images[:, :, top : top + height, left : left + width]
