"""Tiny pipelines of every family of latents, with random weights, made of diffusers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

SAMPLE = 8
"""Cells along each side of the latents."""


@dataclass(frozen=True)
class Tiny:
    """How to make a tiny pipeline, and what its network is told."""

    pipeline: str
    network: Callable[[], torch.nn.Module]
    scheduler: Callable[[], Any]
    autoencoder: Callable[[], torch.nn.Module]
    condition: dict[str, tuple[int, ...]] = field(default_factory=dict)
    network_part: str = "transformer"
    autoencoder_part: str = "vae"
    image_size: int | None = None
    """Side of the images, where the network's own would be large."""

    def build(self) -> dict[str, Any]:
        """Return the parts, of weights that are the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, autoencoder = self.network().eval(), self.autoencoder().eval()
            # Some layers start at zero, which would hide what they do, and one with whatever was in the memory.
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    if name == "pad_token" or not parameter.any():
                        parameter.normal_(std=0.1)
        return {
            self.network_part: network.requires_grad_(False),
            "scheduler": self.scheduler(),
            self.autoencoder_part: autoencoder.requires_grad_(False),
        }

    def told(self) -> dict[str, torch.Tensor]:
        """Return a condition, random but the same each time."""
        generator = torch.Generator().manual_seed(5)
        made = {name: torch.randn(shape, generator=generator) for name, shape in self.condition.items()}
        return {name: torch.ones(value.shape) if "mask" in name else value for name, value in made.items()}


def kl(**config: Any) -> torch.nn.Module:
    """A variational autoencoder that halves sides once."""
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "sample_size": 16,
            **config,
        }
    )


def deep_kl() -> torch.nn.Module:
    """A variational autoencoder that halves sides three times, which some pipelines take for granted."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return kl(block_out_channels=(4,) * 4, **blocks)


def vq(**config: Any) -> torch.nn.Module:
    """An autoencoder with a codebook that halves sides once."""
    return diffusers.VQModel(
        **{
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "num_vq_embeddings": 16,
            **config,
        }
    )


def dc() -> torch.nn.Module:
    """A deep compression autoencoder that halves sides three times."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 4,
        decoder_block_types=("ResBlock",) * 4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41,
    )


def unet(**config: Any) -> torch.nn.Module:
    """A U-Net that is told of a prompt."""
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": SAMPLE,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **config,
        }
    )


def scaled(**config: Any) -> Any:
    """The schedule of Stable Diffusion."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.DDIMScheduler(**{**betas, "clip_sample": False, "set_alpha_to_one": False, **config})


def flow() -> Any:
    """The schedule of flow matching."""
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": SAMPLE}


def flux(**config: Any) -> torch.nn.Module:
    """A transformer of Flux."""
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
        **config,
    )


def _sd3(**config: Any) -> torch.nn.Module:
    return diffusers.SD3Transformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
        **config,
    )


def _pixart(**config: Any) -> torch.nn.Module:
    return diffusers.PixArtTransformer2DModel(
        **{**HEADS, "cross_attention_dim": 16, **config},
        in_channels=4,
        out_channels=8,
        caption_channels=12,
        norm_num_groups=1,
    )


