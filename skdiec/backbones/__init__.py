"""Diffusion backbones: loading, adapting and pretraining them. The only room that imports diffusers."""

from skdiec.backbones.base import Backbone
from skdiec.backbones.devices import default_device, is_emulated
from skdiec.backbones.families import register
from skdiec.backbones.guard import check_share_explained
from skdiec.backbones.levels import linear_ratio
from skdiec.backbones.loading import load_backbone
from skdiec.backbones.parts import Parts
from skdiec.backbones.pixel import PixelBackbone
from skdiec.backbones.pretraining import Pretraining, pretrain, untrained_backbone
from skdiec.backbones.sampler import check_can_sample, make_sampler

__all__ = [
    "Backbone",
    "Parts",
    "PixelBackbone",
    "Pretraining",
    "check_can_sample",
    "check_share_explained",
    "default_device",
    "is_emulated",
    "linear_ratio",
    "load_backbone",
    "make_sampler",
    "pretrain",
    "register",
    "untrained_backbone",
]
