"""Transformers over latents whose stream of tokens is that of the image alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skdiec.backbones.base import Backbone
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.latent import LatentBackbone
from skdiec.backbones.levels import flow_levels
from skdiec.backbones.models import config_of
from skdiec.backbones.repository import Index


class TokenMaps(Backbone):
    """What all transformers share: only their blocks' tokens of images make maps."""

    network_part = "transformer"
    blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """Lists of the network's blocks, in order of execution."""

    image_output: ClassVar[int] = 0
    """Which of a block's outputs are the tokens of the image, where it has several."""

    def layers(self) -> list[str]:
        """Name the blocks."""
        lists = {name: getattr(self.network, name) for name in self.blocks}
        return [f"{name}.{index}" for name, blocks in lists.items() for index in range(len(blocks))]

    def to_map(self, layer: str, output: Any) -> Tensor | None:
        """Lay out a block's tokens of the image. What other modules return is no map."""
        if layer not in self.layers():
            return None
        if isinstance(output, (tuple, list)):
            output = output[self.image_output]
        height, width = self.grid()
        # What comes before the image's tokens are those of a prompt, or of nothing.
        return output[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))

    def grid(self) -> tuple[int, int]:
        """Return how many tokens an image has vertically and horizontally."""
        step = self._side_multiple(self.network)
        return self.input_shape[1] // step, self.input_shape[2] // step

    def _side_multiple(self, network: nn.Module) -> int:
        """Return what sides of the network's input must be multiples of."""
        return int(config_of(network).patch_size)


class TransformerBackbone(TokenMaps, LatentBackbone):
    """A transformer over patches of latents."""


class DiTBackbone(TransformerBackbone):
    """DiT: told the class that stands for none."""

    title = "DiT"
    pipelines = ("DiTPipeline",)
    networks = ("DiTTransformer2DModel",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        height, width = self.input_shape[1:]
        if height != width:
            raise ValueError(f"image_size must be square for DiT; got {self.image_shape[1:]}")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the null class, which comes after all classes."""
        labels = torch.full((len(x),), int(self.network.config.num_embeds_ada_norm), device=x.device)
        return self.network(x, timestep=time, class_labels=labels, return_dict=False)[0]


class PixArtBackbone(TransformerBackbone):
    """PixArt alpha and Sigma: told the empty prompt, and at 1024 pixels the size of the images."""

    title = "PixArt alpha and Sigma"
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    networks = ("PixArtTransformer2DModel",)
    condition_keys = ("encoder_hidden_states", "encoder_attention_mask")
    text_parts = ("text_encoder", "tokenizer")

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoder encode the empty prompt."""
        embeds, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False, device=torch.device("cpu"))
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            height, width = self.image_shape[1:]
            sizes = {
                "resolution": x.new_tensor([[height, width]]).expand(len(x), -1),
                "aspect_ratio": x.new_tensor([[height / width]]).expand(len(x), -1),
            }
        return self.network(x, timestep=time, **self.told(x), added_cond_kwargs=sizes, return_dict=False)[0]


class HunyuanDiTBackbone(TransformerBackbone):
    """HunyuanDiT: told the empty prompt of two encoders, and the size of the images."""

    title = "HunyuanDiT"
    pipelines = ("HunyuanDiTPipeline",)
    networks = ("HunyuanDiT2DModel",)
    blocks = ("blocks",)
    condition_keys = (
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
    )
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoders encode the empty prompt."""
        found = []
        for index, length in enumerate((77, 256)):
            found += pipeline.encode_prompt(
                "",
                device=torch.device("cpu"),
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                text_encoder_index=index,
            )[::2]
        return dict(zip(cls.condition_keys, found, strict=True))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompts."""
        with ONE_AT_A_TIME:
            from diffusers.models.embeddings import get_2d_rotary_pos_embed
            from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        network, (height, width), (rows, columns) = self.network, self.image_shape[1:], self.grid()
        region = get_resize_crop_region_for_grid((rows, columns), 512 // 8 // int(network.config.patch_size))
        rotary = get_2d_rotary_pos_embed(
            network.inner_dim // network.num_heads, region, (rows, columns), device=x.device, output_type="pt"
        )
        sizes = x.new_tensor([[1024, 1024, height, width, 0, 0]]).repeat(len(x), 1)
        return network(
            x,
            time.to(x.dtype),
            **self.told(x),
            image_meta_size=sizes,
            style=torch.zeros(len(x), dtype=torch.long, device=x.device),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]


class SanaBackbone(TransformerBackbone):
    """Sana: flow matching over strongly compressed latents, told the empty prompt."""

    title = "Sana"
    pipelines = ("SanaPipeline",)
    networks = ("SanaTransformer2DModel",)
    noises = ("FlowMatchEulerDiscreteScheduler",)
    condition_keys = ("encoder_hidden_states", "encoder_attention_mask")
    text_parts = ("text_encoder", "tokenizer")

    def __init__(self, network: nn.Module, scheduler: Any, *arguments: Any, **options: Any) -> None:
        count = int(scheduler.config.num_train_timesteps)
        levels = flow_levels(count, time_scale=float(config_of(network).get("timestep_scale", 1.0)))
        super().__init__(network, scheduler, *arguments, levels=levels, **options)

    @classmethod
    def accepts(cls, index: Index, config: Mapping[str, Any]) -> bool:
        """Return whether the network was not distilled for guidance."""
        return not config.get("guidance_embeds", False)

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoder encode the empty prompt, as for guidance: without an instruction."""
        *_, embeds, mask = pipeline.encode_prompt("", True, "", device=torch.device("cpu"))
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        return self.network(x, timestep=time, **self.told(x), return_dict=False)[0]


class LuminaBackbone(TransformerBackbone):
    """Lumina-Next: flow matching that is told how much signal there is, and the empty prompt."""

    title = "Lumina-Next"
    pipelines = ("LuminaPipeline",)
    networks = ("LuminaNextDiT2DModel",)
    noises = ("FlowMatchEulerDiscreteScheduler",)
    blocks = ("layers",)
    condition_keys = ("encoder_hidden_states", "encoder_mask")
    text_parts = ("text_encoder", "tokenizer")

    def __init__(self, network: nn.Module, scheduler: Any, *arguments: Any, **options: Any) -> None:
        levels = flow_levels(int(scheduler.config.num_train_timesteps), is_reversed=True)
        super().__init__(network, scheduler, *arguments, levels=levels, **options)

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoder encode the empty prompt."""
        embeds, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False, device=torch.device("cpu"))
        return {"encoder_hidden_states": embeds, "encoder_mask": mask}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        with ONE_AT_A_TIME:
            from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

        network, (rows, columns) = self.network, self.grid()
        n_trained = (int(network.config.sample_size) // int(network.config.patch_size)) ** 2
        rotary = get_2d_rotary_pos_embed_lumina(
            network.head_dim, 384, 384, linear_factor=math.sqrt(rows * columns / n_trained), ntk_factor=1.0
        )
        return network(
            hidden_states=x,
            timestep=time,
            **self.told(x),
            image_rotary_emb=rotary,
            cross_attention_kwargs={"base_sequence_length": n_trained},
            return_dict=False,
        )[0]
