"""What a backbone is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Parts:
    """What a pipeline has, and what was asked for, of which a family makes its backbone.

    Attributes
    ----------
    network : nn.Module
    scheduler : diffusers.SchedulerMixin
        Of a class that `skdiec.backbones.levels.noise_levels` knows.
    autoencoder : nn.Module or None
    options : dict
        Of the pipeline's index.
    record : dict
        Of ``skdiec.json``, which `Backbone.save_pretrained` writes.
    image_size, null_class, condition
        As in `load_backbone`. Where the condition was saved, it counts as passed.
    prompt : callable
        Returns a pipeline that has the text parts of the family alone, and the network.

    Examples
    --------
    >>> Parts(network=nn.Identity(), scheduler=None).condition is None
    True
    """

    network: nn.Module
    scheduler: Any
    autoencoder: nn.Module | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | tuple[int, int] | None = None
    null_class: int | None = None
    condition: Mapping[str, Tensor] | None = None
    prompt: Callable[[], Any] | None = None
