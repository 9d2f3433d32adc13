"""Networks of pixel-space backbones: which architectures can be used, how they are built and get their weights."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from skdiec.backbones.config_files import Fields, read_json
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.backbones.models import build_model, check_shapes, find_weights, new_model, weight_shapes
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import UNet2DModel

MAX_SIDE = 4096
"""Pixels that a side of an image may have for a network."""

MAX_TIMESTEPS = 100_000
"""Timesteps that a noise schedule may have."""

_DOWN_BLOCKS = ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
_UP_BLOCKS = ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
_MAX_CHANNELS = 2**16
_MAX_LEVELS = 10
_MAX_CLASSES = 2**20
_MAX_LAYERS = 16
_MAX_PARAMETERS = 2**31


def check_network_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check that a configuration is of a ``UNet2DModel`` that can be used, and complete it.

    Parameters
    ----------
    config : mapping
        As in ``config.json``. Keys that the model does not know are ignored, as diffusers does.
    where : str
        What errors name.

    Returns
    -------
    dict
        The keyword arguments of ``UNet2DModel``.

    Raises
    ------
    ValueError
        For a network of another kind, or a value of the wrong type or out of range.
    """
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"{where} is of a {str(kind)[:80]}; only UNet2DModel can be used")
    parameters = list(inspect.signature(UNet2DModel.__init__).parameters.values())[1:]
    found = {parameter.name: config.get(parameter.name, parameter.default) for parameter in parameters}
    _check_kind(found, where)

    fields = Fields(found, where)
    channels = fields.integers("block_out_channels", 1, _MAX_CHANNELS, range(1, _MAX_LEVELS + 1))
    in_channels = fields.integer("in_channels", 1, _MAX_CHANNELS)
    fields.choice("out_channels", (in_channels, 2 * in_channels))  # twice as many where variances are learned too
    sides(found, where)
    fields.integer("layers_per_block", 1, _MAX_LAYERS)
    fields.choices("down_block_types", _DOWN_BLOCKS, len(channels))
    fields.choices("up_block_types", _UP_BLOCKS, len(channels))
    fields.choice("mid_block_type", ("UNetMidBlock2D", None))
    groups = fields.integer("norm_num_groups", 1, _MAX_CHANNELS)
    if any(count % groups for count in channels):
        raise ValueError(f"{where}: norm_num_groups must divide block_out_channels {shown(channels)}; got {groups}")
    for name in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim"):
        if found[name] is not None:
            fields.integer(name, 1, _MAX_CHANNELS)
    if found["attn_norm_num_groups"] is not None and channels[-1] % found["attn_norm_num_groups"]:
        raise ValueError(
            f"{where}: attn_norm_num_groups must divide the last of block_out_channels, {channels[-1]}; "
            f"got {found['attn_norm_num_groups']}"
        )
    if found["time_embedding_type"] == "learned":
        fields.integer("num_train_timesteps", 1, MAX_TIMESTEPS)
    fields.integer("downsample_padding", 0, 1)
    fields.choice("downsample_type", ("conv", "resnet"))
    fields.choice("upsample_type", ("conv", "resnet"))
    fields.choice("resnet_time_scale_shift", ("default", "scale_shift"))
    fields.choice("act_fn", ("silu", "swish", "mish", "gelu", "relu"))
    fields.choice("flip_sin_to_cos", (True, False))
    fields.choice("add_attention", (True, False))
    fields.number("freq_shift", 0, 1)
    fields.number("mid_block_scale_factor", 1e-6, 1e6)
    fields.number("dropout", 0, 1)
    fields.number("norm_eps", 1e-12, 1)
    return found


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for networks that estimate something else than a DDPM does, or want more than an image."""
    fields = Fields(config, where)
    fields.choice("time_embedding_type", ("positional", "learned", "fourier"))
    if fields.choice("center_input_sample", (True, False)):
        raise ValueError(
            f"{where}: with center_input_sample the network wants images in [0, 1], which is not supported; only "
            "networks of images in [-1, 1] can be used"
        )
    if config["class_embed_type"] is not None:
        raise ValueError(
            f"{where}: the network wants more of each image than its class (class_embed_type="
            f"{shown(config['class_embed_type'])}), which is not supported"
        )
    if config["num_class_embeds"] is not None:
        fields.integer("num_class_embeds", 1, _MAX_CLASSES)


def sides(config: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Read the size of the images that a network was trained on.

    Parameters
    ----------
    config : mapping
        As in ``config.json``.
    where : str
        What errors name.

    Returns
    -------
    tuple of int or None
        ``(height, width)``, where the configuration has a ``sample_size``.

    Raises
    ------
    ValueError
        For a ``sample_size`` of the wrong type or out of range.
    """
    fields, size = Fields(config, where), config["sample_size"]
    if size is None:
        return None
    if isinstance(size, Sequence):
        height, width = fields.integers("sample_size", 1, MAX_SIDE, range(2, 3))
        return height, width
    side = fields.integer("sample_size", 1, MAX_SIDE)
    return side, side


def outline_network(folder: Path, variant: str | None = None) -> tuple[UNet2DModel, list[Path]]:
    """Build the network of a folder without its weights, once these are known to fit.

    Parameters
    ----------
    folder : Path
        With ``config.json`` and safetensors weights: in one file or several, plain or of one variant.
    variant : str, default=None
        As in `find_weights`.

    Returns
    -------
    UNet2DModel
        Whose weights have no values yet.
    list of Path
        Files for `read_weights`.

    Raises
    ------
    ValueError
        Where a file is missing, unreadable or damaged, and where weights and configuration are of two architectures.
    """
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    config_file = folder / "config.json"
    config = check_network_config(read_json(config_file), f"backbone file {config_file}")
    files = find_weights(folder, variant)
    found = weight_shapes(files)
    _check_size(config, found, folder)
    network = build_model(UNet2DModel, config, folder)
    check_shapes(network, found, folder)
    return network, files


def new_network(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> UNet2DModel:
    """Build a network of given weights, without drawing others first.

    Parameters
    ----------
    config : mapping
        As in ``config.json``.
    weights : mapping of str to Tensor
        They become the network's own.
    where : str
        What errors name.

    Returns
    -------
    UNet2DModel
        In evaluation mode, without gradients.

    Raises
    ------
    ValueError
        Where weights and configuration are of two architectures.
    """
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    return new_model(UNet2DModel, check_network_config(config, where), weights, where)


def _check_size(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raise ValueError for a configuration of more or fewer blocks than there are weights for, before it is built."""
    if sum(map(math.prod, shapes.values())) > _MAX_PARAMETERS:
        raise ValueError(f"backbone {folder} has more than {_MAX_PARAMETERS} weights")
    blocks = {
        match.group() for match in map(re.compile(r"(down|up)_blocks\.\d+\.resnets\.\d+\.").match, shapes) if match
    }
    expected = len(config["block_out_channels"]) * (2 * config["layers_per_block"] + 1)
    if len(blocks) != expected:
        raise ValueError(
            f"backbone {folder} has weights of another architecture than config.json: layers_per_block="
            f"{config['layers_per_block']} and block_out_channels={shown(tuple(config['block_out_channels']))} make "
            f"{expected} residual blocks, the weights have {len(blocks)}"
        )
