"""Pixel-space backbones: a diffusers ``UNet2DModel`` with its noise schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from skdiec.backbones.adapting import fold, unfold
from skdiec.backbones.base import Backbone
from skdiec.backbones.config_files import Fields
from skdiec.backbones.folders import as_folder, replacing
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.networks import MAX_SIDE, check_network_config, new_network, sides
from skdiec.backbones.repository import INDEX_FILE, Index
from skdiec.backbones.writing import RECIPE_FILE, rounded
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

_CONFIGURATION, _RECIPE = "the backbone's configuration", "the backbone's recipe"

_OTHER_PIPELINES = frozenset({"KarrasVePipeline", "LDMPipeline", "LDMSuperResolutionPipeline"})
"""Pipelines of a ``UNet2DModel`` that does not denoise pixels, or not as it is told to, whatever lies beside it."""

_PIPELINES = {
    "CMStochasticIterativeScheduler": "ConsistencyModelPipeline",
    "ScoreSdeVeScheduler": "ScoreSdeVePipeline",
}
"""Classes of the pipelines that sample with a schedule, where they are not DDPMPipeline."""


class PixelBackbone(Backbone):
    """A denoising U-Net over pixels, with its forward process.

    Parameters
    ----------
    network : diffusers.UNet2DModel
        The denoiser. It is used as it is; `load_backbone` copies what callers own.
    scheduler : diffusers.DDPMScheduler, ScoreSdeVeScheduler, EDMEulerScheduler or CMStochasticIterativeScheduler
        The noise schedule, the forward process and the prediction type.
    image_shape : tuple of int, default=None
        ``(channels, height, width)`` of the images that the model was trained on. None takes the network's
        own input channels and sample size.
    patch_size : int, default=1
        Side of the squares of pixels that are folded into channels before the network
        (space-to-depth), which makes larger images affordable.
    recipe : dict, default=None
        How the network was trained, as `pretrain` records it.
    null_class : int, default=None
        Of a network that is told the class of each image: the class that stands for none. None is the mean of all
        classes' embeddings.

    Attributes
    ----------
    input_shape : tuple of int
        ``(channels, height, width)`` that the network sees: sides are rounded up to what its levels can halve.

    Raises
    ------
    ValueError
        For a network that can't be used (see `load_backbone`), and where its configuration, `scheduler`, `image_shape`,
        `patch_size`, `recipe` and `null_class` contradict each other.
    """

    networks = ("UNet2DModel",)
    title = "DDPM and other models of a UNet2DModel over pixels"
    pipelines = ("DDPMPipeline",)

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether there is nothing beside the network that would make latents of pixels, or more of noise."""
        return not index.parts.keys() - {"unet", "scheduler"} and index.kind not in _OTHER_PIPELINES

    def __init__(
        self,
        network: UNet2DModel,
        scheduler: DDPMScheduler,
        *,
        image_shape: tuple[int, int, int] | None = None,
        patch_size: int = 1,
        recipe: dict[str, Any] | None = None,
        null_class: int | None = None,
    ) -> None:
        config = check_network_config(network.config, _CONFIGURATION)
        recipe = dict(recipe or {})
        given = {"patch_size": patch_size, "image_shape": image_shape, "null_class": null_class}
        fields = Fields({**recipe, **given}, _RECIPE)
        self.patch_size = fields.integer("patch_size", 1, math.isqrt(config["in_channels"]))
        image_shape, input_shape = _shapes(config, fields, self.patch_size)
        super().__init__(network, scheduler, image_shape=image_shape, input_shape=input_shape)
        self.recipe = recipe
        if type(scheduler).__name__ == "ScoreSdeVeScheduler":
            self.value_range = (0.0, 1.0)
        check_time_embedding(config, scheduler, _CONFIGURATION)
        last = last_timestep(fields, self.num_train_timesteps - 1)
        if config["time_embedding_type"] == "learned" and last >= config["num_train_timesteps"]:
            raise ValueError(
                f"{_CONFIGURATION}: num_train_timesteps must be above the last timestep, {last}; got "
                f"{config['num_train_timesteps']}"
            )
        self.standardize = is_standardized(fields)
        self.null_class = _check_class(config, fields)
        if self.null_class is None and config["num_class_embeds"] is not None:
            # In place of labels, which there are none of.
            network.class_embedding.register_forward_hook(_mean_embedding)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network, for no class in particular where it knows classes."""
        labels = None
        if self.network.config.num_class_embeds is not None:
            labels = torch.full((len(x),), self.null_class or 0, device=x.device)
        return self.network(x, time, class_labels=labels, return_dict=False)[0]

    def prepare(self, images: Tensor) -> Tensor:
        """Adapt images to the network's input.

        Channels and size are adapted as by `Backbone.prepare`. What space-to-depth and the network's downsampling
        cannot divide is filled by repeating the border.

        Parameters
        ----------
        images : Tensor of shape (n, channels, height, width)
            Floating point, nominally in [-1, 1].

        Returns
        -------
        Tensor of shape (n, *input_shape)
            On the same device, of the same dtype.
        """
        return fold(super().prepare(images), *self.input_shape[1:], self.patch_size)

    def decode(self, x0: Tensor) -> Tensor:
        """Undo `prepare`, but for what it cropped: images of `image_shape` in [-1, 1]."""
        return super().decode(unfold(x0, *self.image_shape[1:], self.patch_size))

    def settings(self) -> list[Any]:
        """Return what else features depend on, as JSON can hold it."""
        return [*super().settings(), self.patch_size, *([] if self.null_class is None else [self.null_class])]

    def save_pretrained(self, folder: str | Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
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
            import diffusers

        folder = as_folder(folder)
        network = rounded(self.network, dtype)
        record = {**self.recipe, "image_shape": list(self.image_shape), "patch_size": self.patch_size}
        if self.null_class is not None:
            record["null_class"] = self.null_class
        # The index last: without it, nobody takes half of a pipeline, or one without its record, for a whole one.
        with replacing(folder, last=INDEX_FILE) as partial:
            pipeline = getattr(diffusers, _PIPELINES.get(type(self.scheduler).__name__, "DDPMPipeline"))
            pipeline(network, self.scheduler).save_pretrained(partial, safe_serialization=True)
            (partial / RECIPE_FILE).write_text(json.dumps(record, indent=2) + "\n")

    def __getstate__(self) -> dict[str, Any]:
        # By configuration and CPU weights: a pickle then loads without the device it was made on.
        return {
            "network_config": dict(self.network.config),
            "weights": {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()},
            "scheduler": (type(self.scheduler).__name__, dict(self.scheduler.config)),
            "image_shape": self.image_shape,
            "patch_size": self.patch_size,
            "recipe": self.recipe,
            "null_class": self.null_class,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        with ONE_AT_A_TIME:
            import diffusers

        kind, config = state["scheduler"]
        self.__init__(  # type: ignore[misc] # checks all of it anew
            new_network(state["network_config"], state["weights"], "of the pickle"),
            getattr(diffusers, kind).from_config(config),
            image_shape=state["image_shape"],
            patch_size=state["patch_size"],
            recipe=state["recipe"],
            null_class=state["null_class"],
        )


def _mean_embedding(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return module.weight.mean(dim=0).expand_as(output)


def _shapes(
    config: Mapping[str, Any], fields: Fields, patch_size: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes of images and of what the network sees."""
    size, channels = sides(config, _CONFIGURATION), int(config["in_channels"])
    image_shape = None
    if fields.values["image_shape"] is not None:
        image_shape = fields.shape("image_shape", MAX_SIDE * patch_size)
    if size is None:
        if image_shape is None:
            raise ValueError("the backbone's configuration has no sample_size, so image_shape must be stated")
        size = math.ceil(image_shape[1] / patch_size), math.ceil(image_shape[2] / patch_size)
    height, width = size
    image_shape = image_shape or (channels // patch_size**2, height * patch_size, width * patch_size)
    # What the network halves as often as it has levels must be even that often.
    divisor = 2 ** (len(config["block_out_channels"]) - 1)
    height, width = (divisor * math.ceil(side / divisor) for side in (height, width))
    if image_shape[0] * patch_size**2 != channels:
        raise ValueError(
            f"{_RECIPE}: image_shape {image_shape} and patch_size {patch_size} make "
            f"{image_shape[0] * patch_size**2} channels, in_channels of the network is {channels}"
        )
    if image_shape[1] > height * patch_size or image_shape[2] > width * patch_size:
        raise ValueError(
            f"{_RECIPE}: image_shape {image_shape} is larger than what the network sees, "
            f"{(height * patch_size, width * patch_size)}"
        )
    return image_shape, (channels, height, width)


def check_time_embedding(config: Mapping[str, Any], scheduler: Any, where: str) -> None:
    """Raise ValueError where a network is told of noise otherwise than its schedule has it.

    Parameters
    ----------
    config : mapping
        Of a ``UNet2DModel``.
    scheduler : diffusers.SchedulerMixin
    where : str
        What errors name.
    """
    kind = type(scheduler).__name__
    if (config["time_embedding_type"] == "fourier") != (kind == "ScoreSdeVeScheduler"):
        raise ValueError(
            f"{where}: time_embedding_type 'fourier' is that of score-based networks (NCSN++, variance exploding), and "
            f"goes with a ScoreSdeVeScheduler only; got {config['time_embedding_type']!r} and a {kind}"
        )


def last_timestep(recipe: Fields, last: int) -> int:
    """Return the last timestep that a network was trained on.

    Parameters
    ----------
    recipe : Fields
        As `pretrain` records it.
    last : int
        Last timestep of the noise schedule.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        Where it is none of the schedule's.
    """
    return _settings(recipe, max_timestep=last).integer("max_timestep", 0, last)


def is_standardized(recipe: Fields) -> bool:
    """Return whether a network was trained on images of the same brightness and contrast.

    Parameters
    ----------
    recipe : Fields
        As `pretrain` records it.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        Where it is said otherwise than by true or false.
    """
    return bool(_settings(recipe, standardize=False).choice("standardize", (False, True)))


def _settings(recipe: Fields, **defaults: Any) -> Fields:
    """Return the settings of a training, with defaults for what it does not say."""
    found = recipe.mapping("settings") if "settings" in recipe.values else {}
    return Fields({**defaults, **found}, recipe.where)


def _check_class(config: Mapping[str, Any], fields: Fields) -> int | None:
    """Return the class that stands for none, where one is named."""
    count = config["num_class_embeds"]
    if fields.values["null_class"] is None:
        return None
    if count is None:
        raise ValueError(f"null_class is for networks that are told classes; got {shown(fields.values['null_class'])}")
    return fields.integer("null_class", 0, count - 1)