FAMILIES = {
    "Stable Diffusion 1": Tiny(
        "StableDiffusionPipeline", unet, scaled, kl, {"encoder_hidden_states": (1, 7, 12)}, network_part="unet"
    ),
    "Stable Diffusion 2, v": Tiny(
        "StableDiffusionPipeline",
        lambda: unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        lambda: scaled(prediction_type="v_prediction"),
        kl,
        {"encoder_hidden_states": (1, 7, 12)},
        network_part="unet",
    ),
    "Stable Diffusion XL": Tiny(
        "StableDiffusionXLPipeline",
        lambda: unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 10
        ),
        scaled,
        lambda: kl(scaling_factor=0.13025),
        {"encoder_hidden_states": (1, 7, 12), "text_embeds": (1, 10)},
        network_part="unet",
    ),
    "LDM": Tiny(
        "LDMPipeline",
        lambda: diffusers.UNet2DModel(
            sample_size=SAMPLE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            attention_head_dim=8,
        ),
        scaled,
        lambda: vq(scaling_factor=0.5),
        network_part="unet",
        autoencoder_part="vqvae",
    ),
    "Kandinsky 2.2": Tiny(
        "KandinskyV22Pipeline",
        lambda: unet(
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=10,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            resnet_time_scale_shift="scale_shift",
        ),
        lambda: diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, prediction_type="epsilon"
        ),
        vq,
        {"image_embeds": (1, 10)},
        network_part="unet",
        autoencoder_part="movq",
    ),
    "DiT": Tiny(
        "DiTPipeline",
        lambda: diffusers.DiTTransformer2DModel(
            **HEADS, in_channels=4, out_channels=8, num_embeds_ada_norm=10, norm_num_groups=1
        ),
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        kl,
    ),
    "PixArt at 1024": Tiny(
        "PixArtAlphaPipeline",
        lambda: _pixart(sample_size=128, attention_head_dim=12, cross_attention_dim=24),
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        kl,
        {"encoder_hidden_states": (1, 7, 12), "encoder_attention_mask": (1, 7)},
        image_size=16,
    ),
    "PixArt": Tiny(
        "PixArtSigmaPipeline",
        _pixart,
        lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        kl,
        {"encoder_hidden_states": (1, 7, 12), "encoder_attention_mask": (1, 7)},
    ),
    "HunyuanDiT": Tiny(
        "HunyuanDiTPipeline",
        lambda: diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=SAMPLE,
            hidden_size=16,
            num_layers=4,
            mlp_ratio=2.0,
            cross_attention_dim=12,
            cross_attention_dim_t5=16,
            pooled_projection_dim=8,
            text_len=5,
            text_len_t5=6,
        ),
        lambda: scaled(prediction_type="v_prediction"),
        deep_kl,
        {
            "encoder_hidden_states": (1, 5, 12),
            "text_embedding_mask": (1, 5),
            "encoder_hidden_states_t5": (1, 6, 16),
            "text_embedding_mask_t5": (1, 6),
        },
    ),
    "Sana": Tiny(
        "SanaPipeline",
        lambda: diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=SAMPLE,
            patch_size=1,
        ),
        flow,
        dc,
        {"encoder_hidden_states": (1, 7, 12), "encoder_attention_mask": (1, 7)},
    ),
    "Lumina-Next": Tiny(
        "LuminaPipeline",
        lambda: diffusers.LuminaNextDiT2DModel(
            sample_size=SAMPLE,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=12,
        ),
        flow,
        deep_kl,
        {"encoder_hidden_states": (1, 7, 12), "encoder_mask": (1, 7)},
    ),
    "Stable Diffusion 3": Tiny(
        "StableDiffusion3Pipeline",
        _sd3,
        flow,
        lambda: kl(scaling_factor=1.5305, shift_factor=0.0609),
        {"encoder_hidden_states": (1, 9, 12), "pooled_projections": (1, 10)},
    ),
    "Stable Diffusion 3.5": Tiny(
        "StableDiffusion3Pipeline",
        lambda: _sd3(dual_attention_layers=(0,), qk_norm="rms_norm"),
        flow,
        lambda: kl(scaling_factor=1.5305, shift_factor=0.0609),
        {"encoder_hidden_states": (1, 9, 12), "pooled_projections": (1, 10)},
    ),
    "Flux schnell": Tiny(
        "FluxPipeline", flux, flow, lambda: kl(scaling_factor=0.3611, shift_factor=0.1159),
        {"encoder_hidden_states": (1, 9, 12), "pooled_projections": (1, 10)}, image_size=16,
    ),
    "Flux dev": Tiny(
        "FluxPipeline", lambda: flux(guidance_embeds=True), flow,
        lambda: kl(scaling_factor=0.3611, shift_factor=0.1159),
        {"encoder_hidden_states": (1, 9, 12), "pooled_projections": (1, 10)}, image_size=16,
    ),
    "AuraFlow": Tiny(
        "AuraFlowPipeline",
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=SAMPLE,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        flow,
        kl,
        {"encoder_hidden_states": (1, 7, 12)},
    ),
}  # fmt: skip
