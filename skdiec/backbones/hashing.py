"""Hashes of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from skdiec.backbones.base import Backbone


def fingerprint(backbone: Backbone) -> str:
    """Return a hash of a backbone's weights, architecture, schedule and image shape.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    str
    """
    parts = (*backbone.parts().values(), backbone.scheduler)
    configs = [_public(part.config) for part in parts if hasattr(part, "config")]
    record = json.dumps([type(backbone).__name__, configs, backbone.settings()], sort_keys=True, default=str)
    digest = hashlib.sha256(record.encode())
    for name, tensor in sorted({**backbone.tensors(), **vars(backbone._levels)}.items()):
        update_hash(digest, name, tensor)
    return digest.hexdigest()


def update_hash(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor, its name, type and shape to a hash.

    Parameters
    ----------
    digest : hashlib's hash
    name : str
    tensor : Tensor
    """
    digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    # Without what diffusers notes of itself, such as the folder that weights came from.
    return {key: value for key, value in config.items() if not key.startswith("_")}
