"""Settings of pretraining: what may be asked for, and the network that it makes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
import torch

from skdiec.backbones.devices import default_device, has_native_bf16, total_memory
from skdiec.backbones.importing import ONE_AT_A_TIME
from skdiec.images import ImageSource
from skdiec.messages import shown

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel, UNet2DModel

ARCHITECTURES = ("unet", "transformer")
"""What `pretrain` can train."""

NUM_TRAIN_TIMESTEPS = 1000
"""Timesteps of the noise schedule."""

_SHOWN = 80_000
"""Images that a training shows the network by default, each of them as often as need be."""

_STANDARDIZED_FROM_CHANNELS = 3
"""Channels from which images are standardized by default: photos in colour, whose light varies. The brightness of a
grey image can be all the ink that it has, which says much of a digit."""

_LEAST_EPOCHS = 8
"""Passes over many images, at least."""

# Far above what anybody trains; below what overflows, or fills the memory before it can be told of.
_MAX_COUNT = 2**31 - 1
_MAX_CHANNELS = 2**20
_MAX_RESOLUTIONS = 8
_MAX_LAYERS_PER_BLOCK = 16
_MAX_FOLDED = 65536  # channels of a network's input
_MAX_PATCH_SIZE = 2**10

# Of a transformer: twice as wide was not better for what it costs.
_WIDTH = 96
_DEPTH = 6
_MAX_HEAD = 32  # channels of an attention's head


@dataclass(frozen=True)
class Settings:
    """All that the trained weights depend on, apart from the images."""

    epochs: int
    max_minutes: float | None
    batch_size: int
    learning_rate: float
    architecture: str
    channels: tuple[int, ...]
    layers_per_block: int
    patch_size: int
    max_timestep: int
    standardize: bool
    ema_decay: float
    precision: str
    dtype: Literal["float32", "bfloat16"]
    seed: int


def resolve_settings(
    source: ImageSource,
    *,
    epochs: int | None,
    max_minutes: float | None,
    batch_size: int,
    learning_rate: float,
    architecture: str,
    channels: Sequence[int] | None,
    layers_per_block: int | None,
    patch_size: int | None,
    max_timestep: int,
    standardize: bool | None,
    ema_decay: float,
    precision: str,
    dtype: str,
    device: str | torch.device | None,
    random_state: int | None,
) -> Settings:
    """Check the settings of `pretrain`, and decide on those that were left open.

    Parameters
    ----------
    source : ImageSource
        Only its shape and length are used.
    epochs, max_minutes, batch_size, learning_rate, architecture, channels, layers_per_block, patch_size
        As in `pretrain`.
    max_timestep, standardize, ema_decay, precision, dtype, device, random_state
        As in `pretrain`.

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        For a setting that is of another kind, out of range, or more than the memory of the device can hold.
    """
    device = default_device(device)
    architecture = _one_of(architecture, "architecture", "'unet' or 'transformer'", ARCHITECTURES)
    _, height, width = source.shape
    if patch_size is None:
        patch_size = 1 if max(height, width) <= 8 else 2
        while math.ceil(max(height, width) / patch_size) > 16:
            patch_size *= 2
    patch_size = _count(patch_size, "patch_size", _MAX_PATCH_SIZE)
    if source.shape[0] * patch_size**2 > _MAX_FOLDED:
        raise ValueError(
            f"patch_size must fold images of {source.shape[0]} channels into at most {_MAX_FOLDED}; got {patch_size}"
        )
    if layers_per_block is None:
        layers_per_block = _DEPTH if architecture == "transformer" else 1
    if channels is None and architecture == "transformer":
        channels = (_WIDTH,)
    elif channels is None:
        side = math.ceil(max(height, width) / patch_size)
        if side > 8:
            channels = (32, 64, 128)
        elif side > 4:
            channels = (32, 64) if patch_size == 1 else (64, 128)
        else:
            channels = (32,)
    if standardize is None:
        standardize = source.shape[0] >= _STANDARDIZED_FROM_CHANNELS
    batch_size = _count(batch_size, "batch_size")
    steps_per_epoch = math.ceil(len(source) / batch_size)
    if epochs is None:
        # What counts is the number of steps: few images are shown as often as it takes.
        epochs = max(_LEAST_EPOCHS, round(_SHOWN / len(source)))
    if isinstance(precision, str) and precision == "auto":
        precision = "bf16" if has_native_bf16(device) else "fp32"
    if max_minutes is not None:
        max_minutes = as_real(max_minutes, "max_minutes", "a number above 0, or None", lambda x: x > 0)
    settings = Settings(
        max_minutes=max_minutes,
        epochs=_count(epochs, "epochs", _MAX_COUNT // steps_per_epoch),
        batch_size=batch_size,
        learning_rate=as_real(learning_rate, "learning_rate", "a number above 0 and at most 1", lambda x: 0 < x <= 1),
        architecture=architecture,
        channels=_channels(channels, architecture),
        layers_per_block=_count(layers_per_block, "layers_per_block", _MAX_LAYERS_PER_BLOCK),
        patch_size=patch_size,
        max_timestep=_timestep(max_timestep),
        standardize=_flag(standardize, "standardize"),
        ema_decay=as_real(ema_decay, "ema_decay", "in [0, 1)", lambda x: 0 <= x < 1),
        precision=_one_of(precision, "precision", "'auto', 'fp32' or 'bf16'", ("fp32", "bf16")),
        dtype=_one_of(dtype, "dtype", "'float32' or 'bfloat16'", ("float32", "bfloat16")),
        seed=_seed(random_state),
    )
    _check_memory(source, settings, device)
    return settings


def _check_memory(source: ImageSource, settings: Settings, device: torch.device) -> None:
    """Raise ValueError where even a careful guess at what a training needs is more than the device has."""
    with torch.device("meta"):  # the network without its weights
        network = untrained_network(source.shape, settings)
    total = total_memory(device) or math.inf
    count = sum(parameter.numel() for parameter in network.parameters())
    needed = 5 * 4 * count  # weights, gradients, both moments of Adam, and the moving average, in float32
    if needed > total:
        raise ValueError(
            f"channels={settings.channels}, layers_per_block={settings.layers_per_block} and "
            f"patch_size={settings.patch_size} make a network of {count:,} parameters, whose training takes more than "
            f"{needed / 2**30:,.0f} GiB; {device} has {total / 2**30:,.0f} GiB: choose smaller ones"
        )
    rows = min(settings.batch_size, len(source))
    needed = 4 * rows * _least_activations(source.shape, settings)
    if needed > total:
        raise ValueError(
            f"batch_size={settings.batch_size} with channels={settings.channels} and patch_size={settings.patch_size} "
            f"takes more than {needed / 2**30:,.0f} GiB for a step; {device} has {total / 2**30:,.0f} GiB: choose a "
            "smaller batch_size, or fewer channels"
        )


def _least_activations(image_shape: tuple[int, int, int], settings: Settings) -> int:
    """Return how many numbers a training step keeps of an image, at least."""
    size = _input_size(image_shape, settings)
    # Image, noise and noisy image.
    numbers = 3 * image_shape[0] * settings.patch_size**2
    if settings.architecture == "transformer":  # of a block, its norms, queries, keys, values, and four wide twice
        return math.prod(size) * (numbers + 12 * settings.channels[0] * settings.layers_per_block)
    return math.prod(size) * (numbers + 4 * settings.channels[0])  # of the first resolution, and no more


def _input_size(image_shape: tuple[int, int, int], settings: Settings) -> tuple[int, int]:
    """Return the sides of the network's map of patches."""
    height, width = (math.ceil(side / settings.patch_size) for side in image_shape[1:])
    if settings.architecture == "transformer":
        return height, width
    divisor = 2 ** (len(settings.channels) - 1)
    # At least two pixels a side at the lowest resolution: group normalisation needs more than one value.
    return divisor * max(2, math.ceil(height / divisor)), divisor * max(2, math.ceil(width / divisor))


