"""Backbones over latents: what they share, and the U-Nets among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from skdiec.activations import as_map
from skdiec.backbones.autoencoders import CLASSES, Autoencoder
from skdiec.backbones.base import Backbone
from skdiec.backbones.config_files import Fields
from skdiec.backbones.levels import NoiseLevels
from skdiec.backbones.models import config_of
from skdiec.backbones.networks import sides
from skdiec.backbones.parts import Parts
from skdiec.backbones.repository import Index
from skdiec.messages import shown

_MAX_SIDE = 8192


class LatentBackbone(Backbone):
    """A network over the latents of an autoencoder, told of nothing but the noise.

    Parameters
    ----------
    network : nn.Module
        The denoiser. It is used as it is.
    scheduler : diffusers.SchedulerMixin
        The noise schedule it was trained with.
    autoencoder : Autoencoder
    condition : mapping of str to Tensor, default=None
        What the network is told in place of a prompt, under the names of its arguments; each of shape (1, ...).
    image_size : int or tuple of int, default=None
        ``(height, width)`` of the images that are encoded. None is the size that the network was trained on.
    levels : NoiseLevels, default=None
        The levels of noise. None is those of `scheduler`.

    Raises
    ------
    ValueError
        Where network, autoencoder, `scheduler`, `condition` and `image_size` do not fit each other.
    """

    encodes = True
    autoencoder_part: ClassVar[str] = "vae"
    """What its pipelines call their autoencoder."""

    autoencoder_scale: ClassVar[float | None] = None
    """What latents are multiplied by; None is what the autoencoder's configuration says."""

    noises: ClassVar[tuple[str, ...]] = ("DDPMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler")
    """Kinds of noise that its networks are trained with."""

    condition_keys: ClassVar[tuple[str, ...]] = ()
    """What its networks are told in place of a prompt."""

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        autoencoder: Autoencoder,
        *,
        condition: Mapping[str, Tensor] | None = None,
        image_size: int | Sequence[int] | None = None,
        levels: NoiseLevels | None = None,
    ) -> None:
        kind = type(scheduler).__name__
        if kind not in self.noises:
            raise ValueError(f"the scheduler of {self.title} must be a {' or '.join(self.noises)}; got a {kind}")
        self.autoencoder = autoencoder
        condition = self._checked_condition(condition)
        channels = self._latent_channels(network)
        if channels != autoencoder.channels:
            raise ValueError(
                f"the network of {self.title} must take the {autoencoder.channels} channels of its autoencoder's "
                f"latents; got one of {channels}, such as for inpainting"
            )
        step = autoencoder.factor * self._side_multiple(network)
        default = self._default_size(network, autoencoder.factor) if image_size is None else (0, 0)
        height, width = _size(image_size, default, step)
        super().__init__(
            network,
            scheduler,
            image_shape=(autoencoder.image_channels, height, width),
            input_shape=(channels, height // autoencoder.factor, width // autoencoder.factor),
            levels=levels,
        )
        self.condition = condition

    # What families differ in

    def _latent_channels(self, network: nn.Module) -> int:
        return int(config_of(network).in_channels)

    def _side_multiple(self, network: nn.Module) -> int:
        """Return what sides of latents must be multiples of."""
        return int(config_of(network).patch_size)

    def _default_size(self, network: nn.Module, factor: int) -> tuple[int, int]:
        """Return the sides of the images that the network was trained on."""
        where = f"the configuration of the network of {self.title}"
        size = sides(config_of(network), where)
        if size is None:
            raise ValueError(f"{where} has no sample_size, so image_size must be stated")
        return factor * size[0], factor * size[1]

    @classmethod
    def from_parts(cls, parts: Parts) -> LatentBackbone:
        """Make a backbone of what was loaded, with what its network is told of an empty prompt."""
        record = Fields(parts.record, "the backbone's record")
        if parts.autoencoder is None:
            raise ValueError(f"a pipeline of {cls.title} must have an autoencoder ({' or '.join(CLASSES)}); got none")
        scale = cls.autoencoder_scale
        if "latent_scale" in parts.record:
            scale = record.number("latent_scale", 1e-12, 1e12)
        size = parts.image_size
        if size is None and "image_shape" in parts.record:
            _, height, width = record.shape("image_shape", _MAX_SIDE)
            size = height, width
        return cls(
            parts.network,
            parts.scheduler,
            Autoencoder(parts.autoencoder, scale),
            condition=cls._condition(parts),
            image_size=size,
        )

    @classmethod
    def _condition(cls, parts: Parts) -> Mapping[str, Tensor]:
        if parts.condition is not None:
            return parts.condition
        condition = cls.empty_condition(parts.network, parts.options)
        if condition is not None:
            return condition
        if parts.prompt is None:
            needed = ", ".join(f"{key!r}: ..." for key in cls.condition_keys)
            raise ValueError(
                f"the network of {cls.title} is told something in place of a prompt, and the pipeline has no text "
                f"encoder that would make it of an empty one: pass condition={{{needed}}} to load_backbone"
            )
        with torch.no_grad():
            return {
                name: value.float() if value.is_floating_point() else value
                for name, value in cls.encode_empty_prompt(parts.prompt()).items()
            }

    @classmethod
    def empty_condition(cls, network: nn.Module, options: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return what stands for no prompt where it takes no text encoder, None where it does.

        Parameters
        ----------
        network : nn.Module
        options : mapping
            Of the pipeline's index.

        Returns
        -------
        dict of str to Tensor of shape (1, ...) or None
        """
        return None if cls.condition_keys else {}

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have a pipeline's text encoders encode the empty prompt.

        Parameters
        ----------
        pipeline : diffusers.DiffusionPipeline
            With the text parts; the autoencoder may be missing.

        Returns
        -------
        dict of str to Tensor of shape (1, ...)
        """
        raise NotImplementedError

    # What they have in common

    def _checked_condition(self, condition: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        found = {} if condition is None else dict(condition)
        if found.keys() != set(self.condition_keys):
            raise ValueError(
                f"condition must have {', '.join(self.condition_keys) or 'nothing'} for {self.title}; "
                f"got {', '.join(map(shown, found)) or 'nothing'}"
            )
        for name, value in found.items():
            if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != 1:
                raise ValueError(
                    f"condition: {name} must be a tensor of shape (1, ...); got "
                    f"{shown(tuple(value.shape) if isinstance(value, Tensor) else value)}"
                )
        return {name: value.detach() for name, value in found.items()}

    def told(self, x: Tensor) -> dict[str, Tensor]:
        """Return the condition for a batch, in its type and on its device.

        Parameters
        ----------
        x : Tensor of shape (n, ...)

        Returns
        -------
        dict of str to Tensor of shape (n, ...)
        """
        told = {}
        for name, value in self.condition.items():
            value = value.to(x.device, x.dtype if value.is_floating_point() else None)
            told[name] = value.repeat(len(x), *[1] * (value.ndim - 1))  # not expanded: some networks view it otherwise
        return told

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn prepared images into latents, of the scale that the network was trained on."""
        return self.autoencoder.encode(pixels)

    def decode(self, x0: Tensor) -> Tensor:
        """Turn latents into images."""
        return self.autoencoder.decode(x0)

    def parts(self) -> dict[str, nn.Module]:
        """Return network and autoencoder, by the names that pipelines have for them."""
        return {self.network_part: self.network, self.autoencoder_part: self.autoencoder.model}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that features depend on, under names of their own."""
        return {**super().tensors(), **{f"condition:{name}": value for name, value in self.condition.items()}}

    def settings(self) -> list[Any]:
        """Return what else features depend on, as JSON can hold it."""
        return [*super().settings(), self.autoencoder.scale]

    def record(self) -> dict[str, Any]:
        """Return what `from_parts` needs besides the parts, as JSON can hold it."""
        return {**super().record(), "latent_scale": self.autoencoder.scale}

    def _set_parts(self, parts: dict[str, nn.Module]) -> None:
        super()._set_parts(parts)
        scale = cast("float", self.autoencoder)  # a pickle has no more of it
        self.autoencoder = Autoencoder(parts[self.autoencoder_part], scale)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "autoencoder": self.autoencoder.scale}


class _LatentUNet(LatentBackbone):
    """What the U-Nets of latents share."""

    networks = ("UNet2DConditionModel",)

    def _side_multiple(self, network: nn.Module) -> int:
        return 2 ** (len(config_of(network).block_out_channels) - 1)

    def layers(self) -> list[str]:
        """Name the blocks of the U-Net."""
        return [name for name in super().layers() if name.startswith(("down_blocks.", "mid_block", "up_blocks."))]

    def to_map(self, layer: str, output: Any) -> Tensor | None:
        """Lay out a block's output; of an attention block's tokens, only those of images."""
        if isinstance(output, (tuple, list)):
            output = output[0] if output else None
        if not isinstance(output, Tensor) or output.ndim == 4:
            return as_map(layer, output)
        # Tokens of the prompt must not pass for those of an image.
        if output.ndim != 3 or layer.rpartition(".")[0].rpartition(".")[2] != "transformer_blocks":
            return None
        return tokens_to_map(output, self.input_shape[1:])


def tokens_to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Lay out tokens of an image, whose sides were halved some times.

    Parameters
    ----------
    tokens : Tensor of shape (n, h * w, c)
    size : tuple of int
        Height and width before.

    Returns
    -------
    Tensor of shape (n, c, h, w) or None
        None where there are too many or too few of them.
    """
    height, width = size
    while height * width > tokens.shape[1] and min(height, width) > 1:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return tokens.transpose(1, 2).unflatten(2, (height, width)) if height * width == tokens.shape[1] else None


def _size(given: Any, default: tuple[int, int], step: int) -> tuple[int, int]:
    """Check the sides of the images that are encoded."""
    if given is None:
        # Of odd sizes, the next that the network can halve.
        return step * math.ceil(default[0] / step), step * math.ceil(default[1] / step)
    sides = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given, given)
    is_right = len(sides) == 2 and all(
        isinstance(side, int) and not isinstance(side, bool) and 0 < side <= _MAX_SIDE and side % step == 0
        for side in sides
    )
    if not is_right:
        raise ValueError(
            f"image_size must be a multiple of {step}, or a pair of them, (height, width), up to {_MAX_SIDE}; "
            f"got {shown(given)}"
        )
    return sides


class StableDiffusionBackbone(_LatentUNet):
    """Stable Diffusion 1 and 2: a U-Net that is told the empty prompt."""

    title = "Stable Diffusion 1 and 2"
    pipelines = ("StableDiffusionPipeline",)
    condition_keys = ("encoder_hidden_states",)
    text_parts = ("text_encoder", "tokenizer")

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether the network is told of nothing but a prompt."""
        kinds = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds")
        return all(config.get(kind) is None for kind in kinds)

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoder encode the empty prompt."""
        embeds, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
        return {"encoder_hidden_states": embeds}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        return self.network(x, time, **self.told(x), return_dict=False)[0]


class StableDiffusionXLBackbone(_LatentUNet):
    """Stable Diffusion XL: a U-Net that is told zeros in place of a prompt, and the size of the images."""

    title = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline",)
    condition_keys = ("encoder_hidden_states", "text_embeds")
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether the network is told of a prompt and of sizes, but of no aesthetic score, as refiners are."""
        is_refiner = bool(index.options.get("requires_aesthetics_score", False))
        return config.get("addition_embed_type") == "text_time" and not is_refiner

    @classmethod
    def empty_condition(cls, network: nn.Module, options: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return zeros, unless the pipeline's index says that the empty prompt is encoded."""
        if options.get("force_zeros_for_empty_prompt", True) is False:
            return None
        config = config_of(network)
        pooled = config.projection_class_embeddings_input_dim - _N_SIZES * config.addition_time_embed_dim
        return {
            "encoder_hidden_states": torch.zeros(1, 77, config.cross_attention_dim),
            "text_embeds": torch.zeros(1, pooled),
        }

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoders encode the empty prompt."""
        embeds, _, pooled, _ = pipeline.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt, for images of this size that were not cropped."""
        told, (height, width) = self.told(x), self.image_shape[1:]
        sizes = x.new_tensor([[height, width, 0, 0, height, width]]).expand(len(x), -1)
        added = {"text_embeds": told["text_embeds"], "time_ids": sizes}
        states = told["encoder_hidden_states"]
        return self.network(x, time, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]


_N_SIZES = 6
"""Numbers that tell the network of SDXL sizes: the original ones, where it was cropped, and those of the image."""


class LDMBackbone(_LatentUNet):
    """LDM: an unconditional U-Net over the latents of a VQ model."""

    title = "LDM"
    pipelines = ("LDMPipeline",)
    networks = ("UNet2DModel",)
    autoencoder_part = "vqvae"

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether there is an autoencoder, and the network is told of nothing at all."""
        has_autoencoder = any(kind in CLASSES for _, kind in index.parts.values())
        return has_autoencoder and config.get("class_embed_type") is None and config.get("num_class_embeds") is None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network."""
        return self.network(x, time, return_dict=False)[0]


class KandinskyBackbone(_LatentUNet):
    """Kandinsky 2.2: a U-Net over the latents of a VQ model, which is told the embedding of an empty image."""

    title = "Kandinsky 2.2"
    pipelines = ("KandinskyV22Pipeline",)
    autoencoder_part = "movq"
    autoencoder_scale = 1.0
    condition_keys = ("image_embeds",)

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether the network is told of an image."""
        return config.get("addition_embed_type") == "image" and config.get("encoder_hid_dim_type") == "image_proj"

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the embedding of an empty image."""
        return self.network(x, time, encoder_hidden_states=None, added_cond_kwargs=self.told(x), return_dict=False)[0]
