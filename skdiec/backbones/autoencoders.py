"""Autoencoders of diffusers: from images to latents as networks were trained on them, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skdiec.backbones.config_files import Fields
from skdiec.backbones.models import config_of

CLASSES = ("AutoencoderKL", "AutoencoderDC", "VQModel")
"""Classes that can be used."""

_PIXELS_AT_ONCE = 2**21
_MOST_AT_ONCE = 32


class Autoencoder:
    """An autoencoder with the scale of its latents.

    Parameters
    ----------
    model : diffusers.AutoencoderKL, AutoencoderDC or VQModel
    scale : float, default=None
        What latents are multiplied by. None is the model's own; for a ``VQModel`` whose configuration does not state
        one, it is 1, since diffusers' default is that of another model.

    Attributes
    ----------
    factor : int
        Pixels along each side of a cell of the latents.
    channels : int
        Channels of the latents.
    image_channels : int
        Channels of the images.
    """

    def __init__(self, model: nn.Module, scale: float | None = None) -> None:
        self.model: Any = model  # with the methods of its class in diffusers
        config = config_of(model)
        self.kind = type(model).__name__
        widths = config.encoder_block_out_channels if self.kind == "AutoencoderDC" else config.block_out_channels
        self.factor = 2 ** (len(widths) - 1)
        self.channels = int(config.latent_channels)
        self.image_channels = int(config.in_channels)
        if scale is None:
            is_default = self.kind == "VQModel" and "scaling_factor" in config.get("_use_default_values", ())
            scale = 1.0 if is_default else config.scaling_factor
        where = "the configuration of the backbone's autoencoder"
        self.scale = Fields({"scaling_factor": scale}, where).number("scaling_factor", 1e-12, 1e12)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode images, in batches of one size, so that latents do not depend on what is encoded with them.

        Parameters
        ----------
        pixels : Tensor of shape (n, image_channels, height, width)
            In [-1, 1].

        Returns
        -------
        Tensor of shape (n, channels, height / factor, width / factor), float32
        """
        height, width = pixels.shape[2:]
        size = max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))
        parts = []
        # Never in half precision, of which some autoencoders run out.
        with torch.autocast(pixels.device.type, enabled=False):
            for part in pixels.float().split(size):
                missing = size - len(part)
                padded = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
                parts.append(self._encode(padded)[: len(part)])
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of some latents, of shape (n, image_channels, height, width)."""
        shift, scale = self._shift_and_scale(latents)
        return self.model.decode(latents.float() / scale + shift, return_dict=False)[0]

    def _encode(self, pixels: Tensor) -> Tensor:
        found = self.model.encode(pixels, return_dict=False)[0]
        latents = found.mode() if self.kind == "AutoencoderKL" else found
        shift, scale = self._shift_and_scale(latents)
        return (latents - shift) * scale

    def _shift_and_scale(self, latents: Tensor) -> tuple[Any, Any]:
        """Return what is subtracted from latents, and what they are multiplied by then."""
        config = config_of(self.model)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return config.get("shift_factor") or 0.0, self.scale
        mean, deviation = (latents.new_tensor(list(values))[:, None, None] for values in (mean, deviation))
        return mean, self.scale / deviation
