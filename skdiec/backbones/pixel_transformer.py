"""Transformers over pixels: a diffusers ``DiTTransformer2DModel`` without an autoencoder, as `pretrain` trains them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skdiec.backbones.adapting import fold, unfold
from skdiec.backbones.config_files import Fields
from skdiec.backbones.folders import as_folder
from skdiec.backbones.models import config_of
from skdiec.backbones.networks import MAX_SIDE
from skdiec.backbones.parts import Parts
from skdiec.backbones.pixel import is_standardized, last_timestep
from skdiec.backbones.repository import Index
from skdiec.backbones.transformer import TokenMaps
from skdiec.backbones.writing import rounded, write
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, DiTTransformer2DModel

_CONFIGURATION, _RECIPE = "the backbone's configuration", "the backbone's recipe"


class PixelTransformerBackbone(TokenMaps):
    """A denoising transformer over patches of pixels, told the class that stands for none.

    Parameters
    ----------
    network : diffusers.DiTTransformer2DModel
        The denoiser. It is used as it is; `load_backbone` copies what callers own.
    scheduler : diffusers.DDPMScheduler
        The noise schedule, the forward process and the prediction type.
    image_shape : tuple of int, default=None
        ``(channels, height, width)`` of the images that the model was trained on. None takes the network's own input
        channels and a square of its sample size.
    recipe : dict, default=None
        How the network was trained, as `pretrain` records it.

    Attributes
    ----------
    input_shape : tuple of int
        ``(channels, height, width)`` that the network sees: sides are rounded up to whole patches.

    Raises
    ------
    ValueError
        For a network that cannot be used, and where its configuration, `scheduler`, `image_shape` and `recipe`
        contradict each other.
    """

    title = "DiT over pixels"
    networks = ("DiTTransformer2DModel",)
    pipelines = ("DiTPipeline",)
    absent_parts = ("vae",)

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether there is nothing beside the network that would make latents of pixels."""
        return not index.parts.keys() - {"transformer", "scheduler"}

    @classmethod
    def from_parts(cls, parts: Parts) -> PixelTransformerBackbone:
        """Make a backbone of what was loaded, in float32."""
        for name in ("image_size", "condition", "null_class"):
            if getattr(parts, name) is not None:
                raise ValueError(f"{name} is not for {cls.title}; got {shown(getattr(parts, name))}")
        recipe = dict(parts.record)
        shape = recipe.pop("image_shape", None)
        channels = config_of(parts.network).in_channels
        if shape is None and channels not in (1, 3):
            raise ValueError(
                f"a DiT of {channels} channels without an autoencoder: whether these are of pixels or of latents is "
                "not known; for latents, the pipeline must have its vae"
            )
        return cls(parts.network.float(), parts.scheduler, image_shape=shape, recipe=recipe)

    def __init__(
        self,
        network: DiTTransformer2DModel,
        scheduler: DDPMScheduler,
        *,
        image_shape: tuple[int, int, int] | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        if type(scheduler).__name__ != "DDPMScheduler":
            raise ValueError(f"the scheduler of {self.title} must be a DDPMScheduler; got a {type(scheduler).__name__}")
        config = Fields(dict(network.config), _CONFIGURATION)
        size, patch_size = config.integer("sample_size", 1, MAX_SIDE), config.integer("patch_size", 1, MAX_SIDE)
        channels = config.integer("in_channels", 1, 2**16)
        if config.values["out_channels"] is not None:
            config.choice("out_channels", (channels, 2 * channels))  # twice as many where variances are learned too
        fields = Fields({**(recipe or {}), "image_shape": image_shape}, _RECIPE)
        image_shape = (channels, size, size)
        if fields.values["image_shape"] is not None:
            found, height, width = fields.integers("image_shape", 1, MAX_SIDE, range(3, 4))
            image_shape = (found, height, width)
        height, width = (patch_size * math.ceil(side / patch_size) for side in image_shape[1:])
        if image_shape[0] != channels or max(height, width) != patch_size * math.ceil(size / patch_size):
            raise ValueError(
                f"{_RECIPE}: image_shape {image_shape} does not fit the network, which takes images of {channels} "
                f"channels whose longer side, in whole patches of {patch_size}, is {size}"
            )
        super().__init__(network, scheduler, image_shape=image_shape, input_shape=(channels, height, width))
        self.recipe = {name: value for name, value in fields.values.items() if name != "image_shape"}
        last_timestep(fields, self.num_train_timesteps - 1)
        self.standardize = is_standardized(fields)
        self._set_parts({self.network_part: network})

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the class that stands for none, which comes after all classes."""
        labels = torch.full((len(x),), int(self.network.config.num_embeds_ada_norm), device=x.device)
        estimate = self.network(x, timestep=time.expand(len(x)), class_labels=labels, return_dict=False)[0]
        return estimate[:, :, : x.shape[2], : x.shape[3]]

    def prepare(self, images: Tensor) -> Tensor:
        """Adapt images as `Backbone.prepare` does, and fill them to whole patches by repeating the border."""
        return fold(super().prepare(images), *self.input_shape[1:], 1)

    def decode(self, x0: Tensor) -> Tensor:
        """Undo `prepare`, but for what it cropped: images of `image_shape` in [-1, 1]."""
        return super().decode(unfold(x0, *self.image_shape[1:], 1))

    def save_pretrained(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Save as the folder of a diffusers pipeline without an autoencoder, with safetensors weights.

        ``load_backbone(folder)`` reads it, and diffusers the network alone:
        ``DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")``. Its class is 0. Called by diffusers,
        it takes square images only.

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
        folder = as_folder(folder)
        write(self, folder, {self.network_part: rounded(self.network, dtype)})

    def _set_parts(self, parts: dict[str, nn.Module]) -> None:
        super()._set_parts(parts)
        rows, columns = self.grid()
        if rows != columns:
            # At its end, diffusers lays tokens out as a square, whatever the image was.
            self.network.proj_out_2.register_forward_hook(_filling_a_square(rows, columns))


def _filling_a_square(rows: int, columns: int) -> Callable[[Any, Any, Tensor], Tensor]:
    """Return a hook that adds tokens below or right of those of an image, so that they are a square."""
    side = max(rows, columns)

    def fill(module: Any, inputs: Any, tokens: Tensor) -> Tensor:
        return F.pad(tokens.unflatten(1, (rows, columns)), (0, 0, 0, side - columns, 0, side - rows)).flatten(1, 2)

    return fill
