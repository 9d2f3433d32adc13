"""Networks of pixel-space backbones: which architectures can be used, how they are built and get their weights."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skdiec.backbones.config_files import Fields, read_header, read_json
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import UNet2DModel

logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Suffixes of files that can run code when they are read."""

MAX_SIDE = 4096
"""Pixels that a side of an image may have for a network."""

MAX_TIMESTEPS = 100_000
"""Timesteps that a noise schedule may have."""

WEIGHTS_NAME = "diffusion_pytorch_model"
"""How the names of files with weights begin."""

_DOWN_BLOCKS = ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
_UP_BLOCKS = ("UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
_MAX_CHANNELS = 2**16
_MAX_LEVELS = 10
_MAX_CLASSES = 2**20
_MAX_LAYERS = 16
_MAX_PARAMETERS = 2**31

_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What early diffusers called the layers of an attention, and what they are called today."""


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


def outline_network(folder: Path) -> tuple[UNet2DModel, list[Path]]:
    """Build the network of a folder without its weights, once these are known to fit.

    Parameters
    ----------
    folder : Path
        With ``config.json`` and safetensors weights: in one file or several, plain or of one variant.

    Returns
    -------
    UNet2DModel
        On the device ``"meta"``: it takes no memory.
    list of Path
        Files for `read_weights`.

    Raises
    ------
    ValueError
        Where a file is missing, unreadable or damaged, and where weights and configuration are of two architectures.
    """
    config_file = folder / "config.json"
    config = check_network_config(read_json(config_file), f"backbone file {config_file}")
    headers = {path: read_header(path) for path in find_weights(folder)}
    shapes = {_today(name): shape for header in headers.values() for name, shape in header.shapes.items()}
    _check_size(config, shapes, folder)
    network = _build(config, folder)
    _check_shapes(network, shapes, folder)
    return network, list(headers)


def read_weights(network: UNet2DModel, files: Sequence[Path]) -> None:
    """Give an outlined network its weights, in float32, and put it into evaluation mode.

    Parameters
    ----------
    network : UNet2DModel
    files : sequence of Path
        Both as `outline_network` returns them.

    Raises
    ------
    ValueError
        Where a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            part = load_file(path)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"backbone file {path} has damaged or truncated weights: {error}") from error
        # Copies: what the library returns may be the file's own pages, which another process can change.
        weights |= {_today(name): tensor.to(torch.float32, copy=True) for name, tensor in part.items()}
    _fill(network, weights)


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
    network = _build(check_network_config(config, where), where)
    _check_shapes(network, {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    _fill(network, weights)
    return network


def _build(config: Mapping[str, Any], where: object) -> UNet2DModel:
    with ONE_AT_A_TIME:
        from diffusers import UNet2DModel

    try:
        with torch.device("meta"):  # no memory, and no random numbers
            return UNet2DModel(**config)
    except Exception as error:  # diffusers and torch each have their own
        raise ValueError(f"backbone {where} has a configuration of which no network can be built: {error}") from error


def _fill(network: UNet2DModel, weights: Mapping[str, Tensor]) -> None:
    network.load_state_dict(dict(weights), assign=True)
    network.eval().requires_grad_(False)


def _today(name: str) -> str:
    """Return the name that today's diffusers has for a weight."""
    head, _, kind = name.rpartition(".")
    path, _, layer = head.rpartition(".")
    return f"{path}.{_FORMER_NAMES[layer]}.{kind}" if layer in _FORMER_NAMES else name


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


def _check_shapes(network: UNet2DModel, found: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise ValueError where weights are not those of a network."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing, unexpected = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if not missing and not unexpected and not other:
        return
    if other:
        example = f"{other[0]} has shape {found[other[0]]}, the configuration makes it {wanted[other[0]]}"
    else:
        example = f"such as {shown(min(missing or unexpected))}"
    raise ValueError(
        f"backbone {where} has weights of another architecture: {len(missing)} missing, {len(unexpected)} unexpected, "
        f"{len(other)} of another shape; {example}"
    )


def find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a network's weights.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path
        One, or all that an index names. Plain files are taken first, else those of the only variant, such as ``fp16``.

    Raises
    ------
    ValueError
        Where there are none, or only pickled ones, or several variants to choose from.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ValueError(f"backbone folder {folder} cannot be read: {error.strerror}") from error
    variants: dict[str, Path] = {}
    pattern = re.compile(rf"{WEIGHTS_NAME}(?:\.([\w-]+?))?\.safetensors(\.index(?:\.([\w-]+))?\.json)?")
    for match in filter(None, map(pattern.fullmatch, names)):
        variant = match.group(1) or match.group(3) or ""
        # An index first, as in diffusers.
        if variant not in variants or match.group(2):
            variants[variant] = folder / match.group()
    variants = {name: path for name, path in variants.items() if not re.search(r"-\d+-of-\d+$", name)}
    if "" not in variants and len(variants) > 1:
        raise ValueError(
            f"backbone {folder} has only variants of its weights, {', '.join(sorted(variants))}: keep the files of one "
            f"of them, or rename its file to {WEIGHTS_NAME}.safetensors"
        )
    if not variants:
        raise ValueError(_no_weights(folder, names))
    variant = "" if "" in variants else next(iter(variants))
    if variant:
        logger.info("reading the %s variant of the weights in %s", variant, folder)
    path = variants[variant]
    return _shards(path) if path.suffix == ".json" else [path]


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of weights names."""
    where = f"backbone file {index}"
    files = set()
    for name in Fields(read_json(index), where).mapping("weight_map").values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{where}: weight_map must name safetensors files beside it; got {shown(name)}")
        files.add(index.parent / name)
    if not files:
        raise ValueError(f"{where}: weight_map names no file")
    return sorted(files)


def _no_weights(folder: Path, names: Sequence[str]) -> str:
    pickled = [name for name in names if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    if pickled:
        return pickle_message(folder / pickled[0])
    found = [name for name in names if name.endswith(".safetensors")]
    others = f"; it has {', '.join(found[:3])}" if found else ""
    return (
        f"backbone {folder} has no .safetensors weights, such as {WEIGHTS_NAME}.safetensors "
        f"(pickled ones are not read){others}"
    )


def pickle_message(path: Path) -> str:
    """Say why a pickled file is not read.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
    """
    return (
        f"backbone {path} is in pickle format, which can run code when it is loaded; save the model with "
        "save_pretrained(..., safe_serialization=True) and pass that folder"
    )
