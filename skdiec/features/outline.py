"""What a network's layers yield, and what they cost, found without computing a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from skdiec import activations
from skdiec.backbones import Backbone


def layer_shapes(backbone: Backbone, names: Sequence[str] | None = None) -> dict[str, tuple[int, int, int]]:
    """Return ``(channels, height, width)`` of the layers' maps, in order of execution; see `activations`."""
    outline, forward = _outline(backbone)
    return activations.layer_shapes(outline.network, forward, names, layers=outline.layers(), to_map=outline.to_map)


def layer_costs(backbone: Backbone, names: Iterable[str]) -> dict[str, float]:
    """Return the share of a whole pass's multiplications that a pass up to each layer takes, above 0 to 1."""
    names = tuple(names)
    done = _operations(backbone, names)
    whole = max(_operations(backbone, ())[None], 1)
    return {name: max(done[name], 1) / whole for name in names}


def multiplications(backbone: Backbone) -> int:
    """Return the multiplications of a whole pass of one image."""
    return _operations(backbone, ())[None] // 2  # each has an addition


def _operations(backbone: Backbone, layers: Sequence[str]) -> dict[str | None, int]:
    """Count the operations of a pass up to each layer; those of None are up to its end, the deepest layer."""
    outline, forward = _outline(backbone)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        so_far = activations.capture(
            outline.network, forward, layers, lambda *_: counter.get_total_flops(), outline.to_map
        )
    return {None: counter.get_total_flops()} | so_far


def _outline(backbone: Backbone) -> tuple[Backbone, Callable[[], Tensor]]:
    """Return a backbone that computes no numbers, and a pass of one image through it."""
    outline = backbone.outline()
    probe = torch.zeros((1, *outline.input_shape), dtype=torch.float32, device=outline.device)
    timesteps = torch.zeros(1, dtype=torch.long, device=outline.device)
    return outline, lambda: outline.predict(probe, timesteps)