def untrained_network(image_shape: tuple[int, int, int], settings: Settings) -> UNet2DModel | DiTTransformer2DModel:
    """Make the network of some settings.

    Parameters
    ----------
    image_shape : tuple of int
        ``(channels, height, width)``
    settings : Settings

    Returns
    -------
    diffusers.UNet2DModel or diffusers.DiTTransformer2DModel
        With weights from torch's generator.
    """
    with ONE_AT_A_TIME:
        from diffusers import DiTTransformer2DModel, UNet2DModel

    size = _input_size(image_shape, settings)
    if settings.architecture == "transformer":
        (width,) = settings.channels
        head = next(head for head in range(min(_MAX_HEAD, width), 0, -1) if width % head == 0)
        network = DiTTransformer2DModel(
            sample_size=settings.patch_size * max(size),
            patch_size=settings.patch_size,
            in_channels=image_shape[0],
            num_layers=settings.layers_per_block,
            num_attention_heads=width // head,
            attention_head_dim=head,
            num_embeds_ada_norm=0,  # the class that stands for none, and no other
        )
        # As in the paper of DiT (arXiv 2212.09748, section 3.2): blocks begin as identities, the estimate at zero.
        # diffusers leaves that out. On USPS the loss is a tenth lower after as many steps.
        for layer in (
            *(block.norm1.linear for block in network.transformer_blocks),
            network.proj_out_1,
            network.proj_out_2,
        ):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
        return network
    folded = image_shape[0] * settings.patch_size**2
    return UNet2DModel(
        sample_size=size,
        in_channels=folded,
        out_channels=folded,
        layers_per_block=settings.layers_per_block,
        block_out_channels=settings.channels,
        down_block_types=("DownBlock2D",) * len(settings.channels),
        up_block_types=("UpBlock2D",) * len(settings.channels),
        norm_num_groups=math.gcd(32, *settings.channels),
        attention_head_dim=32 if settings.channels[-1] % 32 == 0 else settings.channels[-1],
    )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's bool is no Integral


