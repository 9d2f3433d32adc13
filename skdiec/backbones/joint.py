"""Transformers over latents that have the prompt's tokens beside the image's: flow matching, joint blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skdiec.backbones.levels import flow_levels
from skdiec.backbones.models import config_of
from skdiec.backbones.transformer import TransformerBackbone


class StableDiffusion3Backbone(TransformerBackbone):
    """Stable Diffusion 3 and 3.5: told the empty prompt, for which T5 is not needed."""

    title = "Stable Diffusion 3 and 3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    networks = ("SD3Transformer2DModel",)
    noises = ("FlowMatchEulerDiscreteScheduler",)
    image_output = 1
    condition_keys = ("encoder_hidden_states", "pooled_projections")
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoders encode the empty prompt: zeros in place of a T5 that is not there."""
        embeds, _, pooled, _ = pipeline.encode_prompt(
            "", "", "", do_classifier_free_guidance=False, device=torch.device("cpu")
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        return self.network(x, timestep=time, **self.told(x), return_dict=False)[0]


class FluxBackbone(TransformerBackbone):
    """Flux schnell and dev: told the empty prompt, and which patch is where."""

    title = "Flux schnell and dev"
    pipelines = ("FluxPipeline",)
    networks = ("FluxTransformer2DModel",)
    noises = ("FlowMatchEulerDiscreteScheduler",)
    blocks = ("transformer_blocks", "single_transformer_blocks")
    image_output = 1
    condition_keys = ("encoder_hidden_states", "pooled_projections")
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def __init__(self, network: nn.Module, scheduler: Any, *arguments: Any, **options: Any) -> None:
        count = int(scheduler.config.num_train_timesteps)
        levels = flow_levels(count, time_scale=1 / count)
        super().__init__(network, scheduler, *arguments, levels=levels, **options)

    def _latent_channels(self, network: nn.Module) -> int:
        return int(config_of(network).in_channels) // _PATCH**2

    def _side_multiple(self, network: nn.Module) -> int:
        return _PATCH

    def _default_size(self, network: nn.Module, factor: int) -> tuple[int, int]:
        return 128 * factor, 128 * factor

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoders encode the empty prompt."""
        embeds, pooled, _ = pipeline.encode_prompt("", device=torch.device("cpu"))
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt, patches of latents as tokens."""
        (rows, columns), told = self.grid(), self.told(x)
        tokens = nn.functional.pixel_unshuffle(x, _PATCH).flatten(2).transpose(1, 2)
        places = x.new_zeros(rows, columns, 3)
        places[..., 1] = torch.arange(rows, device=x.device)[:, None]
        places[..., 2] = torch.arange(columns, device=x.device)
        # What the network learned of guidance is of no use here: it is told of none.
        guidance = x.new_full((len(x),), 1.0) if self.network.config.guidance_embeds else None
        output = self.network(
            hidden_states=tokens,
            timestep=time.to(x.dtype),
            guidance=guidance,
            **told,
            txt_ids=x.new_zeros(told["encoder_hidden_states"].shape[1], 3),
            img_ids=places.flatten(0, 1),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(output.transpose(1, 2).unflatten(2, (rows, columns)), _PATCH)


_PATCH = 2
"""Cells of latents along each side of a token of Flux."""


class AuraFlowBackbone(TransformerBackbone):
    """AuraFlow: told the empty prompt, behind tokens that stand for nothing."""

    title = "AuraFlow"
    pipelines = ("AuraFlowPipeline",)
    networks = ("AuraFlowTransformer2DModel",)
    noises = ("FlowMatchEulerDiscreteScheduler",)
    blocks = ("joint_transformer_blocks", "single_transformer_blocks")
    image_output = 1
    condition_keys = ("encoder_hidden_states",)
    text_parts = ("text_encoder", "tokenizer")

    def __init__(self, network: nn.Module, scheduler: Any, *arguments: Any, **options: Any) -> None:
        count = int(scheduler.config.num_train_timesteps)
        levels = flow_levels(count, time_scale=1 / count)
        super().__init__(network, scheduler, *arguments, levels=levels, **options)

    @classmethod
    def encode_empty_prompt(cls, pipeline: Any) -> dict[str, Tensor]:
        """Have the pipeline's text encoder encode the empty prompt."""
        embeds, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False, device=torch.device("cpu"))
        return {"encoder_hidden_states": embeds}

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Call the network with the empty prompt."""
        return self.network(x, timestep=time.to(x.dtype), **self.told(x), return_dict=False)[0]