def _count(value: object, name: str, highest: int = _MAX_COUNT) -> int:
    if not _is_int(value) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1; got {shown(value)}")
    if value > highest:
        raise ValueError(f"{name} must be at most {highest}; got {shown(value)}")
    return int(value)


def _channels(values: Any, architecture: str) -> tuple[int, ...]:
    try:
        is_sequence = np.ndim(values) == 1 and len(values) > 0
    except (TypeError, ValueError):  # of no length, or of several
        is_sequence = False
    if not is_sequence:
        raise ValueError(f"channels must be a sequence of at least one int; got {shown(values)}")
    if len(values) > _MAX_RESOLUTIONS:
        raise ValueError(f"channels must be for at most {_MAX_RESOLUTIONS} resolutions; got {len(values)}")
    channels = tuple(_count(value, "channels", _MAX_CHANNELS) for value in values)
    if architecture == "transformer" and (len(channels) > 1 or channels[0] % 4):
        # A quarter each for sine and cosine of the two coordinates.
        raise ValueError(
            "channels must be one multiple of 4 for architecture='transformer', which has one resolution; "
            f"got {shown(channels)}"
        )
    return channels


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be a bool, or None; got {shown(value)}")
    return bool(value)


def _timestep(value: object) -> int:
    if not _is_int(value) or not 0 <= value < NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"max_timestep must be an int from 0 to {NUM_TRAIN_TIMESTEPS - 1}; got {shown(value)}")
    return int(value)


def _seed(value: object) -> int:
    if value is None:
        return int.from_bytes(os.urandom(4), "little")
    if not _is_int(value) or not 0 <= value < 2**32:
        raise ValueError(f"random_state must be an int from 0 to 2**32 - 1, or None; got {shown(value)}")
    return int(value)


def as_real(value: object, name: str, expected: str, is_valid: Callable[[float], bool]) -> float:
    """Return a number of any kind as a float.

    Parameters
    ----------
    value : object
    name : str
        Of the parameter, for the message.
    expected : str
        What it must be, for the message.
    is_valid : callable
        Of the float. NaN must not be.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For what is no number, or no valid one.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not is_valid(number):
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")
    return number


def _one_of(value: object, name: str, expected: str, known: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be {expected}; got {shown(value)}")
    return str(value)
